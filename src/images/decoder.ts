/** The one place that lets libvips look at bytes from the web: which loaders it may use, and under which limits. */
import sharp, { type Metadata, type Sharp } from 'sharp';
import { RejectedError } from '../errors.js';
import { failureOf, tooLong, tooManyPixels } from './reject.js';

// libvips chooses a loader by content, and this build has a good dozen: SVG (which may ask for more memory and time
// than its size shows, and names outside files), raw, its own file format. So everything is blocked, then the six
// formats we take are allowed, from memory only; a loader that a later libvips brings stays blocked. This is global to
// the process, hence done once, before the first image. `VipsForeignLoadUhdrBuffer` stays blocked on purpose: an Ultra
// HDR JPEG is then read as the ordinary JPEG that it also is.
sharp.block({ operation: ['VipsForeignLoad'] });
sharp.unblock({
  operation: ['Jpeg', 'Png', 'Webp', 'Nsgif', 'Heif', 'Tiff'].map((loader) => `VipsForeignLoad${loader}Buffer`),
});
// No image is read twice here, so libvips's cache of operations would only hold on to memory.
sharp.cache(false);
// Images are decoded beside each other, on libuv's threads. Several threads for one would only add their buffers and,
// with glibc's malloc, the memory that each keeps; sharp sees to that itself on some platforms, by default not on all.
sharp.concurrency(1);

/** sharp's name of a format -> the media type by which it is stored and served. */
const MEDIA_TYPES = new Map<string, string>([
  ['jpeg', 'image/jpeg'],
  ['png', 'image/png'],
  ['webp', 'image/webp'],
  ['gif', 'image/gif'],
  ['heif', 'image/avif'],
  ['tiff', 'image/tiff'],
]);

/** A crafted progressive JPEG keeps a decoder busy for minutes; 100 Mpx of honest JPEG take about a second. */
const DECODE_SECONDS = 30;

/**
 * The most that JPEG, GIF and WebP can say. libvips holds some rows of each step, however long they are: a PNG of
 * 100 kB that says 3,000,000 x 33 pixels takes 2 GB (5 with 16 bits and alpha), one of 65,535 x 1,500 takes 0.1 (0.4).
 */
const MAX_SIDE = 65_535;

/** How many channels make up a colour; one more is transparency. */
const COLOUR_CHANNELS: Readonly<Record<string, number>> = { 'b-w': 1, grey16: 1, cmyk: 4 };

export interface ImageFacts {
  /** By content: `image/jpeg`, `image/png`, `image/webp`, `image/gif`, `image/avif` or `image/tiff`. */
  mimeType: string;
  /** Pixels of the upright image, as EXIF orientation says; of the first frame or page where there are several. */
  width: number;
  height: number;
}

export interface DecodeLimits {
  /** Width times height, as the header says; nothing larger is decoded. */
  maxPixels: number;
}

/** 8-bit sRGB, three channels, row by row. */
export interface Raster {
  data: Buffer;
  width: number;
  height: number;
}

/**
 * Reads the header alone.
 *
 * @throws RejectedError `not-an-image`, `unsupported`, `corrupt` or `too-large`
 */
export async function readFacts(bytes: Buffer, { maxPixels }: DecodeLimits): Promise<ImageFacts> {
  try {
    // Without a pixel limit, for its message does not say how large the image is; no pixel is decoded here.
    const metadata = await sharp(bytes, { limitInputPixels: false }).metadata();
    const { width, height } = metadata.autoOrient;
    if (width * height > maxPixels) throw tooManyPixels(width, height, maxPixels);
    if (Math.max(width, height) > MAX_SIDE) throw tooLong(width, height, MAX_SIDE);
    return { mimeType: mediaType(metadata), width, height };
  } catch (error) {
    throw failureOf(error, bytes, maxPixels);
  }
}

/**
 * Decodes once, straight to the wanted size: JPEG and WebP shrink while loading. Upright, sRGB (an embedded profile is
 * applied), transparency on white, never enlarged.
 *
 * @param maxSide longest side of the result, in pixels
 * @throws RejectedError `corrupt` for broken or truncated data; RetryableError `timeout` after 30 s
 */
export async function decode(bytes: Buffer, maxSide: number, { maxPixels }: DecodeLimits): Promise<Raster> {
  try {
    const { data, info } = await upright(bytes, maxPixels)
      .resize({ width: maxSide, height: maxSide, fit: 'inside', withoutEnlargement: true })
      .flatten({ background: '#ffffff' })
      .toColourspace('srgb')
      .timeout({ seconds: DECODE_SECONDS })
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true });
    return { data, width: info.width, height: info.height };
  } catch (error) {
    throw failureOf(error, bytes, maxPixels);
  }
}

function upright(bytes: Buffer, maxPixels: number): Sharp {
  // `error` refuses truncated data, which half the viewers paint grey, and forgives what `warning` does not: the
  // slightly wrong headers that cameras write.
  return sharp(bytes, { failOn: 'error', limitInputPixels: maxPixels, sequentialRead: true }).autoOrient();
}

function mediaType({ format, compression, space, channels }: Metadata): string {
  // HEIF is a container: what iPhones put into it (HEVC) is recognised by this build but cannot be decoded.
  const decodable = format !== 'heif' || compression === 'av1';
  const type = decodable ? MEDIA_TYPES.get(format) : undefined;
  if (type === undefined) throw new RejectedError('unsupported', `${format} ${compression ?? ''}`.trimEnd());
  // A TIFF may hold any number: depths, masks, infrared. They would come out as channels that nobody expects.
  const extra = channels - (COLOUR_CHANNELS[space] ?? 3);
  if (extra !== 0 && extra !== 1) throw new RejectedError('unsupported', `${format} of ${channels} channels, ${space}`);
  return type;
}
