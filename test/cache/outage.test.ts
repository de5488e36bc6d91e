/** What happens to the cache when its servers are killed, frozen, and back again. Servers of its own, real signals. */
import { randomBytes } from 'node:crypto';
import { resolve } from 'node:path';
import { Redis } from 'ioredis';
import { Client } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { UNKNOWN_VERSION } from '../../src/cache/crawl-records.js';
import { entry } from '../../src/cache/tier.js';
import { toConfig } from '../../src/config.js';
import { migrate } from '../../src/db/migrate.js';
import { TierUnavailableError } from '../../src/errors.js';
import { crawlContents } from '../../src/kinds/crawl.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { type LocalStack, startLocalStack } from '../../src/local/stack.js';
import { crawlContent, FACE, ODD_FACE } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { counted, freshTenant, messages, type OpenCache, openCache } from './support.js';

const REDIS_DOWN = /^Redis cache unavailable: .*[^.]\. Falling back to PostgreSQL only\.$/;
const POSTGRES_DOWN = /^PostgreSQL cache unavailable: .*[^.]\. Using Redis only\.$/;
const REDIS_BACK = 'Redis cache available again.';
const POSTGRES_BACK = 'PostgreSQL cache available again.';

const IMAGE = Buffer.from('an image');
const HASH = sha256(IMAGE);
const URL_OF = 'https://example.com/outage.jpg';
const PHASH = '0f0f0f0f0f0f0f0f';

let stack: LocalStack;
let cache: OpenCache;
let tenant: string;
let prefix: string;

beforeAll(async () => {
  const local = resolve('.local');
  const folder = `${local}/test-outage-${randomBytes(4).toString('hex')}`;
  stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: local });
  expect(stack.redis.source).not.toBe('none');
  await migrate({ connectionString: stack.env.DATABASE_URL }, { queueOnPostgres: false });
});

afterAll(() => stack.close());

beforeEach(async () => {
  tenant = freshTenant();
  prefix = tenant;
  cache = open();
  await store(tenant);
  cache.logs.length = 0;
});

afterEach(async () => {
  // Whatever the test has left: frozen servers go on, dead ones start again.
  for (const server of ['redis', 'postgres'] as const) {
    await stack.kill(server, 'SIGCONT').catch(() => undefined);
    await until(`${server} to answer`, () => answers(server), 1_000).catch(() => stack.restart(server));
  }
  const logged = JSON.stringify(cache.logs);
  await cache[Symbol.asyncDispose]();
  for (const url of Object.values(stack.env)) expect(logged).not.toContain(new URL(url).password);
});

function open(): OpenCache {
  return openCache(toConfig({ ...stack.env }), prefix);
}

async function answers(server: 'redis' | 'postgres'): Promise<boolean> {
  const fresh = open();
  const guard = fresh.connection.tiers[server]?.guard;
  const up = (await guard?.check()) ?? false;
  await fresh[Symbol.asyncDispose]();
  return up;
}

/** One image with everything that can be known of it. */
async function store(tenantId: string): Promise<void> {
  const { service } = cache;
  expect(await service.cacheFaceEmbeddings(IMAGE, tenantId, [FACE, ODD_FACE])).toBe(true);
  expect(await service.cacheFaceDetection(IMAGE, tenantId, [])).toBe(true);
  expect(await service.cachePerceptualHash(IMAGE, tenantId, PHASH)).toBe(true);
  expect(await service.storeCrawledImage(URL_OF, IMAGE, { rawKey: 'raw' }, tenantId)).toBe(true);
}

/** What every reading method says of that image. */
async function known(tenantId = tenant, { service } = cache) {
  return {
    embeddings: await service.getCachedFaceEmbeddings(HASH, tenantId),
    detections: await service.getCachedFaceDetection(HASH, tenantId),
    phash: await service.getCachedPerceptualHash(HASH, tenantId),
    url: await service.shouldSkipUrl(URL_OF, tenantId),
    image: await service.shouldSkipCrawledImage(URL_OF, IMAGE, tenantId),
    near: await service.findNearDuplicates(PHASH, tenantId),
  };
}

