/**
 * What an image takes and what a process does, for docs/sizing.md: here the bytes in both tiers, in `sizing-work.ts` images
 * and faces a second. It takes many minutes, so it runs only when asked for: `npm run bench -- sizing --images=100000`.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { type App, connect } from '../src/app.js';
import { type Entry, entry } from '../src/cache/tier.js';
import { crawlContents, crawlUrls } from '../src/kinds/crawl.js';
import { type FaceDetection, faceDetections, faceEmbeddings } from '../src/kinds/faces.js';
import { sha256 } from '../src/kinds/identity.js';
import { BUILT_IN_MODELS } from '../src/kinds/models.js';
import { perceptualHashes } from '../src/kinds/perceptual-hash.js';
import type { LocalStack } from '../src/local/stack.js';
import { createLogger } from '../src/logger.js';
import { parseInfo } from '../src/redis-info.js';
import { rawKey, thumbnailKey } from '../src/storage/object-store.js';
import { type Row, timed } from './compare.js';
import { enqueue, newDatabase, startBench, sum, told, workRows } from './sizing-work.js';

const TENANT = 'sizing';
/** Rows of one statement, and so what the trigger of the near-duplicate index sees at once. */
const BATCH = 20_000;
/** Entries of one write to Redis. */
const AT_ONCE = 500;
const JOBS = 10_000;

const JOB_ID = '0a8e7d1c-51a3-4b7e-9a34-9f8f4a3c1f7d';
/** A face as the built-in engine tells it, less its vector. */
const FACE: FaceDetection = {
  bbox: [413.76, 354.77, 591.54, 593.73],
  det_score: 0.995415985584259,
  kps: [438.01, 511.93, 458.19, 447.38, 515.06].map((x) => [x, 456.25]),
  mouth: [474.94, 545],
};
const EMBEDDING = { ...FACE, embedding: Array.from({ length: 128 }, (_, i) => Math.fround(Math.sin(i) / 10)) };

/** Servers are the bench's own; the numbers of images are those that PostgreSQL and Redis are looked at with. */
export async function sizingRows(stack: LocalStack, folder: string, sizes: readonly number[]): Promise<Row[]> {
  const rows: Row[] = [];
  for (const images of sizes) rows.push(...(await postgresRows(stack, images)));
  await using bench = await startBench(stack, folder);
  return [...rows, ...(await redisRows(bench.app, sizes)), ...(await workRows(bench, folder))];
}

/** The numbers of images behind `--images=`. */
export function sizesOf(words: readonly string[]): number[] {
  const given = words.find((word) => word.startsWith('--images='))?.slice('--images='.length) ?? '100000,1000000';
  const sizes = given.split(',').map(Number);
  if (sizes.every((size) => Number.isSafeInteger(size) && size > 0)) return sizes;
  throw new Error(`--images=${given}: expected whole numbers from 1 on, with commas between them`);
}

// What PostgreSQL holds.

/** Bytes per image of each table, once this many images are in it: one URL, one hash, one face each. */
async function postgresRows(stack: LocalStack, images: number): Promise<Row[]> {
  await using database = await newDatabase(stack, `sizing_${images}`);
  const { client } = database;
  const filled: Record<string, number> = {};
  for (let from = 1; from <= images; from += BATCH) {
    const range = [from, Math.min(images, from + BATCH - 1)];
    for (const [table, { text, values }] of Object.entries(INSERTS)) {
      const ms = await timed(() => client.query(`with ${IMAGES} ${text}`, [...range, ...values]));
      filled[table] = (filled[table] ?? 0) + ms;
    }
  }
  await client.query('vacuum (analyze)');
  const { rows } = await client.query(TABLE_SIZES, [[...Object.keys(INSERTS), 'perceptual_hash_bands']]);
  const bytes = sum(rows.map(({ total }) => total));
  const name = (what: string) => `PostgreSQL at ${images} images: ${what}, an image`;
  return [
    ...rows.map(({ table, total, heap, indexes, toast }) => {
      const also = { heap: heap / images, indexes: indexes / images, toast: toast / images };
      return told(name(table), total / images, 'bytes', { ...also, fillUs: (1000 * (filled[table] ?? 0)) / images });
    }),
    told(name('all of them'), bytes / images, 'bytes', { megabytes: bytes / 1e6 }),
  ];
}

/** As the pipeline would have written them: hashes that spread as SHA-256 does, times of forty images a second. */
const IMAGES = `images as (
  select n, encode(sha256(('content ' || n)::bytea), 'hex') as content_hash,
    'https://images.example.com/2026/11/gallery-' || n / 50 || '/portrait-' || n || '.jpg' as url,
    timestamptz '2026-11-01' + n * interval '25 ms' as at, gen_random_uuid()::text as job_id,
    (extract(epoch from timestamptz '2026-11-01') * 1e6)::bigint + n * 25000 as version
  from generate_series($1::bigint, $2::bigint) as n)`;
const OBJECT = `'=${TENANT}/' || left(content_hash, 2) || '/' || content_hash || '.jpg'`;

