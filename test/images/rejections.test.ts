import { crc32, gzipSync } from 'node:zlib';
import sharp from 'sharp';
import { describe, expect, it } from 'vitest';
import { RejectedError, RetryableError } from '../../src/errors.js';
import { processImage } from '../../src/images/image.js';
import { failureOf } from '../../src/images/reject.js';
import { claimingSize, flatImage, resized, samplePhoto } from '../support/images.js';

const LIMITS = { maxPixels: 100_000_000 };

const text = (content: string) => Buffer.from(content);
const whole = samplePhoto(2).then((image) => resized(image, 0.25));

async function rejection(bytes: Buffer, limits = LIMITS): Promise<RejectedError> {
  const error = await processImage(bytes, limits).then(
    () => new Error('was accepted'),
    (raised: unknown) => raised,
  );
  expect(error).toBeInstanceOf(RejectedError);
  return error as RejectedError;
}

describe('bytes that are no image', () => {
  it.each([
    ['no bytes at all', Buffer.alloc(0)],
    ['one byte', Buffer.from([0xff])],
    ['text', text('hello')],
    ['zeros', Buffer.alloc(1000)],
    ['a page that a server names photo.jpg', text('<!doctype html><html><body><h1>404</h1></body></html>')],
    ['a page with a drawing in it', text('<!doctype html><html><svg xmlns="http://www.w3.org/2000/svg"/></html>')],
    ['a page of unclosed comments', text('<!--'.repeat(50_000))],
    ['a page behind many blank lines', text(`${'\n'.repeat(4_000)}<!doctype html>`)],
    ['a page of half a document type', text(`<!DOCTYPE svg ${'[]'.repeat(2_000)}`)],
    ['JSON', text('{"error":"not found"}')],
    ['a compressed drawing, which is not looked into', gzipSync('<svg xmlns="http://www.w3.org/2000/svg"/>')],
  ])('%s', async (_, bytes) => {
    expect((await rejection(bytes)).reason).toBe('not-an-image');
  });
});

