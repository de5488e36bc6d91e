/** Ways of encoding a picture that the decoder takes; a name begins with the format. */
import sharp, { type Sharp } from 'sharp';
import { resized, samplePhoto } from '../support/images.js';

export interface Sample {
  readonly name: string;
  readonly bytes: Buffer;
}

export const ENCODINGS: Readonly<Record<string, (picture: Sharp) => Sharp>> = {
  jpeg: (picture) => picture.jpeg(),
  'jpeg, progressive': (picture) => picture.jpeg({ progressive: true }),
  'jpeg, grey': (picture) => picture.greyscale().jpeg(),
  'jpeg, CMYK': (picture) => picture.toColourspace('cmyk').jpeg(),
  'jpeg, EXIF and profile': (picture) =>
    picture
      .withExif({ IFD0: { Copyright: 'somebody' } })
      .withIccProfile('p3')
      .jpeg(),
  png: (picture) => picture.png(),
  'png, interlaced': (picture) => picture.png({ progressive: true }),
  'png, 16 bits': (picture) => picture.toColourspace('rgb16').png(),
  'png, palette': (picture) => picture.png({ palette: true, colours: 16 }),
  'png, alpha': (picture) => picture.ensureAlpha(0.5).png(),
  'png, grey': (picture) => picture.greyscale().png(),
  webp: (picture) => picture.webp(),
  'webp, lossless': (picture) => picture.webp({ lossless: true }),
  'webp, alpha': (picture) => picture.ensureAlpha(0.5).webp(),
  gif: (picture) => picture.gif(),
  'gif, interlaced': (picture) => picture.gif({ progressive: true }),
  avif: (picture) => picture.avif(),
  'avif, 10 bits': (picture) => picture.avif({ bitdepth: 10 }),
  'avif, alpha': (picture) => picture.ensureAlpha(0.5).avif(),
  'tiff, bare': (picture) => picture.tiff({ compression: 'none' }),
  'tiff, LZW': (picture) => picture.tiff({ compression: 'lzw', predictor: 'horizontal' }),
  'tiff, deflate': (picture) => picture.tiff({ compression: 'deflate' }),
  'tiff, JPEG': (picture) => picture.tiff({ compression: 'jpeg' }),
  'tiff, tiles': (picture) => picture.tiff({ compression: 'packbits', tile: true, tileWidth: 16, tileHeight: 16 }),
  'tiff, pyramid': (picture) => picture.tiff({ pyramid: true, tile: true, tileWidth: 16, tileHeight: 16 }),
  'tiff, big': (picture) => picture.tiff({ bigtiff: true }),
};

/** The same picture in each of them, two thirds as high as wide. */
export async function samples(width: number): Promise<Sample[]> {
  const picture = await resized(await samplePhoto(1), width / 1920);
  const encoded = Object.entries(ENCODINGS).map(async ([name, encode]) => ({
    name,
    bytes: await encode(sharp(picture)).toBuffer(),
  }));
  return Promise.all(encoded);
}
