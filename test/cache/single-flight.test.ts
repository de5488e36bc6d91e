/** What is asked at once costs once, as counted on the wire; and nobody is given what was asked for before they wrote. */
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Answer } from '../../src/cache/answer.js';
import { type Entry, entry, type Lookup } from '../../src/cache/tier.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { examples, FACE, keyOf } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { Relay } from './relay.js';
import { counted, freshTenant, type OpenCache, openCache } from './support.js';

const HOT = { hotWithoutDurable: true };

let world: World;
let client: Redis;
let redis: Relay;
let postgres: Relay;
let cache: OpenCache;
/** Another process: the same servers, nothing between. */
let other: OpenCache;
let tenant = '';

beforeAll(async () => {
  world = await createWorld();
  client = redisClient(world);
  redis = await Relay.to(world.redisUrl);
  postgres = await Relay.to(world.databaseUrl);
  // The queue's Redis, where writes are journaled, is asked past the relay.
  const env = { REDIS_URL: redis.url, QUEUE_REDIS_URL: world.redisUrl, DATABASE_URL: postgres.url };
  cache = openCache(world.config(env), world.namespace);
  other = openCache(world.config(), world.namespace);
});

beforeEach(async () => {
  tenant = freshTenant();
  // The tenant's generation is told to Redis with its first entry.
  await write([text('first of its tenant', '')]);
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
  await postgres[Symbol.asyncDispose]();
  client.disconnect();
  await world[Symbol.asyncDispose]();
});

const text = (key: string, value: string) => entry(tenant, perceptualHashes, sha256(key), value);
const write = (entries: readonly Entry[], by = cache) => by.connection.hybrid.write(entries, HOT);
const unlink = async (entries: readonly Lookup[]) => {
  const tier = other.connection.tiers.redis?.tier;
  await client.unlink(...entries.map(({ id }) => tier?.keyOf(id) ?? ''));
};

/** A look-up of its own. */
const ask = (one: Lookup, by = cache): Promise<Answer> => by.connection.hybrid.read(one.tenantId, one.kind, keyOf(one));

/** What the tiers are asked while `work` runs. Statements are counted by their round trips: none is sent in pieces. */
async function cost<T>(work: () => Promise<T>): Promise<{ result: T; redis: number; postgres: number }> {
  redis.reset();
  postgres.reset();
  const result = await work();
  await cache.connection.hybrid.close();
  const commands = ['get', 'mget', 'set', 'evalsha', 'eval'].map((name) => redis.said(`\r\n${name}\r\n`));
  return { result, redis: commands.reduce((sum, n) => sum + n, 0), postgres: postgres.roundTrips };
}

test('whoever changes a value that was given changes nobody else’s', async () => {
  const { service } = cache;
  const hash = sha256('changed by its reader');
  await service.cacheFaceEmbeddings(hash, tenant, [FACE]);
  const [alone, both] = await Promise.all([
    service.getCachedFaceEmbeddings(hash, tenant),
    service.getCachedFaceEmbeddingsBatch([hash, hash], tenant),
  ]);
  const given = [alone, ...both];
  for (const faces of given) {
    expect(faces).toEqual([FACE]);
    faces?.[0]?.embedding.fill(0);
  }
  expect(await service.getCachedFaceEmbeddings(hash, tenant)).toEqual([FACE]);
});

