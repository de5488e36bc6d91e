/** What `getCacheStats` is made of: our own counts, a Redis server's figures, and a tier that cannot tell. */
import { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, inject, test } from 'vitest';
import { LookupCounts } from '../../src/cache/lookup-counts.js';
import { readStatistics, redisStatistics } from '../../src/cache/statistics.js';
import { KIND_NAMES } from '../../src/metrics.js';

let redis: Redis;

beforeAll(() => {
  redis = new Redis(inject('redisUrl'), { maxRetriesPerRequest: 1 });
});

afterAll(() => redis.quit());

const NOTHING = {
  redisHits: 0,
  postgresHits: 0,
  misses: 0,
  errors: 0,
  totalHits: 0,
  totalRequests: 0,
  hitRate: null,
  redisHitRate: null,
  postgresHitRate: null,
};

test('look-ups are counted by kind and answer, and rates are percent of all requests', () => {
  const counts = new LookupCounts();
  for (const result of ['redis_hit', 'redis_hit', 'postgres_hit', 'miss', 'miss', 'error'] as const) {
    counts.count('crawl_url', result);
  }
  counts.count('rejection', 'miss');
  const { byKind, ...all } = counts.snapshot();
  expect(all).toEqual({
    redisHits: 2,
    postgresHits: 1,
    misses: 3,
    errors: 1,
    totalHits: 3,
    totalRequests: 7,
    hitRate: 42.86,
    redisHitRate: 28.57,
    postgresHitRate: 14.29,
  });
  expect(byKind.crawl_url).toMatchObject({ totalHits: 3, totalRequests: 6, misses: 2, errors: 1, hitRate: 50 });
  expect(byKind.rejection).toEqual({
    ...NOTHING,
    misses: 1,
    totalRequests: 1,
    hitRate: 0,
    redisHitRate: 0,
    postgresHitRate: 0,
  });
  expect(byKind.face_embedding).toEqual(NOTHING);
  expect(Object.keys(byKind)).toEqual([...KIND_NAMES]);
});

test('a snapshot stays as it was; a reset begins anew', () => {
  const counts = new LookupCounts();
  counts.count('face_embedding', 'redis_hit');
  const snapshot = counts.snapshot();
  counts.reset();
  expect(snapshot).toMatchObject({ redisHits: 1, byKind: { face_embedding: { redisHits: 1 } } });
  expect(counts.snapshot()).toMatchObject(NOTHING);
});

test('a real server’s INFO gives every figure [M37]', async () => {
  await redis.get('no such key, which is a miss of the server');
  const figures = redisStatistics(await redis.info());
  expect(figures).toEqual({
    usedMemory: expect.any(Number),
    usedMemoryHuman: expect.stringMatching(/^[\d.]+[BKMGT]$/),
    maxmemory: expect.any(Number),
    maxmemoryPolicy: expect.stringMatching(/^(noeviction|(allkeys|volatile)-\w+)$/),
    connectedClients: expect.any(Number),
    totalCommandsProcessed: expect.any(Number),
    keyspaceHits: expect.any(Number),
    keyspaceMisses: expect.any(Number),
    evictedKeys: expect.any(Number),
    hitRate: expect.any(Number),
  });
  expect(figures.usedMemory).toBeGreaterThan(100_000);
  expect(figures.connectedClients).toBeGreaterThanOrEqual(1);
});

test.each([
  ['keyspace_hits:3\r\nkeyspace_misses:1\r\n', 75],
  ['keyspace_hits:1\r\nkeyspace_misses:2\r\n', 33.33],
  ['keyspace_hits:0\r\nkeyspace_misses:5\r\n', 0],
  ['keyspace_hits:0\r\nkeyspace_misses:0\r\n', null],
  ['', null],
])('the hit rate of %j is %s', (info, rate) => {
  expect(redisStatistics(info).hitRate).toBe(rate);
});

test('what a server does not tell is null', () => {
  const figures = redisStatistics('# Memory\r\nused_memory_human:1.50M\r\n');
  expect(figures).toMatchObject({ usedMemoryHuman: '1.50M', usedMemory: null, maxmemoryPolicy: null });
});

test('a Redis that is turned off has no figures, and the service’s own are still there', async () => {
  const counts = new LookupCounts();
  counts.count('crawl_url', 'miss');
  const query = async () => ({ rows: [] });
  expect(await readStatistics({ redis: null, postgres: { query }, counts })).toEqual({
    redisEnabled: false,
    postgresEnabled: true,
    redisStats: { error: 'turned off' },
    postgresStats: { estimated: [] },
    service: counts.snapshot(),
  });
});

test('a tier that is away says why, without a password, and the other one still tells', async () => {
  const away = new Redis('redis://:s3cret@127.0.0.1:1', { retryStrategy: null, lazyConnect: true });
  away.on('error', () => undefined); // each call rejects with the same
  const query = async () => {
    throw new Error('cannot reach postgres://mordeaux:s3cret@db.example:5432/mordeaux?sslpassword=s3cret');
  };
  const counts = new LookupCounts();
  const without = await readStatistics({ redis: { info: () => away.info() }, postgres: { query }, counts });
  expect(without).toMatchObject({ redisEnabled: true, postgresEnabled: true });
  expect(without.redisStats).toEqual({ error: expect.stringMatching(/./) });
  expect(without.postgresStats).toEqual({ error: 'cannot reach postgres://db.example:5432/mordeaux?…' });
  expect(JSON.stringify(without)).not.toContain('s3cret');

  const half = await readStatistics({ redis: { info: () => redis.info() }, postgres: { query }, counts });
  expect(half.redisStats).toHaveProperty('usedMemoryHuman');
  expect(half.postgresStats).toHaveProperty('error');
});
