/** What libvips may not even begin to read, in a process that has loaded the decoder; asked of sharp itself. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import '../../src/images/decoder.js';
import { flatImage } from '../support/images.js';

const SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>';

/** sharp's names of what the decoder takes. */
const TAKEN = ['avif', 'gif', 'jpeg', 'png', 'tiff', 'webp'] as const;

const text = (content: string) => Buffer.from(content, 'latin1');

async function complaint(input: Buffer | string): Promise<string> {
  return sharp(input)
    .metadata()
    .then(
      ({ format }) => `read as ${format}`,
      (error: Error) => error.message,
    );
}

describe('from memory', () => {
  it('nothing but the six formats can be read, of all that this build knows', async () => {
    const inputs = Object.values(sharp.format).filter(({ input }) => input.buffer);
    // Raw pixels have no loader: they are what a caller says they are. A name that is new here wants a decision.
    expect(inputs.map(({ id }) => id).sort()).toEqual(['gif', 'heif', 'jpeg', 'png', 'raw', 'svg', 'tiff', 'webp']);
    for (const format of TAKEN) {
      const image = await sharp(await flatImage(9, 9))
        .toFormat(format)
        .toBuffer();
      expect(await complaint(image)).toBe(`read as ${format === 'avif' ? 'heif' : format}`);
    }
  });

  it.each([
    ['SVG', text(SVG)],
    ['SVG behind a declaration', text(`<?xml version="1.0"?>${SVG}`)],
    ['compressed SVG', gzipSync(SVG)],
    ['PDF', text('%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF')],
    ['PostScript', text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage')],
    ['ImageMagick’s drawing language', text('push graphic-context\nviewbox 0 0 9 9\nfill url(file:///etc/passwd)')],
    ['ImageMagick’s scripts', text('<?xml version="1.0"?><image><read filename="/etc/passwd"/></image>')],
    ['ImageMagick’s own format', text('id=ImageMagick  version=1.0\ncolumns=1  rows=1  depth=8\n\f\n:\x1a\0\0\0')],
    ['XPM', text('/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000000", "a"};')],
    ['BMP', Buffer.from('424d3a0000000000000036000000280000000100000001000000010018', 'hex')],
    ['Targa', Buffer.from('000002000000000000000000010001001800000000', 'hex')],
    ['PSD', text(`8BPS\0\x01${'\0'.repeat(6)}\0\x03\0\0\0\x01\0\0\0\x01\0\x08\0\x03`)],
    ['Netpbm', text('P6 1 1 255\nabc')],
    ['FITS', text(`${'SIMPLE  =                    T'.padEnd(80)}${'END'.padEnd(80)}`)],
    ['Radiance', text('#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\nabcd')],
    ['OpenEXR', Buffer.from('762f310102000000', 'hex')],
    ['JPEG 2000', Buffer.from('0000000c6a5020200d0a870a', 'hex')],
    ['JPEG XL', Buffer.from('ff0a', 'hex')],
    ['Matlab', text('MATLAB 5.0 MAT-file')],
    ['a table of numbers', text('2 2\n1 2\n3 4\n')],
  ])('%s meets no loader', async (_, bytes) => {
    expect(await complaint(bytes)).toBe('Input buffer contains unsupported image format');
  });
});

describe('from files', () => {
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'hc-loaders-'));
  });

  afterAll(() => rm(folder, { recursive: true, force: true }));

  it.each([...TAKEN, 'v'] as const)('%s cannot be read, though this build would', async (format) => {
    const file = join(folder, `image.${format}`);
    await sharp(await flatImage(9, 9)).toFile(file);
    expect(await complaint(file)).toBe('Input file contains unsupported image format');
  });

  it('SVG cannot be read', async () => {
    const file = join(folder, 'image.svg');
    await writeFile(file, SVG);
    expect(await complaint(file)).toBe('Input file contains unsupported image format');
  });
});

it('keeps no image in memory when it is done, and gives each one thread', () => {
  expect(sharp.cache()).toMatchObject({ memory: { max: 0 }, files: { max: 0 }, items: { max: 0 } });
  expect(sharp.concurrency()).toBe(1);
});
