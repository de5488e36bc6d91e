/** Says what is wrong with bytes that could not be decoded, in the service's own words. */
import { RejectedError, RetryableError, reasonOf } from '../errors.js';

/** How much of the beginning is looked at; an SVG's root element follows its comments and its DOCTYPE. */
const HEAD_BYTES = 4096;

/** First bytes of the formats we take: bytes that begin so and cannot be read are damaged. */
const TAKEN: readonly RegExp[] = [
  /^\xff\xd8/, // JPEG
  /^\x89PNG/,
  /^RIFF[^]{4}WEBP/,
  /^GIF8[79]a/,
  /^(?:II[*+]\0|MM\0[*+])/, // TIFF and BigTIFF
  /^[^]{4}ftypavi[fs]/,
];

/** First bytes of images that we do not take, with the name for the rejection's detail. */
const FOREIGN: readonly [name: string, signature: RegExp][] = [
  ['PDF', /^%PDF-/],
  ['PostScript', /^%!PS/],
  ['BMP', /^BM[^]{4}\0\0\0\0/],
  ['ICO', /^\0\0[\x01\x02]\0[^\0]\0?/],
  ['PSD', /^8BPS/],
  ['JPEG 2000', /^(?:\0\0\0\x0cjP {2}\r\n|\xff\x4f\xff\x51)/],
  ['JPEG XL', /^(?:\xff\x0a|\0\0\0\x0cJXL )/],
  ['HEIC', /^[^]{4}ftyp(?:hei[cmsx]|hev[cmsx])/],
  ['Netpbm', /^P[1-7]\s/],
  ['Radiance', /^#\?(?:RADIANCE|RGBE)/],
  ['OpenEXR', /^v\/1\x01/],
  ['FITS', /^SIMPLE {2}=/],
  ['DDS', /^DDS /],
  ['XCF', /^gimp xcf/],
  ['DjVu', /^AT&TFORM/],
  // Each alternative ends at its first closing mark and no two can match the same text, so that no page, however made,
  // takes more than linear time: `\s+` in the place of `\s` let 28 blank lines hold up a worker for minutes.
  [
    'SVG',
    /^(?:\xef\xbb\xbf)?(?:\s|<\?(?:(?!\?>)[^])*\?>|<!--(?:(?!-->)[^])*-->|<!DOCTYPE\s+svg[^>[]*(?:\[[^\]]*\]\s*)?>)*<(?:\w+:)?svg[\s>]/i,
  ],
];

/** What decoders say when the size alone is too much for them, whatever our own limit is. */
const SIZE_COMPLAINT = /Maximum supported image dimension|exceeds (?:pixel|user) limit|too large|security limit/i;

/** What the TIFF loader says of sound files that hold what no other format can: complex numbers, 64 bits, ten channels. */
const UNTAKEN_SAMPLES = /channel limit|samples out of range|not a whole number of bytes|unsupported tiff image type/;

/**
 * The error to raise for what sharp raised: a lasting fact about the image, or `RetryableError` where this machine
 * was the cause. The decoder's own error is kept as the cause.
 */
export function failureOf(error: unknown, bytes: Buffer, maxPixels: number): RejectedError | RetryableError {
  if (error instanceof RejectedError) return error;
  const said = complaintOf(error);
  if (/^timeout/.test(said)) return new RetryableError('timeout', 'decoding took too long', { cause: error });
  if (/out of memory|bad_alloc/i.test(said)) return new RetryableError('internal', said, { cause: error });
  if (SIZE_COMPLAINT.test(said)) return tooManyPixels(...jpegSize(bytes), maxPixels, { cause: error });
  return rejectionOf(said, bytes.subarray(0, HEAD_BYTES).toString('latin1'), error);
}

/** The rejection of an image that says it is `width` by `height` pixels; 0 stands for "could not be read". */
export function tooManyPixels(width: number, height: number, maxPixels: number, options?: ErrorOptions): RejectedError {
  const size = width > 0 ? `${width} x ${height} pixels` : 'more pixels than its decoder takes';
  return new RejectedError('too-large', `${size}, at most ${maxPixels}`, options);
}

/** The rejection of an image with a side of more than `most` pixels. */
export function tooLong(width: number, height: number, most: number): RejectedError {
  return new RejectedError('too-large', `${width} x ${height} pixels, at most ${most} a side`);
}

function rejectionOf(said: string, head: string, cause: unknown): RejectedError {
  const foreign = FOREIGN.find(([, signature]) => signature.test(head));
  if (foreign) return new RejectedError('unsupported', foreign[0], { cause });
  if (UNTAKEN_SAMPLES.test(said)) return new RejectedError('unsupported', said, { cause });
  // libvips's own word for what none of its allowed loaders knows; an empty buffer does not even get that far.
  if (!/unsupported image format|is empty/.test(said)) return new RejectedError('corrupt', said, { cause });
  // A TIFF has its directory at the end, so that a truncated one is not recognised at all.
  if (TAKEN.some((signature) => signature.test(head))) return new RejectedError('corrupt', 'truncated', { cause });
  return new RejectedError('not-an-image', head.length === 0 ? 'no bytes' : 'no known image signature', { cause });
}

/** libvips repeats its complaint once for every attempt; the AVIF loader lists its seeks first. */
function complaintOf(error: unknown): string {
  const text = reasonOf(error).replace(/^Input buffer has corrupt header: */, '');
  return text.split('\n').find((line) => line.trim() !== '' && !line.startsWith('source: ')) ?? 'broken header';
}

/**
 * Width and height from a JPEG's frame header, `[0, 0]` where there is none. Needed only beyond 65,500 pixels a side,
 * where libjpeg does not tell. (ITU-T T.81, B.1.1.4 and B.2.2: markers SOF0 to SOF15 but DHT, JPG and DAC.)
 */
function jpegSize(bytes: Buffer): [width: number, height: number] {
  let at = 2;
  while (bytes.readUInt16BE(0) === 0xffd8 && at + 9 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1] ?? 0;
    const frame = marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;
    if (frame) return [bytes.readUInt16BE(at + 7), bytes.readUInt16BE(at + 5)];
    at += 2 + bytes.readUInt16BE(at + 2);
  }
  return [0, 0];
}