const SKIPPED = { shouldSkip: true, rawKey: 'raw', reason: 'url' };
const NOT_SKIPPED = { shouldSkip: false, rawKey: null, reason: null };
const EVERYTHING = {
  embeddings: [FACE, ODD_FACE],
  detections: [],
  phash: PHASH,
  url: SKIPPED,
  image: SKIPPED,
  near: [{ contentHash: HASH, phash: PHASH, distance: 0 }],
};
const NOTHING = {
  embeddings: null,
  detections: null,
  phash: null,
  url: NOT_SKIPPED,
  image: NOT_SKIPPED,
  near: [],
};

const lines = (pattern: RegExp | string, from = cache) =>
  messages(from.logs).filter((line) => (typeof pattern === 'string' ? line === pattern : pattern.test(line)));
const errors = (tier: string, reason: string, from = cache) => counted(from.metrics.tierErrors, { tier, reason });
const tierUp = (tier: string) => counted(cache.metrics.tierUp, { tier });
const replaysPending = (from = cache) => from.connection.journal?.pending();
const guardUp = (server: 'redis' | 'postgres', from = cache) => from.connection.tiers[server]?.guard.isUp;

async function redisHas(contentHash: string): Promise<string[]> {
  const client = new Redis(stack.env.REDIS_URL, { maxRetriesPerRequest: 1 });
  const keys = await client.keys(`${prefix}:*${contentHash}*`);
  client.disconnect();
  return keys;
}

test('Redis is killed: PostgreSQL answers everything, and Redis is used again when it is back [M4] [M42]', async () => {
  await stack.kill('redis', 'SIGKILL');
  expect(await known()).toEqual(EVERYTHING);
  const other = sha256('written without Redis');
  expect(await cache.service.cachePerceptualHash(other, tenant, 'opaque')).toBe(true);
  expect(await cache.service.storeCrawledImage(`${URL_OF}?2`, 'ab'.repeat(32), { rawKey: 'r' }, tenant)).toBe(true);
  expect(await cache.service.getCachedPerceptualHash(other, tenant)).toBe('opaque');
  expect(lines(REDIS_DOWN)).toEqual([expect.stringMatching(/ECONNREFUSED|ECONNRESET|EPIPE|the connection was lost/)]);
  expect(await tierUp('redis')).toBe(0);
  expect(await tierUp('postgres')).toBe(1);
  expect(lines(POSTGRES_DOWN)).toEqual([]);

  await stack.restart('redis');
  await until('Redis to be used again', () => guardUp('redis'));
  expect(lines(REDIS_BACK)).toHaveLength(1);
  expect(lines(REDIS_DOWN)).toHaveLength(1);
  expect(await tierUp('redis')).toBe(1);
  expect(await known()).toEqual(EVERYTHING);
  await until('an answer out of Redis', async () => {
    await cache.service.getCachedPerceptualHash(other, tenant);
    return counted(cache.metrics.cacheRequests, { kind: 'perceptual_hash', result: 'redis_hit' });
  });
});

test('Redis dies a second time: that is a second outage, with a line of its own', async () => {
  for (const outage of [1, 2]) {
    await stack.kill('redis', 'SIGKILL');
    expect(await known()).toEqual(EVERYTHING);
    await stack.restart('redis');
    await until('Redis to be used again', () => guardUp('redis'));
    expect(lines(REDIS_DOWN)).toHaveLength(outage);
    expect(lines(REDIS_BACK)).toHaveLength(outage);
  }
});

test('Redis is frozen: one operation waits for it, and no other until it answers again', async () => {
  await stack.kill('redis', 'SIGSTOP');
  expect(await known()).toEqual(EVERYTHING);
  for (let i = 0; i < 50; i++) expect(await cache.service.getCachedPerceptualHash(HASH, tenant)).toBe(PHASH);
  expect(await errors('redis', 'timeout')).toBe(1);
  expect(await errors('redis', 'refused')).toBeGreaterThanOrEqual(50);
  expect(lines(REDIS_DOWN)).toEqual([
    'Redis cache unavailable: no answer within 250 ms. Falling back to PostgreSQL only.',
  ]);
  expect(lines(REDIS_BACK)).toEqual([]);

  await stack.kill('redis', 'SIGCONT');
  await until('Redis to be used again', () => guardUp('redis'));
  expect(lines(REDIS_BACK)).toHaveLength(1);
  const before = await counted(cache.metrics.cacheRequests, { kind: 'face_detection', result: 'redis_hit' });
  await until('an answer out of Redis', async () => {
    await cache.service.getCachedFaceDetection(HASH, tenant);
    return (await counted(cache.metrics.cacheRequests, { kind: 'face_detection', result: 'redis_hit' })) > before;
  });
});

