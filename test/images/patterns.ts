/** Test pictures whose every byte is known: integer arithmetic, and cut-outs of the photographs as they are decoded. */
import sharp from 'sharp';
import type { Raster } from '../../src/images/decoder.js';
import { randomBelow, rgbRaster, SAMPLE_PHOTOS, samplePhoto } from '../support/images.js';

export interface Pattern extends Raster {
  readonly name: string;
}

/** Beyond 256 pixels a side an image is reduced before it is hashed. */
const SIZES = [
  [32, 32],
  [64, 48],
  [31, 77],
  [5, 3],
  [256, 171],
  [640, 480],
] as const;

type Level = (x: number, y: number, width: number, height: number) => number;

const DRAWINGS: Readonly<Record<string, Level>> = {
  black: () => 0,
  across: (x, _, width) => Math.floor((255 * x) / width),
  down: (_, y, __, height) => Math.floor((255 * y) / height),
  diagonal: (x, y, width, height) => Math.floor((255 * (x + y)) / (width + height)),
  'checks of 1': (x, y) => 255 * ((x + y) % 2),
  'checks of 7': (x, y) => 255 * ((Math.floor(x / 7) + Math.floor(y / 7)) % 2),
  'checks of 16': (x, y) => 40 + 180 * ((Math.floor(x / 16) + Math.floor(y / 16)) % 2),
  'slanting stripes': (x, y) => (5 * x + 11 * y) % 256,
  'upright stripes': (x) => (x % 5 < 2 ? 255 : 30),
  disc: (x, y, width, height) => 255 * Number((2 * x - width) ** 2 + (2 * y - height) ** 2 < (width * height) / 2),
  'disc in a corner': (x, y, width, height) =>
    255 * Number((4 * x - width) ** 2 + (3 * y - height) ** 2 < width * height),
  rings: (x, y) => ((x - 3) ** 2 + (y - 11) ** 2) % 251,
  'multiplication table': (x, y) => (x * y) % 256,
  'faint checks': (x, y) => 100 + ((Math.floor(x / 2) + Math.floor(y / 2)) % 2),
};

export async function patterns(): Promise<Pattern[]> {
  const photographs = await Promise.all(SAMPLE_PHOTOS.map(cutOuts));
  return [...drawings(), ...noise(), ...photographs.flat()];
}

function drawings(): Pattern[] {
  return Object.entries(DRAWINGS).flatMap(([name, level]) =>
    SIZES.map(([width, height]) => ({
      name: `${name}, ${width} x ${height}`,
      ...rgbRaster(width, height, (x, y) => level(x, y, width, height)),
    })),
  );
}

/** Coarse and fine, so that every frequency is there in some of them. */
function noise(): Pattern[] {
  return [1, 3, 8, 20].flatMap((grain) =>
    SIZES.filter(([, height]) => height > 2 * grain).flatMap(([width, height]) =>
      [1, 2, 3, 4].map((seed) => {
        const random = randomBelow(seed);
        const across = Math.ceil(width / grain);
        const grains = Array.from({ length: across * Math.ceil(height / grain) }, () => random(256));
        const level = (x: number, y: number) =>
          grains[Math.floor(y / grain) * across + Math.floor(x / grain)] as number;
        return { name: `noise ${seed} of ${grain}, ${width} x ${height}`, ...rgbRaster(width, height, level) };
      }),
    ),
  );
}

/** In colour and not resized, so that nothing but the JPEG decoder comes between. */
async function cutOuts(n: (typeof SAMPLE_PHOTOS)[number]): Promise<Pattern[]> {
  const random = randomBelow(n);
  const { data, info } = await sharp(await samplePhoto(n))
    .raw()
    .toBuffer({ resolveWithObject: true });
  const photograph = sharp(data, { raw: { width: info.width, height: info.height, channels: 3 } });
  const sizes = [...Array.from({ length: 12 }, () => [64 + random(193), 64 + random(193)]), [900, 600], [1600, 1000]];
  return Promise.all(
    sizes.map(async ([width = 0, height = 0], i) => {
      const place = { left: random(info.width - width), top: random(info.height - height), width, height };
      return {
        name: `photograph ${n}, cut-out ${i}`,
        data: await photograph.clone().extract(place).toBuffer(),
        width,
        height,
      };
    }),
  );
}