const INSERTS = {
  crawl_content_cache: insert(
    'crawl_content_cache',
    `raw_key, thumbnail_key, mime_type, byte_size, width, height, job_id, stored_at`,
    `'raw/tenant' || ${OBJECT}, 'thumbnail/tenant' || ${OBJECT}, 'image/jpeg', 180000, 1920, 1280, job_id, at`,
  ),
  crawl_cache: insert(
    'crawl_cache',
    `url_hash, url, source_url, raw_key, thumbnail_key, job_id, etag, last_modified, fetched_at`,
    `encode(sha256(url::bytea), 'hex'), url, 'https://www.example.com/gallery-' || n / 50, 'raw/tenant' || ${OBJECT},
      'thumbnail/tenant' || ${OBJECT}, job_id, '"' || left(job_id, 18) || '"', 'Wed, 21 Oct 2026 07:28:00 GMT', at`,
  ),
  perceptual_hash_cache: insert(
    'perceptual_hash_cache',
    'phash',
    `left(encode(sha256(('phash ' || n)::bytea), 'hex'), 16)`,
  ),
  face_detection_cache: insert('face_detection_cache', 'faces, model, payload', '1, $3, $4', [
    BUILT_IN_MODELS.detection,
    faceDetections.encode([FACE]),
  ]),
  face_embeddings_cache: insert('face_embeddings_cache', 'faces, model, payload', '1, $3, $4', [
    BUILT_IN_MODELS.embedding,
    faceEmbeddings.encode([EMBEDDING]),
  ]),
};

function insert(table: string, columns: string, values: string, more: readonly unknown[] = []) {
  const text = `insert into ${table} (tenant_id, generation, content_hash, version, created_at, updated_at, ${columns})
    select '${TENANT}', 1, content_hash, version, at, at, ${values} from images`;
  return { text, values: more };
}

/** As float8, since a bigint would reach us as text. */
const TABLE_SIZES = `select relname as "table", pg_total_relation_size(oid)::float8 as total,
    pg_relation_size(oid)::float8 as heap, pg_indexes_size(oid)::float8 as indexes,
    case reltoastrelid when 0 then 0 else pg_total_relation_size(reltoastrelid) end::float8 as toast
  from pg_class where relname = any($1) and relnamespace = 'public'::regnamespace order by relname`;

// What Redis holds.

/** Bytes that one of so many entries takes, written by the tier itself, and one of 10,000 waiting jobs. */
async function redisRows(app: App, sizes: readonly number[]): Promise<Row[]> {
  const { redis } = app.connection.tiers;
  if (!redis) throw new Error('this cache has no Redis');
  const raw = new Redis(app.config.redisUrl ?? '');
  // What is written to the disk is another matter, and so much of it would be the longest part.
  await raw.config('SET', 'appendonly', 'no');
  const usedMemory = async () => (await redis.tier.facts()).usedMemory;
  const growth = async (what: string, count: number, write: () => Promise<void>) => {
    const before = await usedMemory();
    await write();
    return told(`Redis, ${count} ${what}, each`, ((await usedMemory()) - before) / count, 'bytes');
  };
  const rows: Row[] = [];
  for (const count of sizes) {
    for (const [kind, make] of Object.entries(ENTRIES)) {
      const write = async () => {
        for (let n = 0; n < count; n += AT_ONCE) {
          const entries = Array.from({ length: Math.min(AT_ONCE, count - n) }, (_, i) =>
            make(sha256(`content ${n + i}`)),
          );
          await redis.tier.write(entries.map((one) => ({ ...one, generation: 1, version: Date.now() * 1000 })));
        }
      };
      rows.push(await growth(`entries of ${kind}`, count, write));
    }
    await raw.flushdb('ASYNC');
    while (Number(parseInfo(await raw.info('memory')).lazyfree_pending_objects) > 0) await pause(100);
  }
  await raw.config('SET', 'appendonly', 'yes');
  raw.disconnect();
  const waiting = connect(app.config, { logger: createLogger('silent'), queueNamespace: 'sizing' });
  rows.push(await growth('waiting crawl jobs', JOBS, () => enqueue(waiting, 'waiting', urls(JOBS, 'waiting'))));
  await waiting.close();
  return rows;
}

const ENTRIES: Record<string, (contentHash: string) => Entry> = {
  crawl_url: (contentHash) => {
    const [url = ''] = urls(1, contentHash.slice(0, 8));
    const origin = { sourceUrl: 'https://www.example.com/gallery-123', etag: `"${JOB_ID.slice(0, 18)}"` };
    const times = { lastModified: 'Wed, 21 Oct 2026 07:28:00 GMT', fetchedAt: Date.now() };
    const record = { url, contentHash, ...objectsOf(contentHash), ...origin, jobId: JOB_ID, ...times };
    return entry(TENANT, crawlUrls, sha256(url), record);
  },
  crawl_content: (contentHash) => {
    const image = { mimeType: 'image/jpeg', byteSize: 180_000, width: 1920, height: 1280 };
    const record = { ...objectsOf(contentHash), ...image, jobId: JOB_ID, storedAt: Date.now() };
    return entry(TENANT, crawlContents, contentHash, record);
  },
  perceptual_hash: (contentHash) => entry(TENANT, perceptualHashes, contentHash, contentHash.slice(0, 16)),
  face_detection: (contentHash) =>
    entry(TENANT, faceDetections, { contentHash, model: BUILT_IN_MODELS.detection }, [FACE]),
  face_embedding: (contentHash) =>
    entry(TENANT, faceEmbeddings, { contentHash, model: BUILT_IN_MODELS.embedding }, [EMBEDDING]),
};

function objectsOf(contentHash: string) {
  return { rawKey: rawKey(TENANT, contentHash, 'image/jpeg'), thumbnailKey: thumbnailKey(TENANT, contentHash) };
}

function urls(count: number, run: string): string[] {
  return Array.from({ length: count }, (_, n) => `https://images.example.com/2026/11/gallery-${run}/portrait-${n}.jpg`);
}
