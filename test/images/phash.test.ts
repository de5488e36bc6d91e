import { describe, expect, it } from 'vitest';
import { decode } from '../../src/images/decoder.js';
import { hammingDistance, isDegenerate, perceptualHash } from '../../src/images/phash.js';
import {
  flatImage,
  gradientImage,
  noiseImage,
  recompressed,
  resized,
  rgbImage,
  SAMPLE_PHOTOS,
  samplePhoto,
} from '../support/images.js';

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

  it('is exactly Python imagehash where no decoder comes between: noise of 5 x 3 pixels, enlarged', async () => {
    expect(await hashOf(await noiseImage(5, 3))).toBe('826a12aaedaa9abb');
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

describe('isDegenerate', () => {
  it.each(['#000000', '#ffffff', '#4080c0'])('is true for an image of one colour, %s', async (colour) => {
    expect(isDegenerate(await hashOf(await flatImage(300, 200, colour)))).toBe(true);
  });

  it('is true for one pixel', async () => {
    expect(isDegenerate(await hashOf(await flatImage(1, 1)))).toBe(true);
  });

  it('is true for a gradient along one axis', async () => {
    expect(isDegenerate(await hashOf(await gradientImage(300, 200)))).toBe(true);
  });

  it('is true for a flat image with the faintest of noise, whose hash would be chance', async () => {
    const faint = await rgbImage(64, 64, (x, y) => 100 + ((x * 7 + y * 13) % 2));
    expect(isDegenerate(await hashOf(faint))).toBe(true);
  });

  it.each(SAMPLE_PHOTOS)('is false for photograph %i', async (n) => {
    expect(isDegenerate(await hashOf(await samplePhoto(n)))).toBe(false);
  });
});

describe('hammingDistance', () => {
  it('counts bits in both halves', () => {
    expect(hammingDistance('0000000000000000', 'ffffffffffffffff')).toBe(64);
    expect(hammingDistance('8000000000000001', '0000000000000000')).toBe(2);
    expect(hammingDistance('daf8c29aad89ad81', 'daf8c29aad89ad81')).toBe(0);
  });

  it('refuses what is no 64-bit hash, instead of giving a distance of NaN bits', () => {
    expect(() => hammingDistance('a1b2c3d4e5f6g7h8', '0000000000000000')).toThrow(/16 hex/);
  });
});
