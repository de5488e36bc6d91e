/** What an image costs before the cache is asked, and what the event loop feels while faces are embedded. */
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import sharp from 'sharp';
import { readPhotograph } from '../src/demo/site.js';
import { createBuiltInEngine } from '../src/faces/builtin.js';
import { decodePixels, processImage } from '../src/images/image.js';
import { sha256 } from '../src/kinds/identity.js';
import { latency, type Row } from './compare.js';

export async function imageRows(threads: number): Promise<Row[]> {
  return [await imageRow(), await embeddingRow(threads)];
}

async function imageRow(): Promise<Row> {
  const photograph = await readPhotograph(1);
  return latency({
    work: 'content hash, decode, perceptual hash and thumbnail of a photograph, beside a bare thumbnail',
    target: 1.2,
    turns: 5,
    ours: () => {
      sha256(photograph);
      return processImage(photograph, { maxPixels: 1e8 });
    },
    raw: () => sharp(photograph).resize(256, 256, { fit: 'inside' }).jpeg({ quality: 80 }).toBuffer(),
  });
}

/** Told, not judged: there is nothing to put beside it. */
async function embeddingRow(threads: number): Promise<Row> {
  await using engine = createBuiltInEngine({ threads });
  const photographs = await Promise.all([1, 2, 3, 4, 5, 6].map(readPhotograph));
  const pixels = await Promise.all(photographs.map((bytes) => decodePixels(bytes, { maxPixels: 1e8 })));
  const embedAll = () => Promise.all(pixels.map(async (image) => engine.embed(image, await engine.detect(image))));
  await embedAll(); // loads the models
  const delay = monitorEventLoopDelay({ resolution: 5 });
  const started = performance.now();
  delay.enable();
  await embedAll();
  await embedAll();
  delay.disable();
  const imagesPerSecond = (2000 * pixels.length) / (performance.now() - started);
  return {
    work: 'event-loop delay while faces are embedded, p99',
    ours: delay.percentile(99) / 1e6,
    raw: null,
    ratio: null,
    target: null,
    ok: true,
    better: 'lower',
    unit: 'ms',
    peers: {},
    also: { imagesPerSecond, threads },
  };
}
