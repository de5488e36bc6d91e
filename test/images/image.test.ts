import sharp, { type Sharp } from 'sharp';
import { describe, expect, it } from 'vitest';
import { decodePixels, processImage } from '../../src/images/image.js';
import { flatImage, hammingDistance, resized, rgbImage, samplePhoto, storedIn } from '../support/images.js';
import { ENCODINGS } from './samples.js';

const LIMITS = { maxPixels: 100_000_000 };

/** ITU-R 601, as libvips and Pillow make a picture grey. */
const LUMA = [0.299, 0.587, 0.114];

/** A photograph of 480 x 320, so that the slow encoders stay quick. */
const photo = samplePhoto(1).then((image) => resized(image, 0.25));

/** One of 480 x 338, which ink can show: dark colours are the same to it. */
const bright = samplePhoto(3).then((image) => resized(image, 0.25));

describe('processImage', () => {
  it.each(Object.entries(ENCODINGS))('sees the same picture in a %s', async (name, encode) => {
    const image = await encode(sharp(await bright)).toBuffer();
    const [reference, processed] = [await processImage(await bright, LIMITS), await processImage(image, LIMITS)];
    expect(processed).toMatchObject({ mimeType: `image/${name.split(',')[0]}`, width: 480, height: 338 });
    expect(hammingDistance(processed.phash, reference.phash)).toBeLessThanOrEqual(2);
    expect(await sharp(processed.thumbnail).metadata()).toMatchObject({ space: 'srgb', channels: 3, depth: 'uchar' });
    const rgb = await colour(reference.thumbnail);
    const luma = LUMA.reduce((sum, weight, i) => sum + weight * rgb[i]!, 0);
    const expected = rgb.map((level) => {
      if (name.includes('grey')) return luma;
      return name.includes('alpha') ? (level + 255) / 2 : level;
    });
    const off = (await colour(processed.thumbnail)).map((level, i) => Math.abs(level - expected[i]!));
    // What ink cannot show is nearly 14 levels in the mean; an inverted picture is off by 56.
    expect(Math.max(...off)).toBeLessThan(name.includes('CMYK') ? 15 : 4);
  });

  it('gives a thumbnail of 256 pixels that carries no metadata, in sRGB', async () => {
    const tagged = await sharp(await photo)
      .withIccProfile('p3')
      .withExifMerge({ IFD0: { Copyright: 'somebody' }, IFD3: { GPSLatitudeRef: 'N' } })
      .toBuffer();
    expect(await sharp(tagged).metadata()).toMatchObject({ exif: expect.any(Buffer), icc: expect.any(Buffer) });
    const thumbnail = await sharp((await processImage(tagged, LIMITS)).thumbnail).metadata();
    expect(thumbnail).toMatchObject({ format: 'jpeg', width: 256, height: 171, space: 'srgb', channels: 3 });
    expect([thumbnail.exif, thumbnail.icc, thumbnail.xmp, thumbnail.iptc]).toEqual(Array(4).fill(undefined));
  });

  it('applies an embedded profile: Display P3 gives the colours of sRGB', async () => {
    const wide = await sharp(await flatImage(64, 64, '#c04020'))
      .withIccProfile('p3')
      .png()
      .toBuffer();
    const [red, green, blue] = (await decodePixels(wide, LIMITS)).data;
    expect([red, green, blue].map((value, i) => Math.abs((value ?? 0) - [0xc0, 0x40, 0x20][i]!) <= 3)).toEqual(
      Array(3).fill(true),
    );
  });

  it('gives the same thumbnail for the same bytes', async () => {
    const [a, b] = await Promise.all([processImage(await photo, LIMITS), processImage(await photo, LIMITS)]);
    expect(a.thumbnail.equals(b.thumbnail)).toBe(true);
  });

  it('reads a fax, of one bit a pixel', async () => {
    const halves = await rgbImage(40, 20, (x) => (x < 20 ? 0 : 255));
    const fax = await sharp(halves).toColourspace('b-w').tiff({ compression: 'ccittfax4', bitdepth: 1 }).toBuffer();
    expect((await sharp(fax).metadata()).bitsPerSample).toBe(1);
    expect(await decodePixels(fax, LIMITS)).toEqual(await decodePixels(halves, LIMITS));
  });

  it.each([
    ['PNG', (image: Sharp) => image.png()],
    ['PNG of 16 bits', (image: Sharp) => image.toColourspace('rgb16').png()],
    ['PNG in grey', (image: Sharp) => image.toColourspace('b-w').png()],
    ['PNG with a palette', (image: Sharp) => image.png({ palette: true })],
    ['WebP', (image: Sharp) => image.webp()],
    ['GIF', (image: Sharp) => image.gif()],
    ['AVIF', (image: Sharp) => image.avif()],
  ])('puts the transparency of a %s on white', async (_, encode) => {
    const black = sharp({ create: { width: 20, height: 20, channels: 4, background: '#00000000' } });
    const clear = await encode(black).toBuffer();
    expect((await sharp(clear).metadata()).hasAlpha).toBe(true);
    const { data } = await decodePixels(clear, LIMITS);
    expect(data.every((value) => value === 255)).toBe(true);
  });

  it.each(['gif', 'webp'] as const)('takes the first frame of a moving %s', async (format) => {
    const frames = await Promise.all(['#ff0000', '#00ff00'].map((colour) => flatImage(32, 24, colour)));
    const animated = await sharp(frames, { join: { animated: true } })
      .toFormat(format, { lossless: true })
      .toBuffer();
    expect((await sharp(animated).metadata()).pages).toBe(2);
    expect(await processImage(animated, LIMITS)).toMatchObject({ mimeType: `image/${format}`, width: 32, height: 24 });
    const { data } = await decodePixels(animated, LIMITS);
    expect([...data.subarray(0, 3)]).toEqual([255, 0, 0]);
  });

  it.each([
    [1, 1],
    [1, 3000],
    [1, 60_000],
    [60_000, 1],
    [20, 10],
  ])('takes %i x %i pixels and does not enlarge', async (width, height) => {
    for (const format of ['png', 'jpeg', 'gif', 'tiff'] as const) {
      const image = await sharp(await flatImage(width, height))
        .toFormat(format)
        .toBuffer();
      const { thumbnail, ...facts } = await processImage(image, LIMITS);
      expect(facts).toMatchObject({ mimeType: `image/${format}`, width, height });
      const size = { width: Math.min(width, 256), height: Math.min(height, 256) };
      expect(await sharp(thumbnail).metadata()).toMatchObject(size);
      expect((await colour(thumbnail)).map(Math.round)).toEqual([0x40, 0x80, 0xc0]);
    }
  });
});

describe('decodePixels', () => {
  it('gives RGB at the wanted size, and the scale back to the upright image', async () => {
    const sideways = await storedIn(6, await photo);
    const pixels = await decodePixels(sideways, { ...LIMITS, maxSide: 240 });
    expect(pixels).toMatchObject({ width: 240, height: 160, scale: 2 });
    expect(pixels.data).toHaveLength(240 * 160 * 3);
  });

  it('looks for faces at no more than 1,600 pixels', async () => {
    const pixels = await decodePixels(await samplePhoto(1), LIMITS);
    expect(pixels).toMatchObject({ width: 1600, height: 1067, scale: 1.2 });
  });

  it('leaves small images alone', async () => {
    expect(await decodePixels(await photo, LIMITS)).toMatchObject({ width: 480, height: 320, scale: 1 });
  });
});

/** The mean of each channel. */
async function colour(image: Buffer): Promise<number[]> {
  const { channels } = await sharp(image).stats();
  return channels.map(({ mean }) => mean);
}
