import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import sharp from 'sharp';
import { beforeAll, describe, expect, it } from 'vitest';
import { decode } from '../../src/images/decoder.js';
import { perceptualHash } from '../../src/images/phash.js';
import { isTelling } from '../../src/kinds/perceptual-hash.js';
import {
  flatImage,
  gradientImage,
  hammingDistance,
  pngOf,
  randomBelow,
  recompressed,
  resized,
  rgbImage,
  SAMPLE_PHOTOS,
  type SampleNumber,
  samplePhoto,
} from '../support/images.js';
import { type Pattern, patterns } from './patterns.js';

const LIMITS = { maxPixels: 100_000_000 };

async function hashOf(image: Buffer): Promise<string> {
  return perceptualHash(await decode(image, 256, LIMITS));
}

describe('perceptualHash', () => {
  // Computed from the full photographs with Pillow 12.3 and SciPy 1.17 by imagehash 4.3's six lines:
  // convert('L'), resize((32, 32), LANCZOS), dct(dct(pixels, axis=0), axis=1), [:8, :8] > median.
  const REFERENCE = {
    1: 'b1a59a3e5bc0483f',
    2: 'daf8c29aad89ad81',
    3: 'c589fb45f1211de4',
    4: '9fe590fac98a7488',
    5: 'bcbeb575271a0862',
    6: 'ff87c4949c968196',
  };

  it.each(SAMPLE_PHOTOS)('is within two bits of Python imagehash on photograph %i', async (n) => {
    expect(hammingDistance(await hashOf(await samplePhoto(n)), REFERENCE[n])).toBeLessThanOrEqual(2);
  });

  it.each(SAMPLE_PHOTOS)('stays near for photograph %i recompressed, halved, reduced to a quarter', async (n) => {
    const photo = await samplePhoto(n);
    const original = await hashOf(photo);
    const copies = [await recompressed(photo, 30), await resized(photo, 0.5), await resized(photo, 0.25)];
    for (const copy of copies) expect(hammingDistance(original, await hashOf(copy))).toBeLessThanOrEqual(4);
  });

  it('is far between different photographs', async () => {
    const hashes = await Promise.all(SAMPLE_PHOTOS.map(async (n) => hashOf(await samplePhoto(n))));
    const distances = hashes.flatMap((a, i) => hashes.slice(i + 1).map((b) => hammingDistance(a, b)));
    expect(Math.min(...distances)).toBeGreaterThan(16);
  });
});

describe('perceptualHash beside Python imagehash', () => {
  /** What phash-golden.py says of each pattern; `open` and `faint` are explained there. */
  type Golden = { name: string; sha256: string; phash: string; open: string; faint: boolean };
  const golden: Golden[] = JSON.parse(readFileSync(new URL('./phash-golden.json', import.meta.url), 'utf8'));
  let made: Pattern[];
  let pairs: (Golden & { ours: string })[];

  beforeAll(async () => {
    made = await patterns();
    pairs = golden.map((one, i) => ({ ...one, ours: perceptualHash(made[i] as Pattern) }));
  });

  it('is about the same pixels', () => {
    const told = made.map(({ name, data }) => ({ name, sha256: createHash('sha256').update(data).digest('hex') }));
    expect(told).toEqual(golden.map(({ name, sha256 }) => ({ name, sha256 })));
    expect(told).toHaveLength(248);
  });

  it('is the same hash wherever every bit is determined, in 196 pictures', () => {
    const determined = pairs.filter(({ open, faint }) => !faint && open === '0'.repeat(16));
    expect(determined.map(({ ours }) => ours)).toEqual(determined.map(({ phash }) => phash));
    expect(determined).toHaveLength(196);
  });

  it('differs in no determined bit of the 35 pictures that leave some open', () => {
    const partly = pairs.filter(({ open, faint }) => !faint && open !== '0'.repeat(16));
    const determined = (phash: string, open: string) => BigInt(`0x${phash}`) & ~BigInt(`0x${open}`);
    expect(partly.map(({ ours, open }) => determined(ours, open))).toEqual(
      partly.map(({ phash, open }) => determined(phash, open)),
    );
    expect(partly).toHaveLength(35);
  });

  it('is degenerate, by choice and not by chance, in the 17 pictures without structure', () => {
    const faint = pairs.filter((pair) => pair.faint);
    expect(faint.filter(({ ours }) => isTelling(ours))).toEqual([]);
    expect(faint).toHaveLength(17);
  });

  it('is the same through a file of up to 256 pixels a side', async () => {
    const small = made.filter(({ width, height }) => Math.max(width, height) <= 256);
    const fromFiles = await Promise.all(small.map(async (pattern) => hashOf(await pngOf(pattern))));
    expect(fromFiles).toEqual(small.map(perceptualHash));
    expect(small).toHaveLength(206);
  });

  it('is within two bits through the file of a larger photograph', async () => {
    const large = made.filter(({ name, width }) => width > 256 && name.startsWith('photograph'));
    const distances = await Promise.all(
      large.map(async (pattern) => hammingDistance(await hashOf(await pngOf(pattern)), perceptualHash(pattern))),
    );
    expect(Math.max(...distances)).toBeLessThanOrEqual(2);
    expect(large).toHaveLength(12);
  });
});

