/** Real photographs and made-up images, all in memory. The photographs come with face-api, which is a dependency. */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import sharp, { type Sharp } from 'sharp';
import type { Raster } from '../../src/images/decoder.js';

const FACE_API = dirname(createRequire(import.meta.url).resolve('@vladmandic/face-api/package.json'));

export const SAMPLE_PHOTOS = [1, 2, 3, 4, 5, 6] as const;
export type SampleNumber = (typeof SAMPLE_PHOTOS)[number];

/** A JPEG of 1,920 px width without EXIF, of three to five people: 3, 3, 3, 4, 5 and 4 faces in photographs 1 to 6. */
export function samplePhoto(n: SampleNumber): Promise<Buffer> {
  return readFile(join(FACE_API, 'demo', `sample${n}.jpg`));
}

/** The same picture as JPEG of another quality. */
export function recompressed(image: Buffer, quality = 40): Promise<Buffer> {
  return sharp(image).jpeg({ quality }).toBuffer();
}

/** The same picture as JPEG, both sides multiplied by `factor`. */
export async function resized(image: Buffer, factor: number): Promise<Buffer> {
  const { width } = await sharp(image).metadata();
  return sharp(image)
    .resize(Math.round(width * factor))
    .jpeg({ quality: 90 })
    .toBuffer();
}

/** Left and right exchanged, as JPEG. */
export function mirrored(image: Buffer): Promise<Buffer> {
  return sharp(image).flop().jpeg({ quality: 95 }).toBuffer();
}

/** How the stored picture came from the upright one (EXIF 2.32, tag 0x0112): mirrored first, then turned. */
const TURNS = {
  1: [false, 0],
  2: [true, 0],
  3: [false, 180],
  4: [true, 180],
  5: [true, 270],
  6: [false, 270],
  7: [true, 90],
  8: [false, 90],
} as const;

export type Orientation = keyof typeof TURNS;
export const ORIENTATIONS: readonly Orientation[] = [1, 2, 3, 4, 5, 6, 7, 8];

/** The picture as a camera held in this orientation stores it: turned, with the tag that turns it back. */
export async function storedIn(
  orientation: Orientation,
  image: Buffer,
  encode = (picture: Sharp) => picture.jpeg({ quality: 90 }),
): Promise<Buffer> {
  const [mirror, degrees] = TURNS[orientation];
  const turned = await sharp(image).flop(mirror).png().toBuffer();
  return encode(sharp(turned).rotate(degrees).withMetadata({ orientation })).toBuffer();
}

/** One colour all over, as PNG. */
export function flatImage(width: number, height: number, background = '#4080c0'): Promise<Buffer> {
  return sharp({ create: { width, height, channels: 3, background } })
    .png()
    .toBuffer();
}

/** Black to white from left to right, as PNG. */
export function gradientImage(width: number, height: number): Promise<Buffer> {
  return rgbImage(width, height, (x) => Math.round((255 * x) / Math.max(1, width - 1)));
}

/** Grey noise, the same for the same `seed`, as PNG. */
export function noiseImage(width: number, height: number, seed = 1): Promise<Buffer> {
  const random = randomBelow(seed);
  return rgbImage(width, height, () => random(256));
}

/** Integers from 0 to below 2^24, the same row of them for the same `seed`. */
export function randomBelow(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => {
    // A linear congruential generator (Numerical Recipes): its high bits are good enough to look at.
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor(((state >>> 8) * bound) / 2 ** 24);
  };
}

/** A grey PNG whose every pixel `level` (0 to 255) names. */
export function rgbImage(width: number, height: number, level: (x: number, y: number) => number): Promise<Buffer> {
  return pngOf(rgbRaster(width, height, level));
}

export function rgbRaster(width: number, height: number, level: (x: number, y: number) => number): Raster {
  const data = Buffer.alloc(width * height * 3);
  for (let i = 0; i < width * height; i++) data.fill(level(i % width, Math.floor(i / width)), i * 3, i * 3 + 3);
  return { data, width, height };
}

/** The same pixels as PNG. */
export function pngOf({ data, width, height }: Raster): Promise<Buffer> {
  return sharp(data, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer();
}

/** The same JPEG, whose frame header now says `width` by `height`: what a decompression bomb looks like. */
export function claimingSize(jpeg: Buffer, width: number, height: number): Buffer {
  const lie = Buffer.from(jpeg);
  for (let at = 2; at + 9 <= lie.length; at += 2 + lie.readUInt16BE(at + 2)) {
    const marker = lie[at + 1] ?? 0;
    if (marker < 0xc0 || marker > 0xc2) continue;
    lie.writeUInt16BE(height, at + 5);
    lie.writeUInt16BE(width, at + 7);
    return lie;
  }
  throw new Error('not a JPEG with a frame header');
}

/** In how many of the 64 bits two perceptual hashes differ. */
export function hammingDistance(a: string, b: string): number {
  return (BigInt(`0x${a}`) ^ BigInt(`0x${b}`)).toString(2).replaceAll('0', '').length;
}
