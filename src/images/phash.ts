/**
 * The 64-bit DCT perceptual hash of an image, as Python's `imagehash.phash(hash_size=8, highfreq_factor=4)` computes
 * it: grey, 32 x 32 by Lanczos, DCT-II, the 8 x 8 lowest frequencies, one bit each for "above their median".
 */
/** Side of the grey square that is transformed, and of the corner of low frequencies that is kept. */
const SIDE = 32;
const LOW = 8;

/** Pillow weighs 8-bit pixels with fixed-point numbers of 22 binary digits after the point. */
const ONE = 2 ** 22;

/**
 * Rounding the grey square to 8 bits alone leaves noise of standard deviation 18 in every coefficient
 * (sqrt(1/12) per cell, times 2 * 2 * 0.5 * 32 for the transform). An image whose strongest frequency stays within
 * 3.5 of these has no structure to speak of, and its hash would be that noise.
 */
const NOISE = 64;

/**
 * Where no two cells differ by more than this many of 255 levels, there is nothing to be seen. Rounding is no noise there
 * but a pattern: of a level that lies half-way, or of an encoder's dither (WebP's of one colour), with frequencies of 100.
 */
const DITHER = 2;

/** Far above the error of 1,024 additions in doubles (1e-9), far below what one grey level in one cell gives. */
const FLOAT_ERROR = 1e-6;

/** `COSINE[k * SIDE + n]` = 2 cos(pi k (2n + 1) / 64): the rows of the unnormalised DCT-II, `scipy.fftpack.dct`. */
const COSINE = Float64Array.from({ length: LOW * SIDE }, (_, i) => {
  const k = Math.floor(i / SIDE);
  const n = i % SIDE;
  return 2 * Math.cos((Math.PI * k * (2 * n + 1)) / (2 * SIDE));
});

/** 8-bit RGB, row by row, of any size from 1 x 1. */
interface RgbImage {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/**
 * Bit for bit what imagehash 4.3 gives for the same pixels, but where rounding decides there: a coefficient that equals
 * the median is no bit here, and an image without structure has a hash that tells nothing
 * (`isTelling`). From a thumbnail instead of the full
 * image up to two bits differ in photographs, and more in drawings finer than the 32 x 32 cells. Transparency, which
 * imagehash ignores, is on white here.
 *
 * @returns 16 lower-case hex characters, lowest frequencies first
 */
export function perceptualHash(image: RgbImage): string {
  return hexOfBits(aboveMedian(withoutNoise(lowFrequencies(withoutDither(greySquare(image))))));
}

function greySquare({ data, width, height }: RgbImage): Uint8Array {
  const grey = luma(data, width * height);
  // As Pillow: along the rows, round to 8 bits, then along the columns.
  return reduceRows(reduceRows(grey, width, height), height, SIDE);
}

/** ITU-R 601 luma in Pillow's integer arithmetic (`Convert.c`: 0.299 R + 0.587 G + 0.114 B in 16 bits). */
function luma(rgb: Uint8Array, pixels: number): Uint8Array {
  const grey = new Uint8Array(pixels);
  for (let i = 0, at = 0; i < pixels; i++, at += 3) {
    const red = rgb[at] as number;
    const green = rgb[at + 1] as number;
    const blue = rgb[at + 2] as number;
    grey[i] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
  }
  return grey;
}

/** Resizes every row to 32 cells and transposes, so that two calls resize both ways and restore the orientation. */
function reduceRows(grey: Uint8Array, width: number, height: number): Uint8Array {
  const out = new Uint8Array(SIDE * height);
  for (let cell = 0; cell < SIDE; cell++) {
    const { start, weights } = lanczosWeights(cell, width);
    for (let y = 0, from = start; y < height; y++, from += width) {
      let sum = ONE / 2;
      for (let i = 0; i < weights.length; i++) sum += (weights[i] as number) * (grey[from + i] as number);
      out[cell * height + y] = Math.max(0, Math.min(255, Math.floor(sum / ONE)));
    }
  }
  return out;
}

/**
 * Which cells of a line of `size` make up output cell `cell`, and by how much, in `ONE`s (Pillow's `Resample.c`).
 * Rounded as there: a sum that exact weights put half-way between two levels, as in many drawings, then falls likewise.
 */
function lanczosWeights(cell: number, size: number): { start: number; weights: Float64Array } {
  const scale = size / SIDE;
  const stretch = Math.max(scale, 1);
  const centre = (cell + 0.5) * scale;
  const start = Math.max(0, Math.floor(centre - 3 * stretch + 0.5));
  const end = Math.min(size, Math.floor(centre + 3 * stretch + 0.5));
  const weights = new Float64Array(end - start);
  let sum = 0;
  for (let i = 0; i < weights.length; i++) sum += weights[i] = lanczos3((start + i + 0.5 - centre) / stretch);
  return { start, weights: weights.map((weight) => Math.round((weight / sum) * ONE)) };
}

function lanczos3(x: number): number {
  if (x === 0) return 1;
  if (Math.abs(x) >= 3) return 0;
  const angle = Math.PI * x;
  return (3 * Math.sin(angle) * Math.sin(angle / 3)) / (angle * angle);
}

function withoutDither(square: Uint8Array): Uint8Array {
  const darkest = square.reduce((least, level) => Math.min(least, level), 255);
  const brightest = square.reduce((most, level) => Math.max(most, level), 0);
  return brightest - darkest > DITHER ? square : square.fill(darkest);
}

/** The 8 x 8 low corner of the two-dimensional DCT, vertical frequency by row. */
function lowFrequencies(square: Uint8Array): Float64Array {
  const rows = new Float64Array(SIDE * LOW);
  for (let y = 0; y < SIDE; y++) {
    for (let v = 0; v < LOW; v++) rows[v * SIDE + y] = transformed(square, y * SIDE, v);
  }
  const low = new Float64Array(LOW * LOW);
  for (let u = 0; u < LOW; u++) {
    for (let v = 0; v < LOW; v++) low[u * LOW + v] = transformed(rows, v * SIDE, u);
  }
  return low;
}

function transformed(line: Uint8Array | Float64Array, from: number, frequency: number): number {
  let sum = 0;
  for (let n = 0; n < SIDE; n++) sum += (line[from + n] as number) * (COSINE[frequency * SIDE + n] as number);
  return sum;
}

/** Sets to exactly zero what is only rounding, so that a flat image has one hash and not one for each decoder. */
function withoutNoise(low: Float64Array): Float64Array {
  const strongest = low.subarray(1).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const floor = strongest < NOISE ? NOISE : FLOAT_ERROR;
  return low.map((value, i) => (i > 0 && Math.abs(value) < floor ? 0 : value));
}

function aboveMedian(low: Float64Array): boolean[] {
  const sorted = low.toSorted();
  const median = ((sorted[31] as number) + (sorted[32] as number)) / 2;
  return Array.from(low, (value) => value > median);
}

function hexOfBits(bits: boolean[]): string {
  const binary = bits.map((bit) => (bit ? '1' : '0')).join('');
  return BigInt(`0b${binary}`).toString(16).padStart(16, '0');
}