test('of many callers that meet a frozen Redis together, each waits once', async () => {
  await stack.kill('redis', 'SIGSTOP');
  const found = await Promise.all(
    Array.from({ length: 30 }, () => cache.service.getCachedPerceptualHash(HASH, tenant)),
  );
  expect(found).toEqual(Array(30).fill(PHASH));
  const waits = await errors('redis', 'timeout');
  expect(waits).toBeLessThanOrEqual(30);
  expect(lines(REDIS_DOWN)).toHaveLength(1);
  expect(await known()).toEqual(EVERYTHING);
  expect(await errors('redis', 'timeout')).toBe(waits);
});

test('PostgreSQL is killed: Redis answers what it has and keeps what is written, and no crawl record is called stored [M5]', async () => {
  const unknown = sha256('nobody knows');
  await stack.kill('postgres', 'SIGKILL');
  expect(await known()).toEqual({ ...EVERYTHING, near: [] });
  expect(await cache.service.getCachedFaceEmbeddings(unknown, tenant)).toBeNull();
  expect(await cache.service.getCachedPerceptualHash(unknown, tenant)).toBeNull();
  expect(await counted(cache.metrics.cacheRequests, { kind: 'perceptual_hash', result: 'error' })).toBe(1);
  expect(await cache.service.shouldSkipUrl('https://example.com/new.jpg', tenant)).toEqual(NOT_SKIPPED);

  // Durable: the queue's Redis, which here is the same, evicts nothing and writes to disk.
  expect(await cache.service.cachePerceptualHash(unknown, tenant, 'hot')).toBe(true);
  expect(await cache.service.cacheFaceEmbeddings(unknown, tenant, [FACE])).toBe(true);
  expect(await cache.service.getCachedPerceptualHash(unknown, tenant)).toBe('hot');
  expect(await cache.service.getCachedFaceEmbeddings(unknown, tenant)).toEqual([FACE]);

  const crawled = Buffer.from('crawled meanwhile');
  expect(await cache.service.storeCrawledImage(`${URL_OF}?new`, crawled, { rawKey: 'r' }, tenant)).toBe(false);
  expect(await redisHas(sha256(crawled))).toEqual([]);
  expect(await redisHas(sha256(`${URL_OF}?new`))).toEqual([]);
  expect(await cache.service.shouldSkipCrawledImage(`${URL_OF}?new`, crawled, tenant)).toEqual(NOT_SKIPPED);
  expect(lines(POSTGRES_DOWN)).toHaveLength(1);
  expect(lines(REDIS_DOWN)).toEqual([]);
  expect(await tierUp('postgres')).toBe(0);

  await stack.restart('postgres');
  await until('PostgreSQL to be used again', () => guardUp('postgres'));
  expect(lines(POSTGRES_BACK)).toHaveLength(1);
  expect(await cache.service.storeCrawledImage(`${URL_OF}?new`, crawled, { rawKey: 'r' }, tenant)).toBe(true);
  expect(await known()).toEqual(EVERYTHING);
  await until('PostgreSQL to have what was written meanwhile', async () => (await replaysPending()) === 0);
  await using plain = openCache(toConfig({ ...stack.env, REDIS_URL: 'none' }), prefix);
  expect(await plain.service.getCachedPerceptualHash(unknown, tenant)).toBe('hot');
  expect(await plain.service.getCachedFaceEmbeddings(unknown, tenant)).toEqual([FACE]);
});

