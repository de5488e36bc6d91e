/** From fetched bytes to what the service keeps of an image: its facts, a thumbnail, a perceptual hash, its pixels. */
import sharp from 'sharp';
import type { Pixels } from '../faces/engine.js';
import { type DecodeLimits, decode, type ImageFacts, type Raster, readFacts } from './decoder.js';
import { perceptualHash } from './phash.js';
import { inSlot } from './slots.js';

export type { DecodeLimits };

/** Longest side of a thumbnail in pixels. */
const THUMBNAIL_SIDE = 256;

/**
 * Longest side, in pixels, at which faces are looked for. The detector reduces to 512 whatever it is given; what is
 * gained beyond is detail for the recogniser, which takes 150 pixels a face. Of the six 1,920 px sample photographs
 * the same 22 faces are found at both sizes, while the pixels to hold and to copy are a third fewer.
 */
const FACE_SIDE = 1600;

export interface ProcessedImage extends ImageFacts {
  /** 64-bit DCT hash of the upright image, 16 lower-case hex characters; see `phash.ts`. */
  phash: string;
  /** JPEG, longest side at most 256 px, never enlarged; upright, sRGB, without any metadata. */
  thumbnail: Buffer;
}

/**
 * One decode, to thumbnail size, gives both the thumbnail and the hash: decoding for each apart costs twice as much.
 *
 * @param bytes as fetched; the type is judged by content alone
 * @throws RejectedError `not-an-image`, `unsupported`, `corrupt`, or `too-large` before any pixel is decoded;
 * RetryableError `timeout` when decoding takes longer than 30 s
 */
export function processImage(bytes: Buffer, limits: DecodeLimits): Promise<ProcessedImage> {
  return inSlot(async () => {
    const facts = await readFacts(bytes, limits);
    const raster = await decode(bytes, THUMBNAIL_SIDE, limits);
    // sharp encodes on libuv's threads, meanwhile the hash is computed on this one: 2 ms.
    const encoding = encodeThumbnail(raster);
    return { ...facts, phash: perceptualHash(raster), thumbnail: await encoding };
  });
}

/**
 * The pixels for a face engine: upright, 8-bit sRGB, transparency on white.
 *
 * @param limits.maxSide longest side of the result, in pixels; 1,600
 * @throws as {@link processImage}
 */
export function decodePixels(
  bytes: Buffer,
  { maxSide = FACE_SIDE, ...limits }: DecodeLimits & { maxSide?: number },
): Promise<Pixels> {
  return inSlot(async () => {
    const facts = await readFacts(bytes, limits);
    const { data, width, height } = await decode(bytes, maxSide, limits);
    return { data, width, height, scale: Math.max(facts.width, facts.height) / Math.max(width, height) };
  });
}

function encodeThumbnail({ data, width, height }: Raster): Promise<Buffer> {
  return sharp(data, { raw: { width, height, channels: 3 } })
    .jpeg({ quality: 80 })
    .toBuffer();
}
