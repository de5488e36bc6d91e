import sharp, { type Sharp } from 'sharp';
import { describe, expect, it } from 'vitest';
import { decodePixels, processImage } from '../../src/images/image.js';
import { hammingDistance } from '../../src/images/phash.js';
import { flatImage, resized, samplePhoto } from '../support/images.js';

const LIMITS = { maxPixels: 100_000_000 };

/** A photograph of 480 x 320, so that the slow encoders stay quick. */
const photo = samplePhoto(1).then((image) => resized(image, 0.25));

describe('processImage', () => {
  it.each([
    ['jpeg', 'image/jpeg'],
    ['png', 'image/png'],
    ['webp', 'image/webp'],
    ['gif', 'image/gif'],
    ['avif', 'image/avif'],
    ['tiff', 'image/tiff'],
  ] as const)('takes %s and names it by content', async (format, mimeType) => {
    const reference = await processImage(await photo, LIMITS);
    const image = await sharp(await photo)
      .toFormat(format)
      .toBuffer();
    const processed = await processImage(image, LIMITS);
    expect(processed).toMatchObject({ mimeType, width: 480, height: 320 });
    expect(hammingDistance(processed.phash, reference.phash)).toBeLessThanOrEqual(2);
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

  it.each([1, 2, 3, 4, 5, 6, 7, 8])('turns EXIF orientation %i upright', async (orientation) => {
    const upright = await processImage(await photo, LIMITS);
    const processed = await processImage(await stored(await photo, orientation), LIMITS);
    expect(processed).toMatchObject({ width: 480, height: 320 });
    expect(await sharp(processed.thumbnail).metadata()).toMatchObject({ width: 256, height: 171 });
    expect(hammingDistance(processed.phash, upright.phash)).toBeLessThanOrEqual(2);
  });

  it.each([
    ['grey', (image: Sharp) => image.greyscale().png()],
    ['16 bits a channel', (image: Sharp) => image.toColourspace('rgb16').png()],
    ['a palette', (image: Sharp) => image.png({ palette: true })],
    ['CMYK', (image: Sharp) => image.toColourspace('cmyk').jpeg()],
    ['progressive', (image: Sharp) => image.jpeg({ progressive: true })],
  ])('gives an ordinary thumbnail for an image in %s', async (_, convert) => {
    const { thumbnail } = await processImage(await convert(sharp(await photo)).toBuffer(), LIMITS);
    expect(await sharp(thumbnail).metadata()).toMatchObject({ space: 'srgb', channels: 3, depth: 'uchar' });
  });

  it('puts transparency on white', async () => {
    const clear = await sharp({ create: { width: 20, height: 20, channels: 4, background: '#00000000' } })
      .png()
      .toBuffer();
    const { data } = await decodePixels(clear, LIMITS);
    expect(data.every((value) => value === 255)).toBe(true);
  });

  it('takes the first frame of an animation', async () => {
    const frames = await Promise.all(['#ff0000', '#00ff00'].map((colour) => flatImage(32, 24, colour)));
    const animated = await sharp(frames, { join: { animated: true } })
      .gif()
      .toBuffer();
    expect(await processImage(animated, LIMITS)).toMatchObject({ mimeType: 'image/gif', width: 32, height: 24 });
    const { data } = await decodePixels(animated, LIMITS);
    expect([...data.subarray(0, 3)]).toEqual([255, 0, 0]);
  });

  it.each([
    [1, 1],
    [1, 3000],
    [20, 10],
  ])('takes %i x %i pixels and does not enlarge', async (width, height) => {
    const { thumbnail, ...facts } = await processImage(await flatImage(width, height), LIMITS);
    expect(facts).toMatchObject({ width, height });
    expect(await sharp(thumbnail).metadata()).toMatchObject({ width, height: Math.min(height, 256) });
  });
});

describe('decodePixels', () => {
  it('gives RGB at the wanted size, and the scale back to the upright image', async () => {
    const sideways = await stored(await photo, 6);
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

/** The picture as a camera held in orientation 1 to 8 stores it: turned, with the tag that turns it back. */
async function stored(image: Buffer, orientation: number): Promise<Buffer> {
  // EXIF 2.32, tag 0x0112: how the stored picture came from the upright one. sharp mirrors first, then rotates.
  const turns: Record<number, [mirror: boolean, degrees: number]> = {
    1: [false, 0],
    2: [true, 0],
    3: [false, 180],
    4: [true, 180],
    5: [true, 270],
    6: [false, 270],
    7: [true, 90],
    8: [false, 90],
  };
  const [mirror, degrees] = turns[orientation] as [boolean, number];
  const turned = await sharp(image).flop(mirror).png().toBuffer();
  return sharp(turned).rotate(degrees).withMetadata({ orientation }).jpeg({ quality: 90 }).toBuffer();
}
