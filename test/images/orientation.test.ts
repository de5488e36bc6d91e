/** A picture is one picture, however the camera was held: for the thumbnail, the hash and whoever looks for faces. */
import sharp, { type Sharp } from 'sharp';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { Pixels } from '../../src/faces/engine.js';
import { decodePixels, processImage } from '../../src/images/image.js';
import { startWorkers } from '../../workers/start.js';
import { crawled, idle } from '../support/crawl-run.js';
import { hammingDistance, ORIENTATIONS, samplePhoto, storedIn } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { startSite } from '../support/site.js';
import { createWorld } from '../support/world.js';

const LIMITS = { maxPixels: 100_000_000 };

const LOSSLESS: Readonly<Record<string, (picture: Sharp) => Sharp>> = {
  png: (picture) => picture.png(),
  webp: (picture) => picture.webp({ lossless: true }),
  tiff: (picture) => picture.tiff({ compression: 'deflate' }),
  avif: (picture) => picture.avif({ lossless: true }),
};

/** Nothing is reduced; a JPEG of whole blocks, which are reduced alike from each side. */
const small = scaled(200, 140);
const large = scaled(2048, 1408);

async function scaled(width: number, height: number): Promise<Buffer> {
  return sharp(await samplePhoto(3))
    .resize(width, height)
    .png()
    .toBuffer();
}

describe.each(ORIENTATIONS)('EXIF orientation %i', (orientation) => {
  it.each(Object.entries(LOSSLESS))('gives the very same thumbnail, hash and pixels as %s', async (_, encode) => {
    const upright = await small;
    const stored = await storedIn(orientation, upright, encode);
    const { mimeType: _type, ...expected } = await processImage(upright, LIMITS);
    expect(await processImage(stored, LIMITS)).toMatchObject({ ...expected, width: 200, height: 140 });
    expect(await decodePixels(stored, LIMITS)).toEqual(await decodePixels(upright, LIMITS));
  });

  it('gives the same thumbnail and hash where the decoder reduces', async () => {
    const upright = await processImage(await storedIn(1, await large), LIMITS);
    const processed = await processImage(await storedIn(orientation, await large), LIMITS);
    expect(processed).toMatchObject({ width: 2048, height: 1408 });
    expect(await sharp(processed.thumbnail).metadata()).toMatchObject({ width: 256, height: 176 });
    // 1.4 levels at most; a picture that is turned or mirrored differs by more than 70.
    expect(await meanDifference(processed.thumbnail, upright.thumbnail)).toBeLessThan(2);
    expect(hammingDistance(processed.phash, upright.phash)).toBeLessThanOrEqual(2);
  });

  it('says how far the pixels for faces are reduced along the upright sides', async () => {
    const pixels = await decodePixels(await storedIn(orientation, await large), LIMITS);
    expect(pixels).toMatchObject({ width: 1600, height: 1100, scale: 1.28 });
  });
});

it('hands the face engine upright pixels in all eight orientations', async () => {
  await using world = await createWorld();
  const site = await startSite();
  onTestFinished(() => site.close());
  const engine = new WitnessEngine();
  const app = world.app({ FETCH_ALLOW: `127.0.0.1/32:${site.port}` }, { engine });
  const workers = startWorkers(app, ['crawl', 'embedding']);
  onTestFinished(() => workers.stop(5_000));
  const upright = await small;
  for (const orientation of ORIENTATIONS) {
    const body = await storedIn(orientation, upright, LOSSLESS.png);
    await crawled(app, 'acme', site.put(`/held-in-${orientation}.png`, { body, type: 'image/png' }));
  }
  await idle(app, 'embedding');
  const expected = await decodePixels(upright, LIMITS);
  expect(engine.seen).toEqual(ORIENTATIONS.map(() => expected));
});

/** Keeps what it was given to look at. */
class WitnessEngine extends PuppetEngine {
  readonly seen: Pixels[] = [];

  override detect(image: Pixels) {
    this.seen.push(image);
    return super.detect(image);
  }
}

async function meanDifference(a: Buffer, b: Buffer): Promise<number> {
  const [mine, other] = await Promise.all([a, b].map((image) => sharp(image).raw().toBuffer()));
  expect(mine).toHaveLength(other!.length);
  return mine!.reduce((sum, level, i) => sum + Math.abs(level - other![i]!), 0) / mine!.length;
}