describe('images of formats that are not taken', () => {
  it.each([
    ['SVG', text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')],
    ['SVG', text('<?xml version="1.0"?>\n<!-- by hand -->\n<!DOCTYPE svg [<!ENTITY x "y">]>\n<svg width="9"/>')],
    ['PDF', text('%PDF-1.7\n')],
    ['BMP', Buffer.from('424d46000000000000003600000028000000', 'hex')],
    ['HEIC', Buffer.from('000000186674797068656963000000006d69663168656963', 'hex')],
    ['JPEG XL', Buffer.from('ff0a', 'hex')],
    ['Netpbm', text('P6 1 1 255\n...')],
  ])('%s is named', async (name, bytes) => {
    expect(await rejection(bytes)).toMatchObject({ reason: 'unsupported', detail: name });
  });
});

describe('TIFFs that hold more than a picture', () => {
  const cmyk = flatImage(8, 6).then((image) => sharp(image).toColourspace('cmyk').tiff().toBuffer());
  const grey = flatImage(8, 6).then((image) => sharp(image).toColourspace('b-w').tiff().toBuffer());
  const [BITS, PHOTOMETRIC, CHANNELS] = [258, 262, 277];

  it('are taken with the channels of their colours', async () => {
    expect(await processImage(await cmyk, LIMITS)).toMatchObject({ mimeType: 'image/tiff', width: 8, height: 6 });
    expect(await processImage(await grey, LIMITS)).toMatchObject({ mimeType: 'image/tiff', width: 8, height: 6 });
  });

  it('are refused with channels that no colour has', async () => {
    const refused = { reason: 'unsupported', detail: 'tiff of 4 channels, b-w' };
    expect(await rejection(saying(await cmyk, PHOTOMETRIC, 1))).toMatchObject(refused);
  });

  it.each([
    ['ten channels', CHANNELS, 10, 'Input image exceeds channel limit'],
    ['samples of 12 bits', BITS, 12, 'tiff2vips: samples_per_pixel not a whole number of bytes'],
    ['samples of 64 bits', BITS, 64, 'tiff2vips: samples out of range'],
  ])('are refused with %s', async (_, tag, value, detail) => {
    expect(await rejection(saying(await grey, tag, value))).toMatchObject({ reason: 'unsupported', detail });
  });

  /** The same TIFF, whose directory now says `value` (TIFF 6.0, section 2: entries of 12 bytes, sorted by tag). */
  function saying(tiff: Buffer, tag: number, value: number): Buffer {
    const lie = Buffer.from(tiff);
    const directory = lie.readUInt32LE(4);
    const entries = Array.from({ length: lie.readUInt16LE(directory) }, (_, i) => directory + 2 + 12 * i);
    lie.writeUInt16LE(value, entries.find((at) => lie.readUInt16LE(at) === tag)! + 8);
    return lie;
  }
});

describe('damaged images', () => {
  it.each([1, 5, 20, 50, 80, 95, 99])('a JPEG cut off at %i %% is corrupt', async (percent) => {
    const image = await whole;
    const cut = image.subarray(0, Math.ceil((image.length * percent) / 100));
    expect((await rejection(cut)).reason).toBe('corrupt');
  });

  it.each(['png', 'webp', 'gif', 'avif', 'tiff'] as const)('half a %s is corrupt', async (format) => {
    const image = await sharp(await whole)
      .toFormat(format)
      .toBuffer();
    expect((await rejection(image.subarray(0, image.length / 2))).reason).toBe('corrupt');
  });

  it('keeps what the decoder said', async () => {
    const error = await rejection((await whole).subarray(0, 3000));
    expect(error.detail).toBe('VipsJpeg: premature end of JPEG image');
    expect(error.cause).toBeInstanceOf(Error);
  });
});

describe('images with too many pixels', () => {
  it('are refused by their header, with the size', async () => {
    const error = await rejection(claimingSize(await whole, 20_000, 10_000));
    expect(error).toMatchObject({ reason: 'too-large', detail: '20000 x 10000 pixels, at most 100000000' });
  });

  it('are refused at the format’s own maximum, which libjpeg does not even open', async () => {
    const error = await rejection(claimingSize(await whole, 65_535, 65_535));
    expect(error).toMatchObject({ reason: 'too-large', detail: '65535 x 65535 pixels, at most 100000000' });
  });

  it('are refused as PNG, before any data', async () => {
    expect(await rejection(pngHeader(65_535, 65_535))).toMatchObject({
      reason: 'too-large',
      detail: '65535 x 65535 pixels, at most 100000000',
    });
  });

  it('are refused with a longer side than any camera, phone or scanner makes', async () => {
    await processImage(await flatImage(65_535, 1), LIMITS);
    const error = await rejection(await flatImage(65_536, 1));
    expect(error).toMatchObject({ reason: 'too-large', detail: '65536 x 1 pixels, at most 65535 a side' });
    expect((await rejection(await flatImage(1, 65_536))).reason).toBe('too-large');
  });

  it('are those above the limit, not those at it', async () => {
    const image = await whole;
    const { width, height } = await sharp(image).metadata();
    await processImage(image, { maxPixels: width * height });
    expect((await rejection(image, { maxPixels: width * height - 1 })).reason).toBe('too-large');
  });
});

describe('failures that are not the image’s fault', () => {
  it.each([
    ['timeout', 'timeout: 42% complete'],
    ['internal', 'VipsImage: out of memory --- size == 48MB'],
  ])('%s is worth another attempt', (reason, message) => {
    const error = failureOf(new Error(message), Buffer.alloc(0), LIMITS.maxPixels);
    expect(error).toBeInstanceOf(RetryableError);
    expect(error.reason).toBe(reason);
  });
});

/** The PNG signature and an IHDR chunk (8-bit RGB) with its right checksum, then the start of an IDAT. */
function pngHeader(width: number, height: number): Buffer {
  const chunk = Buffer.alloc(17);
  chunk.write('IHDR');
  chunk.writeUInt32BE(width, 4);
  chunk.writeUInt32BE(height, 8);
  chunk.set([8, 2], 12);
  const crc = Buffer.alloc(4);
  crc.writeUInt32BE(crc32(chunk));
  return Buffer.concat([
    Buffer.from('89504e470d0a1a0a0000000d', 'hex'),
    chunk,
    crc,
    Buffer.from('0000000049444154', 'hex'),
  ]);
}
