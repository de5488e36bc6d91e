/** The floor: ioredis and pg by themselves, doing the least that the work needs, in our own tables' shape. */
import { Redis } from 'ioredis';
import pg from 'pg';
import { HEAD_BYTES } from '../src/cache/envelope.js';
import { crawlUrls } from '../src/kinds/crawl.js';
import { faceEmbeddings } from '../src/kinds/faces.js';
import { sha256 } from '../src/kinds/identity.js';
import type { StackEnv } from '../src/local/running-stack.js';
import { MODEL, recordOf, TENANT } from './samples.js';

/** Of a tenant that was never invalidated. */
const GENERATION = 1;

/** What stands in an entry of ours behind its head. */
function payloadOf(bytes: Buffer | null): Buffer {
  if (!bytes) throw new Error('there is no such entry');
  return bytes.subarray(HEAD_BYTES);
}

export interface Raw extends AsyncDisposable {
  readonly redis: Redis;
  readonly pool: pg.Pool;
}

/** As many connections to PostgreSQL as ours, and as pg's default. */
const CONNECTIONS = 10;

export function openRaw(env: StackEnv, connections = CONNECTIONS): Raw {
  const redis = new Redis(env.REDIS_URL);
  const pool = new pg.Pool({ connectionString: env.DATABASE_URL, max: connections });
  redis.on('error', () => undefined);
  pool.on('error', () => undefined);
  return {
    redis,
    pool,
    [Symbol.asyncDispose]: async () => {
      redis.disconnect();
      await pool.end();
    },
  };
}

/** Tables like ours, to be written without making ours larger: columns, indexes and storage. */
export async function createRawTables({ pool }: Raw): Promise<void> {
  for (const [copy, original] of Object.entries(COPIES)) {
    await pool.query(`create table ${copy} (like ${original} including all)`);
    // What `like` leaves behind.
    const { rows } = await pool.query('select reloptions from pg_class where oid = $1::regclass', [original]);
    const options: string[] = rows[0]?.reloptions ?? [];
    if (options.length > 0) await pool.query(`alter table ${copy} set (${options.join(', ')})`);
  }
}

const COPIES = { bench_faces: 'face_embeddings_cache', bench_records: 'crawl_cache' };

export function decodeFaces(bytes: Buffer | null) {
  return faceEmbeddings.decode(payloadOf(bytes));
}

export function decodeRecord(bytes: Buffer | null) {
  return crawlUrls.decode(payloadOf(bytes));
}

export function selectFaces({ pool }: Raw, contentHash: string): Promise<pg.QueryResult> {
  return pool.query({ ...SELECT_FACES, values: [TENANT, GENERATION, contentHash, MODEL] });
}

export function upsertFaces({ pool }: Raw, contentHash: string, payload: Buffer): Promise<pg.QueryResult> {
  return pool.query({ ...UPSERT_FACES, values: [TENANT, GENERATION, contentHash, MODEL, 1, payload, version()] });
}

export function upsertRecord({ pool }: Raw, contentHash: string): Promise<pg.QueryResult> {
  const { url, rawKey, thumbnailKey, sourceUrl, jobId, fetchedAt } = recordOf(contentHash);
  const values = [TENANT, GENERATION, sha256(url), contentHash, url, rawKey, thumbnailKey, sourceUrl, jobId];
  return pool.query({ ...UPSERT_RECORD, values: [...values, new Date(fetchedAt), version()] });
}

function version(): number {
  return Date.now() * 1000;
}

const SELECT_FACES = {
  name: 'bench_select_faces',
  text: `select payload from face_embeddings_cache
    where tenant_id = $1 and generation = $2 and content_hash = $3 and model = $4`,
};

const UPSERT_FACES = {
  name: 'bench_upsert_faces',
  text: `insert into bench_faces (tenant_id, generation, content_hash, model, faces, payload, version)
    values ($1, $2, $3, $4, $5, $6, $7)
    on conflict (tenant_id, generation, content_hash, model) do update
    set faces = excluded.faces, payload = excluded.payload, version = excluded.version, updated_at = now()`,
};

const UPSERT_RECORD = {
  name: 'bench_upsert_record',
  text: `insert into bench_records (tenant_id, generation, url_hash, content_hash, url, raw_key, thumbnail_key,
      source_url, job_id, fetched_at, version)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    on conflict (tenant_id, generation, url_hash, content_hash) do update
    set url = excluded.url, raw_key = excluded.raw_key, thumbnail_key = excluded.thumbnail_key,
      source_url = excluded.source_url, job_id = excluded.job_id, fetched_at = excluded.fetched_at,
      version = excluded.version, updated_at = now()`,
};
