/** One Redis for cache and queue, which evicts nothing: the cache must leave the queue its memory. A server of its own. */
import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { Queue, Worker } from 'bullmq';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { sha256 } from '../../src/kinds/identity.js';
import { until } from '../support/until.js';
import { Servers } from './chaos-support.js';
import { counted, freshTenant, messages, type OpenCache } from './support.js';

const MB = 1024 * 1024;
const LIMIT = 40 * MB;
const JOBS = 5_000;
/** 94 MB in all: three times what the server has left. */
const WRITES = 940;
const VALUE_BYTES = 100_000;
const SHORT = 'Redis is short of memory: the cache stopped writing to it. Raise maxmemory, or lower the lifetimes.';

let servers: Servers;
let cache: OpenCache;
let tenant: string;

beforeAll(async () => {
  servers = await Servers.start();
});

afterAll(() => servers[Symbol.asyncDispose]());

beforeEach(async () => {
  tenant = freshTenant();
  await limit(LIMIT);
  cache = servers.open();
});

afterEach(async () => {
  await limit(0);
  await servers.heal();
  await servers.redis((redis) => redis.flushall());
});

const limit = (bytes: number) => servers.redis((redis) => redis.config('SET', 'maxmemory', String(bytes)));
const content = (i: number) => sha256(`${tenant} ${i}`);
const keyOf = (hash: string) => `${servers.prefix}:search_results:${tenant}:${hash}:1`;
const write = (hash: string, value: string, { service } = cache) =>
  service.cacheSearchResults(hash, tenant, 1, [value]);
const read = (hash: string, { service } = cache) => service.getCachedSearchResults(hash, tenant, 1);
const full = () => counted(cache.metrics.tierErrors, { tier: 'redis', reason: 'full' });

async function usedMemory(): Promise<number> {
  const info = await servers.redis((redis) => redis.info('memory'));
  return Number(/used_memory:(\d+)/.exec(info)?.[1]);
}

test('three times the memory goes through the cache while jobs are enqueued: the queue loses none of 5,000 [M44]', async () => {
  const { hostname: host, port, password } = new URL(servers.stack.env.REDIS_URL);
  const connection = { host, port: Number(port), password, maxRetriesPerRequest: null };
  const queue = new Queue('memory', { connection, prefix: servers.prefix });
  const enqueued: Promise<unknown>[] = [];
  const enqueue = (count: number) => {
    for (let i = 0; i < count && enqueued.length < JOBS; i++)
      enqueued.push(queue.add('job', { url: `https://example.com/${enqueued.length}` }));
    return Promise.all(enqueued);
  };
  await enqueue(JOBS / 2);

  let most = 0;
  const values = new Map<string, string>();
  for (let i = 0; i < WRITES; i += 20) {
    const batch = Array.from({ length: 20 }, (_, n) => {
      const [hash, value] = [content(i + n), randomBytes(VALUE_BYTES / 2).toString('hex')];
      values.set(hash, value);
      return write(hash, value);
    });
    const [written] = await Promise.all([Promise.all(batch), enqueue(Math.ceil((20 * JOBS) / 2 / WRITES))]);
    expect(written).toEqual(batch.map(() => true));
    most = Math.max(most, await usedMemory());
  }
  await enqueue(JOBS);
  expect(enqueued).toHaveLength(JOBS);
  expect(most).toBeLessThan(0.85 * LIMIT);
  expect(await full()).toBeGreaterThan(0);
  expect(messages(cache.logs)).toContain(SHORT);

  for (const [hash, value] of [...values].filter((_, i) => i % 10 === 0)) expect(await read(hash)).toEqual([value]);
  expect(await usedMemory()).toBeLessThan(0.85 * LIMIT);

  let processed = 0;
  const worker = new Worker('memory', async () => void processed++, {
    connection,
    prefix: servers.prefix,
    concurrency: 100,
  });
  worker.on('error', () => undefined);
  await until('every job to be processed', () => processed === JOBS);
  await until('no job to be left', async () => {
    const left = await queue.getJobCounts('waiting', 'prioritized', 'active', 'failed', 'delayed');
    return Object.values(left).every((count) => count === 0);
  });
  await worker.close();
  await queue.obliterate({ force: true });
  await queue.close();
});

test('an overwrite for which there is no memory leaves no older value in Redis', async () => {
  const hash = content(0);
  expect(await write(hash, 'old')).toBe(true);
  expect(await servers.redis((redis) => redis.get(keyOf(hash)))).toContain('old');
  await limit((await usedMemory()) + 64 * 1024); // ours is a share of that, and is gone
  const late = servers.open();
  expect(await read(hash, late)).toEqual(['old']);
  expect(await write(hash, 'new', late)).toBe(true);
  expect(await servers.redis((redis) => redis.get(keyOf(hash)))).not.toContain('old');
  expect(await read(hash, late)).toEqual(['new']);
  expect(await read(hash)).toEqual(['new']);
});

test('Redis itself refuses the overwrite: the older value is dropped, and the cache writes again when there is room', async () => {
  const hash = content(0);
  expect(await write(hash, 'old')).toBe(true);
  await limit(1 * MB); // below what is used; this cache believes in what it was told before
  const big = randomBytes(VALUE_BYTES / 2).toString('hex');
  expect(await write(hash, big)).toBe(true);
  expect((await servers.redis((redis) => redis.get(keyOf(hash)))) ?? '').not.toContain('old');
  expect(await read(hash)).toEqual([big]);
  expect(await full()).toBeGreaterThan(0);
  expect(cache.connection.tiers.redis?.guard.isUp).toBe(true);
  await limit(LIMIT);
  const other = content(1);
  await until('the cache to write to Redis again', async () => {
    await write(other, 'again');
    return servers.redis((redis) => redis.exists(keyOf(other)));
  });
  expect(await read(other)).toEqual(['again']);
});

test('what the queue takes beyond 85 % the cache gives back, down to 80 %, and no more than its own', async () => {
  const values = new Map<string, string>();
  for (let i = 0; i < 100; i++) {
    const [hash, value] = [content(i), randomBytes(VALUE_BYTES / 2).toString('hex')];
    values.set(hash, value);
    expect(await write(hash, value)).toBe(true);
  }
  const queued = Buffer.alloc(5 * MB);
  await servers.redis((redis) => redis.set('the queue’s', queued));
  // A tombstone stands for a while where an entry was.
  const kept = () =>
    servers.redis(async (redis) => {
      const lengths = await Promise.all([...values.keys()].map((hash) => redis.strlen(keyOf(hash))));
      return lengths.filter((length) => length > VALUE_BYTES / 2).length;
    });
  expect(await kept()).toBe(100);

  // As much as may be is not too much.
  const used = await usedMemory();
  await limit(Math.ceil(used / 0.83));
  await pause(2_000);
  expect(await kept()).toBe(100);

  const most = Math.floor(used / 0.9);
  await limit(most);
  await until('memory to be given back', async () => (await usedMemory()) <= 0.81 * most);
  await pause(2_000);
  const given = 100 - (await kept());
  expect(given).toBeGreaterThan(0);
  // A tenth of the limit.
  expect(given * VALUE_BYTES).toBeLessThan(0.15 * most);
  expect(await servers.redis((redis) => redis.strlen('the queue’s'))).toBe(queued.length);
  for (const [hash, value] of values) expect(await read(hash)).toEqual([value]);
});