describe('near-duplicates', () => {
  const QUALITIES = [30, 40, 50, 60, 70, 80, 95];
  const FACTORS = [0.25, 0.5, 0.75, 1.25, 1.5, 2];
  const NEAR = 6;

  it.each(SAMPLE_PHOTOS)('of photograph %i and of ten cut-outs are found, 99 in 100', async (n) => {
    const distances: number[] = [];
    for (const image of [await samplePhoto(n), ...(await cutOuts(n))]) {
      const original = await hashOf(image);
      expect(isTelling(original)).toBe(true);
      const copies = [
        ...QUALITIES.map((quality) => recompressed(image, quality)),
        ...FACTORS.map((factor) => resized(image, factor)),
      ];
      for (const copy of copies) distances.push(hammingDistance(original, await hashOf(await copy)));
    }
    expect(distances).toHaveLength(11 * 13);
    expect(distances.filter((distance) => distance <= NEAR).length / distances.length).toBeGreaterThanOrEqual(0.99);
  });

  /** As JPEG, from 200 x 150 to 600 x 450 pixels, anywhere in the photograph. */
  async function cutOuts(n: SampleNumber): Promise<Buffer[]> {
    const photograph = sharp(await samplePhoto(n));
    const { width, height } = await photograph.metadata();
    const random = randomBelow(n);
    return Promise.all(
      Array.from({ length: 10 }, () => {
        const part = 200 + random(401);
        const size = { width: part, height: Math.floor((part * 3) / 4) };
        const place = { left: random(width - size.width), top: random(height - size.height), ...size };
        return photograph.clone().extract(place).jpeg({ quality: 95 }).toBuffer();
      }),
    );
  }
});

describe('a hash tells something', () => {
  it.each(['#000000', '#ffffff', '#4080c0'])('not of an image of one colour, %s', async (colour) => {
    expect(isTelling(await hashOf(await flatImage(300, 200, colour)))).toBe(false);
  });

  it('not of one pixel', async () => {
    expect(isTelling(await hashOf(await flatImage(1, 1)))).toBe(false);
  });

  it('not of a gradient along one axis', async () => {
    expect(isTelling(await hashOf(await gradientImage(300, 200)))).toBe(false);
  });

  it('not of a flat image with the faintest of noise, whose hash would be chance', async () => {
    const faint = await rgbImage(64, 64, (x, y) => 100 + ((x * 7 + y * 13) % 2));
    expect(isTelling(await hashOf(faint))).toBe(false);
  });

  it('not of a colour that its encoder dithers', async () => {
    const dithered = await sharp(await flatImage(40, 30))
      .withMetadata()
      .webp()
      .toBuffer();
    expect(new Set((await decode(dithered, 256, LIMITS)).data).size).toBeGreaterThan(3);
    expect(isTelling(await hashOf(dithered))).toBe(false);
  });

  it.each(SAMPLE_PHOTOS)('of photograph %i', async (n) => {
    expect(isTelling(await hashOf(await samplePhoto(n)))).toBe(true);
  });
});
