/** `npm run bench`: ours beside the raw clients, as ratios; and what the event loop feels while faces are embedded. */
import { randomBytes } from 'node:crypto';
import { resolve } from 'node:path';
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { Redis } from 'ioredis';
import sharp from 'sharp';
import { connect } from '../src/app.js';
import { toConfig } from '../src/config.js';
import { migrate } from '../src/db/migrate.js';
import { readPhotograph } from '../src/demo/site.js';
import { createBuiltInEngine } from '../src/faces/builtin.js';
import { decodePixels, processImage } from '../src/images/image.js';
import { unpackFaces } from '../src/kinds/face-codec.js';
import { startLocalStack } from '../src/local/stack.js';
import { compare, type Row } from './compare.js';

const local = resolve('.local');
const folder = `${local}/bench-${randomBytes(4).toString('hex')}`;
await using stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: local });
const config = toConfig({ ...stack.env, LOG_LEVEL: 'warn' });
await migrate(config.postgres, { queueOnPostgres: false });

const rows = [...(await cacheRows()), await imageRow()];
const lag = await embeddingLag();
if (process.argv.includes('--json')) {
  process.stdout.write(`${JSON.stringify({ rows, lag }, null, 2)}\n`);
} else {
  for (const { work, ours, raw, ratio, target, ok } of rows) {
    const figures = `${ours.toFixed(3)} ms ours, ${raw.toFixed(3)} ms raw, ratio ${ratio.toFixed(2)}`;
    process.stdout.write(`${work}: ${figures} (to reach ${target}${ok ? '' : ', missed'})\n`);
  }
  const { images, seconds, p99Ms } = lag;
  process.stdout.write(`embedding: ${(images / seconds).toFixed(2)} images/s, event-loop delay p99 ${p99Ms} ms\n`);
}

async function cacheRows(): Promise<Row[]> {
  const app = connect(config);
  const redis = new Redis(stack.env.REDIS_URL);
  const hash = 'a'.repeat(64);
  const embedding = Array.from({ length: 512 }, (_, i) => Math.fround(Math.sin(i)));
  await app.cache.cacheFaceEmbeddings(hash, 'bench', [{ bbox: [1, 2, 3, 4], det_score: 0.5, embedding }]);
  const [key = ''] = await redis.keys('hc:face_embedding:*');
  const row = await compare({
    work: 'Redis hit in sequence, one face of 512 numbers',
    target: 1.15,
    rounds: 2_000,
    ours: () => app.cache.getCachedFaceEmbeddings(hash, 'bench'),
    raw: async () => unpackFaces((await redis.getBuffer(key)) ?? Buffer.alloc(0)),
  });
  redis.disconnect();
  await app.close();
  return [row];
}

async function imageRow(): Promise<Row> {
  const photograph = await readPhotograph(1);
  return compare({
    work: 'hash, decode, perceptual hash and thumbnail of a photograph, beside a bare thumbnail',
    target: 1.2,
    rounds: 40,
    ours: () => processImage(photograph, { maxPixels: 1e8 }),
    raw: () => sharp(photograph).resize(256, 256, { fit: 'inside' }).jpeg({ quality: 80 }).toBuffer(),
  });
}

async function embeddingLag() {
  const { threads } = config.embedding;
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
  const seconds = (performance.now() - started) / 1000;
  return { threads, images: 2 * pixels.length, seconds, p99Ms: Number((delay.percentile(99) / 1e6).toFixed(1)) };
}
