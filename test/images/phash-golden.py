"""Writes phash-golden.json: what Python makes of the patterns in patterns.ts. From the top folder of the repository:

    apt-get install python3-pil python3-scipy
    python3 test/images/phash-golden.py

The hash is the one of imagehash 4.3, `phash(image, hash_size=8, highfreq_factor=4)`, computed by what that stands on;
where the package itself is installed, the two are compared. `open` are the bits that this arithmetic leaves open:
their coefficient equals the median but for the rounding of additions, so that another FFT would set them otherwise.
`faint` are pictures whose hash is rounding altogether, see NOISE and DITHER in src/images/phash.ts.
"""

import hashlib
import json
import pathlib
import subprocess

import numpy
import scipy.fftpack
from PIL import Image

try:
    import imagehash
except ImportError:
    imagehash = None

# One pattern after another: a line that describes it, then its RGB bytes.
SEND = """
import { patterns } from './test/images/patterns.ts';
for (const { name, data, width, height } of await patterns()) {
  process.stdout.write(JSON.stringify({ name, width, height }) + '\\n');
  process.stdout.write(data);
}
"""
# Additions of 1,024 numbers up to 1e6 err by less than 1e-8; one grey level in one cell is worth more than 0.02.
ROUNDING = 1e-6
NOISE = 64
DITHER = 2


def main():
    with subprocess.Popen(
        ["node", "--import", "tsx", "--input-type=module", "--eval", SEND], stdout=subprocess.PIPE
    ) as sender:
        golden = [described(line, sender.stdout) for line in sender.stdout]
    assert sender.returncode == 0 and golden
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=2) + "\n")


def described(line, stream):
    facts = json.loads(line)
    width, height = facts["width"], facts["height"]
    pixels = stream.read(width * height * 3)
    sha256 = hashlib.sha256(pixels).hexdigest()
    return {"name": facts["name"], "sha256": sha256, **hashed(Image.frombytes("RGB", (width, height), pixels))}


def hashed(image):
    grey = numpy.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))
    low = scipy.fftpack.dct(scipy.fftpack.dct(grey, axis=0), axis=1)[:8, :8]
    median = numpy.median(low)
    phash = hex_of(low > median)
    assert imagehash is None or str(imagehash.phash(image)) == phash
    faint = abs(low.flatten()[1:]).max() < NOISE or numpy.ptp(grey) <= DITHER
    return {"phash": phash, "open": hex_of(abs(low - median) <= ROUNDING), "faint": bool(faint)}


def hex_of(bits):
    return f"{int(''.join('1' if bit else '0' for bit in bits.flatten()), 2):016x}"


main()