describe('a hundred look-ups of one key at once', () => {
  const hundred = (one: Lookup) => Promise.all(Array.from({ length: 100 }, () => ask(one)));

  test('cost one read of Redis where that has it', async () => {
    const one = text('hot', 'value');
    await write([one]);
    const { result, ...asked } = await cost(() => hundred(one));
    for (const answer of result) expect(answer).toMatchObject({ state: 'hit', value: 'value', tier: 'redis' });
    expect(asked).toEqual({ redis: 1, postgres: 0 });
  });

  test('cost one read of either tier where PostgreSQL has it, and one backfill', async () => {
    const one = text('permanent', 'value');
    await write([one]);
    await unlink([one]);
    const { result, ...asked } = await cost(() => hundred(one));
    for (const answer of result) expect(answer).toMatchObject({ state: 'hit', value: 'value', tier: 'postgres' });
    expect(asked).toEqual({ redis: 2, postgres: 1 });
    expect(await ask(one)).toMatchObject({ tier: 'redis' });
  });

  test('cost one read of either tier where nobody has it, and no write [M35]', async () => {
    const { result, ...asked } = await cost(() => hundred(text('missing', '')));
    expect(result).toEqual(Array(100).fill({ state: 'miss' }));
    expect(asked).toEqual({ redis: 1, postgres: 1 });
  });

  test('cost each process its own, and each is counted', async () => {
    const one = text('counted', 'value');
    await write([one]);
    const hits = () => counted(other.metrics.cacheRequests, { kind: 'perceptual_hash', result: 'redis_hit' });
    const before = await hits();
    await Promise.all(Array.from({ length: 100 }, () => ask(one, other)));
    expect(await hits()).toBe(before + 100);
  });

  test('are the same one as those that come while it is under way', async () => {
    const one = text('under way', 'value');
    await write([one], other);
    await unlink([one]);
    postgres.hold('read one');
    const { result, ...asked } = await cost(async () => {
      const first = ask(one);
      await until('the answer of PostgreSQL', () => postgres.holds);
      const rest = hundred(one);
      const batch = cache.connection.hybrid.readMany([one, text('another', ''), one]);
      postgres.letGo();
      return [await first, ...(await rest), ...(await batch)];
    });
    const misses = result.filter(({ state }) => state === 'miss');
    expect(misses).toHaveLength(1);
    expect(result.filter((answer) => answer.state === 'hit' && answer.value === 'value')).toHaveLength(103);
    // The key and the other one of the batch, and the backfill.
    expect(asked).toEqual({ redis: 3, postgres: 2 });
  });

  test('are refused together where PostgreSQL refuses them, and the next one is asked anew', async () => {
    const one = text('refused', 'value');
    await write([one]);
    await unlink([one]);
    const sql = (text: string) => other.connection.pool.query(text);
    await sql('alter table perceptual_hash_cache rename to hashes');
    await sql(
      `create view perceptual_hash_cache as
         select tenant_id, generation, content_hash, version, (1 / (version - version))::text as phash from hashes`,
    );
    const answers = await Promise.allSettled(Array.from({ length: 100 }, () => ask(one)));
    await sql('drop view perceptual_hash_cache');
    await sql('alter table hashes rename to perceptual_hash_cache');
    for (const answer of answers) expect(answer).toMatchObject({ status: 'rejected', reason: { code: '22012' } });
    expect(await ask(one)).toMatchObject({ value: 'value' });
  });
});

describe('look-ups of different keys', () => {
  const many = (n: number) => Array.from({ length: n }, (_, i) => text(`key ${i}`, `${i}`));

  test('that are asked at once are one round trip to Redis', async () => {
    const entries = many(64);
    await write(entries);
    const { result, ...asked } = await cost(() => Promise.all(entries.map((one) => ask(one))));
    expect(result).toMatchObject(entries.map(({ value }) => ({ value, tier: 'redis' })));
    expect(asked).toEqual({ redis: 1, postgres: 0 });
  });

  test('that are asked at once are one statement of PostgreSQL, and one backfill', async () => {
    const entries = many(64);
    await write(entries);
    await unlink(entries);
    const { result, ...asked } = await cost(() => Promise.all(entries.map((one) => ask(one))));
    expect(result).toMatchObject(entries.map(({ value }) => ({ value, tier: 'postgres' })));
    expect(asked).toEqual({ redis: 2, postgres: 1 });
  });

  test('of every kind in one batch are one round trip to either tier', async () => {
    const entries = examples(tenant);
    await write(entries);
    await unlink(entries);
    const { result, ...asked } = await cost(() => cache.connection.hybrid.readMany(entries));
    expect(result).toMatchObject(entries.map(({ value }) => ({ value, tier: 'postgres' })));
    expect(asked).toEqual({ redis: 2, postgres: 1 });
  });
});