test('PostgreSQL is killed: what may only be promised by PostgreSQL is refused, not guessed', async () => {
  await stack.kill('postgres', 'SIGKILL');
  const image = {
    url: URL_OF,
    sourceUrl: null,
    contentHash: sha256('x'),
    content: crawlContent('x'),
    validators: UNKNOWN_VERSION,
    phash: null,
  };
  await expect(cache.records.store(tenant, image)).rejects.toBeInstanceOf(TierUnavailableError);
  await expect(cache.records.urlFacts(tenant, 'https://example.com/unknown')).rejects.toThrow(
    'postgres is unavailable',
  );
  const claim = { tenantId: tenant, subject: 's', holder: 'h' };
  await expect(cache.claims.take(claim, 1_000)).rejects.toBeInstanceOf(TierUnavailableError);
  expect(await cache.records.content(tenant, HASH)).toMatchObject({ rawKey: 'raw' });
});

test('PostgreSQL is killed in the middle of a write: nothing of it is there afterwards [M36]', async () => {
  const half = sha256('half a write');
  const entries = [
    entry(tenant, crawlContents, half, crawlContent('half')),
    entry(tenant, perceptualHashes, HASH, 'new'),
  ];
  const write = () => cache.connection.hybrid.write(entries, { hotWithoutDurable: false });
  const blocker = new Client({ connectionString: stack.env.DATABASE_URL });
  blocker.on('error', () => undefined); // it is killed too
  await blocker.connect();
  // The content goes in, and the hash waits for this row.
  await blocker.query('begin');
  await blocker.query('select from perceptual_hash_cache where tenant_id = $1 for update', [tenant]);
  const written = write();
  await until('the write to wait', async () => {
    const waiting = 'select from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))';
    return (await blocker.query(waiting)).rowCount;
  });
  await stack.kill('postgres', 'SIGKILL');
  expect(await written).toMatchObject({ durable: false });

  await stack.restart('postgres');
  await using plain = openCache(toConfig({ ...stack.env, REDIS_URL: 'none' }), prefix);
  const seen = async () => [
    (await plain.records.content(tenant, half))?.rawKey,
    await plain.service.getCachedPerceptualHash(HASH, tenant),
  ];
  expect(await seen()).toEqual([undefined, PHASH]);
  await until('PostgreSQL to be used again', () => guardUp('postgres'));
  expect(await write()).toMatchObject({ durable: true });
  expect(await seen()).toEqual([crawlContent('half').rawKey, 'new']);
});

test('PostgreSQL is frozen: one operation waits for it, and no other until it answers again [M43]', async () => {
  await stack.kill('postgres', 'SIGSTOP');
  const unknown = sha256('nobody knows');
  for (let i = 0; i < 50; i++) expect(await cache.service.getCachedPerceptualHash(unknown, tenant)).toBeNull();
  // What coherence asks meanwhile on its own account waits too.
  const readErrors = (reason: string) => counted(cache.metrics.tierErrors, { operation: 'read', reason });
  expect([await readErrors('timeout'), await readErrors('refused')]).toEqual([1, 49]);
  expect(await known()).toEqual({ ...EVERYTHING, near: [] });
  expect(lines(POSTGRES_DOWN)).toEqual(['PostgreSQL cache unavailable: no answer within 3000 ms. Using Redis only.']);

  await stack.kill('postgres', 'SIGCONT');
  await until('PostgreSQL to be used again', () => guardUp('postgres'));
  expect(lines(POSTGRES_BACK)).toHaveLength(1);
  expect(await known()).toEqual(EVERYTHING);
});

test('a cache closes while its servers are frozen', async () => {
  const closing = open();
  await closing.service.getCachedPerceptualHash(HASH, tenant);
  await stack.kill('redis', 'SIGSTOP');
  await stack.kill('postgres', 'SIGSTOP');
  const reading = closing.service.getCachedPerceptualHash(sha256('other'), tenant);
  await closing[Symbol.asyncDispose]();
  await closing[Symbol.asyncDispose]();
  expect(await reading).toBeNull();
});

