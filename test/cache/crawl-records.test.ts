/** What the crawl knows of a URL: of a record and a refusal, the one that PostgreSQL was given last. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { explain } from '../../src/cache/explain.js';
import { sha256 } from '../../src/kinds/identity.js';
import { createWorld, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

const URL = 'https://example.com/1.png';
const TEN_MINUTES_MS = 600_000;

let world: World;
let cache: OpenCache;

beforeAll(async () => {
  world = await createWorld();
  cache = openCache(world.config(), world.namespace);
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

/** As a worker does whose clock is so much fast. */
async function withClock<T>(fastMs: number, work: () => Promise<T>): Promise<T> {
  const clock = Date.now;
  Date.now = () => clock() + fastMs;
  try {
    return await work();
  } finally {
    Date.now = clock;
  }
}

const refuse = (tenantId: string) =>
  cache.records.reject(tenantId, { url: URL }, { reason: 'gone', detail: 'status 404', jobId: null });
const store = (tenantId: string) => cache.service.storeCrawledImage(URL, sha256('image'), { rawKey: 'raw' }, tenantId);

async function isRefused(tenantId: string): Promise<boolean> {
  const { rejection } = await cache.records.urlFacts(tenantId, URL);
  const anyway = { crawler: null, allowedGap: () => 0 };
  const told = await explain(cache.connection.hybrid, tenantId, URL, null, anyway);
  expect(told.refusal?.counts).toBe(rejection !== null);
  return rejection !== null;
}

test.each([-TEN_MINUTES_MS, TEN_MINUTES_MS])(
  'whoever came later counts, where the clock of who refused is %d ms fast',
  async (fastMs) => {
    const tenantId = freshTenant();
    await withClock(fastMs, () => refuse(tenantId));
    await store(tenantId);
    expect(await isRefused(tenantId)).toBe(false);
    await withClock(fastMs, () => refuse(tenantId));
    expect(await isRefused(tenantId)).toBe(true);
  },
);