describe('in batches', () => {
  const IMAGES = Array.from({ length: 20 }, (_, i) => ({
    url: `https://example.com/${i}.jpg`,
    imageBytes: sha256(`image ${i}`),
  }));
  const HASHES = IMAGES.map(({ imageBytes }) => imageBytes);
  const URLS = IMAGES.map(({ url }) => url);

  beforeEach(async () => {
    const { service } = other;
    for (const { url, imageBytes } of IMAGES.slice(0, 10)) {
      await service.cacheFaceEmbeddings(imageBytes, tenant, [FACE]);
      await service.cacheFaceDetection(imageBytes, tenant, []);
      await service.cachePerceptualHash(imageBytes, tenant, imageBytes.slice(0, 16));
      await service.cacheSearchResults(imageBytes, tenant, 5, [imageBytes]);
      await service.storeCrawledImage(url, imageBytes, { rawKey: url }, tenant);
    }
  });

  const known = <T, U>(value: (i: number) => T, otherwise: U) => IMAGES.map((_, i) => (i < 10 ? value(i) : otherwise));
  const skipped = known((i) => ({ shouldSkip: true, rawKey: URLS[i], reason: 'url' }), {
    shouldSkip: false,
    rawKey: null,
    reason: null,
  });

  const BATCHES: [string, () => Promise<unknown>, unknown][] = [
    [
      'getCachedFaceEmbeddingsBatch',
      () => cache.service.getCachedFaceEmbeddingsBatch(HASHES, tenant),
      known(() => [FACE], null),
    ],
    [
      'getCachedFaceDetectionBatch',
      () => cache.service.getCachedFaceDetectionBatch(HASHES, tenant),
      known(() => [], null),
    ],
    [
      'getCachedPerceptualHashBatch',
      () => cache.service.getCachedPerceptualHashBatch(HASHES, tenant),
      known((i) => HASHES[i]?.slice(0, 16), null),
    ],
    [
      'getCachedSearchResultsBatch',
      () => cache.service.getCachedSearchResultsBatch(HASHES, tenant, 5),
      known((i) => [HASHES[i]], null),
    ],
    ['shouldSkipUrlBatch', () => cache.service.shouldSkipUrlBatch(URLS, tenant), skipped],
    ['shouldSkipCrawledImageBatch', () => cache.service.shouldSkipCrawledImageBatch(IMAGES, tenant), skipped],
  ];

  test.each(BATCHES)('%s costs one round trip to either tier', async (_, call, expected) => {
    const keys = await client.keys(`${world.namespace}:*:${tenant}:*`);
    await client.unlink(...keys);
    const cold = await cost(call);
    expect(cold).toEqual({ result: expected, redis: 2, postgres: 1 });
    // What nobody has is asked of PostgreSQL again; what was found is not.
    const warm = await cost(call);
    expect(warm).toEqual({ result: expected, redis: 1, postgres: 1 });
  });

  test('of nothing cost nothing', async () => {
    const { service } = cache;
    const { result, ...asked } = await cost(() =>
      Promise.all([
        service.getCachedFaceEmbeddingsBatch([], tenant),
        service.getCachedFaceDetectionBatch([], tenant),
        service.getCachedPerceptualHashBatch([], tenant),
        service.getCachedSearchResultsBatch([], tenant, 1),
        service.shouldSkipUrlBatch([], tenant),
        service.shouldSkipCrawledImageBatch([], tenant),
      ]),
    );
    expect(result).toEqual(Array(6).fill([]));
    expect(asked).toEqual({ redis: 0, postgres: 0 });
  });

  test('the service asks at once for what is asked of it at once', async () => {
    const { service } = cache;
    const { redis: asked } = await cost(() =>
      Promise.all(HASHES.map((hash) => service.getCachedPerceptualHash(hash, tenant))),
    );
    expect(asked).toBe(1);
  });
});

describe('who reads after a write has resolved', () => {
  /** A look-up that has the old value from PostgreSQL, and has not been told yet. */
  async function readThatBeganBefore(one: Entry): Promise<{ answer: Promise<Answer> }> {
    await write([one], other);
    await unlink([one]);
    postgres.hold('read one');
    const answer = ask(one);
    await until('the answer of PostgreSQL', () => postgres.holds);
    return { answer };
  }

  test('is given that value, though a look-up that began before has an older one', async () => {
    const [old, now] = [text('written', 'old'), text('written', 'new')];
    const before = await readThatBeganBefore(old);
    await write([now]);
    expect(await ask(now)).toMatchObject({ value: 'new' });
    postgres.letGo();
    expect(await before.answer).toMatchObject({ value: 'old' });
    await cache.connection.hybrid.close();
    expect(await ask(now)).toMatchObject({ value: 'new', tier: 'redis' });
    expect(await ask(now, other)).toMatchObject({ value: 'new', tier: 'redis' });
  });

  test('is given that value, though Redis had not got it when a look-up of more keys began', async () => {
    const [old, now, cold] = [text('written', 'old'), text('written', 'new'), text('cold', 'cold')];
    await write([old, cold], other);
    await unlink([cold]);
    const gate = gateBefore('write');
    const writing = write([now]);
    await gate.reached;
    // PostgreSQL has committed, and Redis has the old value still.
    postgres.hold('read one');
    const both = cache.connection.hybrid.readMany([now, cold]);
    await until('the answer of PostgreSQL', () => postgres.holds);
    gate.open();
    expect(await writing).toMatchObject({ durable: true });
    const after = ask(now);
    postgres.letGo();
    expect(await both).toMatchObject([{ value: 'old' }, { value: 'cold' }]);
    expect(await after).toMatchObject({ value: 'new' });
  });

  test('is given that value, also by a batch of which a part is under way already', async () => {
    const [old, now, cold] = [text('part', 'old'), text('part', 'new'), text('cold part', 'cold')];
    await write([cold], other);
    await unlink([cold]);
    const before = await readThatBeganBefore(old);
    await write([now]);
    const batch = cache.connection.hybrid.readMany([cold, now]);
    postgres.letGo();
    expect(await batch).toMatchObject([{ value: 'cold' }, { value: 'new' }]);
    await before.answer;
  });

  /** Stops the next call of the hot tier's method before it begins. */
  function gateBefore(method: 'write'): { reached: Promise<void>; open(): void } {
    const tier = cache.connection.tiers.redis?.tier;
    if (!tier) throw new Error('there is no hot tier');
    const original = tier[method].bind(tier);
    let open = () => {};
    let reach = () => {};
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    const reached = new Promise<void>((resolve) => {
      reach = resolve;
    });
    tier[method] = async (...args) => {
      tier[method] = original;
      reach();
      await opened;
      return original(...args);
    };
    return { reached, open };
  }
});
