/** A way to Redis on which nothing arrives any more, and that nobody closes: as after a partition or an expired NAT. */
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { SharedLookups } from '../../src/cache/shared-lookups.js';
import { sha256 } from '../../src/kinds/identity.js';
import { createMetrics } from '../../src/metrics.js';
import { until } from '../support/until.js';
import { isUp, noticed, Servers } from './chaos-support.js';
import { freshTenant } from './support.js';

/** The kernel gives such a connection up after a quarter of an hour. */
const SOON_MS = 10_000;
const HASH = sha256('lost packets');

let servers: Servers;

beforeAll(async () => {
  servers = await Servers.start();
});

afterAll(() => servers[Symbol.asyncDispose]());

afterEach(() => servers.heal());

test('the cache takes a new connection to Redis, and goes on by itself', async () => {
  const link = await servers.link('redis');
  const cache = servers.open({ REDIS_URL: link.url, QUEUE_REDIS_URL: servers.stack.env.REDIS_URL });
  const tenant = freshTenant();
  expect(await cache.service.cachePerceptualHash(HASH, tenant, 'kept')).toBe(true);
  link.hold();
  await noticed('redis', cache);
  expect(await cache.service.getCachedPerceptualHash(HASH, tenant)).toBe('kept');
  await until('Redis to be used again', () => isUp('redis', cache), SOON_MS);
  expect(await cache.service.getCachedPerceptualHash(HASH, tenant)).toBe('kept');
});

test('the journal takes a new connection to the queue’s Redis', async () => {
  const link = await servers.link('redis');
  const cache = servers.open({ QUEUE_REDIS_URL: link.url });
  const tenant = freshTenant();
  const write = (value: string) => cache.service.cachePerceptualHash(HASH, tenant, value);
  await servers.kill('postgres');
  await noticed('postgres', cache);
  expect(await write('journaled')).toBe(true);
  link.hold();
  expect(await write('nobody says whether it is journaled')).toBe(false);
  await until('writes to be journaled again', () => write('journaled again'), SOON_MS);
});

test('the counts of look-ups take a new connection to Redis', async () => {
  const link = await servers.link('redis');
  await using lookups = {
    shared: new SharedLookups(link.url, (id) => `${servers.prefix}:${id}`, createMetrics().lookups),
    [Symbol.asyncDispose]: () => lookups.shared.close(),
  };
  await lookups.shared.read();
  link.hold();
  await expect(lookups.shared.read()).rejects.toThrow();
  await until('the counts to be read again', () => lookups.shared.read(), SOON_MS);
});