test('both are down when the cache is made: null and false, until they come one after the other [M6]', async () => {
  await stack.kill('redis', 'SIGKILL');
  await stack.kill('postgres', 'SIGKILL');
  await using late = open();
  expect(late.logs).toEqual([]);
  expect(await known(tenant, late)).toEqual(NOTHING);
  expect(await late.service.cachePerceptualHash(HASH, tenant, 'text')).toBe(false);
  expect(await late.service.cacheFaceEmbeddings(HASH, tenant, [])).toBe(false);
  expect(await late.service.storeCrawledImage(URL_OF, IMAGE, { rawKey: 'other' }, tenant)).toBe(false);
  expect(lines(REDIS_DOWN, late)).toEqual([expect.stringContaining('ECONNREFUSED')]);
  expect(lines(POSTGRES_DOWN, late)).toEqual([expect.stringContaining('ECONNREFUSED')]);
  for (const url of Object.values(stack.env)) {
    expect(JSON.stringify(late.logs)).not.toContain(new URL(url).password);
  }

  await stack.restart('postgres');
  await until('PostgreSQL to be used', () => guardUp('postgres', late));
  expect(await known(tenant, late)).toEqual(EVERYTHING);
  expect(guardUp('redis', late)).toBe(false);

  await stack.restart('redis');
  await until('Redis to be used', () => guardUp('redis', late));
  await until('an answer out of Redis', async () => {
    await late.service.getCachedPerceptualHash(HASH, tenant);
    return counted(late.metrics.cacheRequests, { kind: 'perceptual_hash', result: 'redis_hit' });
  });
  expect(lines(REDIS_BACK, late)).toHaveLength(1);
  expect(lines(POSTGRES_BACK, late)).toHaveLength(1);
});

test('Redis alone is there when the cache is made: what is written is served, and PostgreSQL is used when it comes', async () => {
  await stack.kill('postgres', 'SIGKILL');
  await using late = open();
  const other = sha256('hot only');
  expect(await late.service.cachePerceptualHash(other, tenant, 'hot')).toBe(true);
  expect(await late.service.getCachedPerceptualHash(other, tenant)).toBe('hot');
  await stack.restart('postgres');
  await until('PostgreSQL to be used', () => guardUp('postgres', late));
  await until('PostgreSQL to have what was written meanwhile', async () => (await replaysPending(late)) === 0);
  expect(await late.service.getCachedPerceptualHash(other, tenant)).toBe('hot');
  expect(await late.service.cachePerceptualHash(other, tenant, 'hotter')).toBe(true);
  expect(await late.service.getCachedPerceptualHash(other, tenant)).toBe('hotter');
});

test('a Redis that wants another password is an outage, and its line names none', async () => {
  const url = new URL(stack.env.REDIS_URL);
  url.password = 'not-the-password';
  const wrong = openCache(toConfig({ ...stack.env, REDIS_URL: url.href }), prefix);
  expect(await known(tenant, wrong)).toEqual(EVERYTHING);
  expect(lines(REDIS_DOWN, wrong)).toEqual([expect.stringContaining('WRONGPASS')]);
  expect(JSON.stringify(wrong.logs)).not.toContain('not-the-password');
  await wrong[Symbol.asyncDispose]();
});

test('a PostgreSQL that wants another password is an outage, and its line names none', async () => {
  const url = new URL(stack.env.DATABASE_URL);
  url.password = 'not-the-password';
  const wrong = openCache(toConfig({ ...stack.env, DATABASE_URL: url.href }), prefix);
  expect(await known(tenant, wrong)).toEqual({ ...EVERYTHING, near: [] });
  expect(await wrong.service.cachePerceptualHash(HASH, tenant, 'text')).toBe(true);
  expect(await replaysPending(wrong)).toBe(1);
  expect(lines(POSTGRES_DOWN, wrong)).toEqual([expect.stringContaining('password authentication failed')]);
  expect(JSON.stringify(wrong.logs)).not.toContain('not-the-password');
  await wrong[Symbol.asyncDispose]();
});

test('an invalidation that meets a PostgreSQL that has just frozen rejects, and is not done when it wakes up [M26]', async () => {
  await stack.kill('postgres', 'SIGSTOP');
  await expect(cache.service.invalidateTenantCache(tenant)).rejects.toBeInstanceOf(TierUnavailableError);
  await stack.kill('postgres', 'SIGCONT');
  await until('PostgreSQL to be used again', () => guardUp('postgres'));
  expect(await known()).toEqual(EVERYTHING);
  const asked = { text: 'select generation from cache_generations where tenant_id = $1', values: [tenant] };
  expect((await cache.connection.pool.query(asked)).rows).toEqual([]);
});
