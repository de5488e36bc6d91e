/** The one algorithm over both tiers, on real servers; what the tiers are asked is counted on the wire. */
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type Entry, entry, lookup } from '../../src/cache/tier.js';
import { crawlContents, crawlUrls } from '../../src/kinds/crawl.js';
import { faceEmbeddings } from '../../src/kinds/faces.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { KIND_NAMES } from '../../src/metrics.js';
import { crawlContent, crawlUrl, examples, FACE } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { Relay } from './relay.js';
import { counted, freshTenant, messages, type OpenCache, openCache } from './support.js';

const HOT = { hotWithoutDurable: true };

let world: World;
let client: Redis;
let redis: Relay;
let postgres: Relay;
let cache: OpenCache;
/** Another process: the same servers, nothing between. */
let other: OpenCache;
let tenant: string;

beforeAll(async () => {
  world = await createWorld();
  client = redisClient(world);
  redis = await Relay.to(world.redisUrl);
  postgres = await Relay.to(world.databaseUrl);
  cache = openCache(world.config({ REDIS_URL: redis.url, DATABASE_URL: postgres.url }), world.namespace);
  other = openCache(world.config(), world.namespace);
  await cache.connection.hybrid.read('warm-up', perceptualHashes, sha256('warm-up'));
});

beforeEach(() => {
  tenant = freshTenant();
});

afterAll(async () => {
  const logged = [...messages(cache.logs), ...messages(other.logs)];
  expect(logged.filter((message) => message.includes('unavailable'))).toEqual([]);
  await cache[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
  await postgres[Symbol.asyncDispose]();
  client.disconnect();
  await world[Symbol.asyncDispose]();
});

const keyOf = (one: { kind: Entry['kind']; key: unknown }) =>
  cache.connection.tiers.redis?.tier.keyOf(tenant, one) ?? '';
const isHot = async (one: Entry) => (await client.exists(keyOf(one))) === 1;

async function forgetRedis(): Promise<void> {
  const keys = await client.keys(`${world.namespace}:*`);
  if (keys.length > 0) await client.unlink(...keys);
}

function hits(entries: readonly Entry[], tier: 'redis' | 'postgres') {
  return entries.map(({ value }) => ({ state: 'hit', value, tier }));
}

test('what is in Redis is answered without asking PostgreSQL', async () => {
  await cache.connection.hybrid.write(tenant, examples(), HOT);
  redis.reset();
  postgres.reset();
  expect(await cache.connection.hybrid.readMany(tenant, examples())).toStrictEqual(hits(examples(), 'redis'));
  expect(redis.roundTrips).toBe(1);
  expect(postgres.roundTrips).toBe(0);
});

test('after the loss of all that Redis had, every value is the same, and Redis has it again', async () => {
  await cache.connection.hybrid.write(tenant, examples(), HOT);
  await forgetRedis();
  postgres.reset();
  expect(await cache.connection.hybrid.readMany(tenant, examples())).toStrictEqual(hits(examples(), 'postgres'));
  expect(postgres.roundTrips).toBe(1);
  for (const one of examples()) await until(`${one.kind.name} in Redis`, () => isHot(one));
  expect(await cache.connection.hybrid.readMany(tenant, examples())).toStrictEqual(hits(examples(), 'redis'));
});

test.each(examples().map((one) => [one.kind.name, one] as const))(
  'a single %s comes back from PostgreSQL equal, and then from Redis',
  async (name, one) => {
    const backfills = () => counted(cache.metrics.cacheBackfills, { kind: name });
    const before = await backfills();
    await other.connection.hybrid.write(tenant, [one], HOT);
    await client.unlink(keyOf(one));
    const read = () => cache.connection.hybrid.read(tenant, one.kind, one.key);
    expect(await read()).toStrictEqual({ state: 'hit', value: one.value, tier: 'postgres' });
    await until('the backfill', async () => (await backfills()) === before + 1);
    expect(await read()).toStrictEqual({ state: 'hit', value: one.value, tier: 'redis' });
    expect(await client.pttl(keyOf(one))).toBeGreaterThan(0);
  },
);

test('of a batch only what Redis lacks is asked of PostgreSQL', async () => {
  const [first, ...rest] = examples() as [Entry, ...Entry[]];
  await cache.connection.hybrid.write(tenant, examples(), HOT);
  await client.unlink(keyOf(first));
  const missing = lookup(perceptualHashes, sha256('nobody has it'));
  expect(await cache.connection.hybrid.readMany(tenant, [...rest, missing, first])).toStrictEqual([
    ...hits(rest, 'redis'),
    { state: 'miss' },
    ...hits([first], 'postgres'),
  ]);
});

test('an empty batch asks nobody', async () => {
  redis.reset();
  postgres.reset();
  expect(await cache.connection.hybrid.readMany(tenant, [])).toEqual([]);
  expect([redis.roundTrips, postgres.roundTrips]).toEqual([0, 0]);
});

test('what nobody has is a miss, and leaves nothing in Redis', async () => {
  const [one] = examples() as [Entry];
  expect(await cache.connection.hybrid.read(tenant, one.kind, one.key)).toEqual({ state: 'miss' });
  expect(await isHot(one)).toBe(false);
});

test('a backfill does not replace what was written while PostgreSQL was asked', async () => {
  const key = sha256('raced');
  await other.connection.hybrid.write(tenant, [entry(perceptualHashes, key, 'old')], HOT);
  await client.unlink(keyOf(lookup(perceptualHashes, key)));
  postgres.hold();
  const reading = cache.connection.hybrid.read(tenant, perceptualHashes, key);
  await until('the answer of PostgreSQL', () => postgres.holds);
  await other.connection.hybrid.write(tenant, [entry(perceptualHashes, key, 'new')], HOT);
  postgres.letGo();
  expect(await reading).toMatchObject({ value: 'old' });
  await settled();
  expect(await other.connection.hybrid.read(tenant, perceptualHashes, key)).toMatchObject({
    value: 'new',
    tier: 'redis',
  });
});

test('refilling a corrupt entry does not replace what was written while PostgreSQL was asked', async () => {
  const key = { contentHash: sha256('raced'), model: 'm' };
  const old = entry(faceEmbeddings, key, [FACE]);
  await other.connection.hybrid.write(tenant, [old], HOT);
  await client.set(keyOf(old), 'damaged');
  postgres.hold();
  const reading = cache.connection.hybrid.read(tenant, faceEmbeddings, key);
  await until('the answer of PostgreSQL', () => postgres.holds);
  await other.connection.hybrid.write(tenant, [entry(faceEmbeddings, key, [])], HOT);
  postgres.letGo();
  expect(await reading).toMatchObject({ value: [FACE] });
  await settled();
  expect(await other.connection.hybrid.read(tenant, faceEmbeddings, key)).toMatchObject({ value: [], tier: 'redis' });
});

test.each(
  examples()
    .filter(({ kind }) => kind.name !== 'perceptual_hash')
    .map((one) => [one.kind.name, one] as const),
)('a corrupt %s in Redis is counted and logged, answered from PostgreSQL and refilled', async (name, one) => {
  await other.connection.hybrid.write(tenant, [one], HOT);
  await client.set(keyOf(one), 'damaged');
  const corrupt = () => counted(cache.metrics.tierErrors, { tier: 'redis', operation: 'read', reason: 'corrupt' });
  const before = await corrupt();
  cache.logs.length = 0;
  const answer = await cache.connection.hybrid.read(tenant, one.kind, one.key);
  expect(answer).toStrictEqual({ state: 'hit', value: one.value, tier: 'postgres' });
  expect(await corrupt()).toBe(before + 1);
  const line = cache.logs.find(({ msg }) => msg === 'corrupt cache entry, read as a miss');
  expect(line).toMatchObject({ tier: 'redis', kind: name, level: 'warn' });
  await until('the refill', async () => (await client.getBuffer(keyOf(one)))?.equals(one.kind.encode(one.value)));
});

test('a corrupt entry that nobody else has is a miss, and is removed', async () => {
  const [one] = examples() as [Entry];
  await client.set(keyOf(one), 'damaged');
  expect(await cache.connection.hybrid.read(tenant, one.kind, one.key)).toEqual({ state: 'miss' });
  await until('the removal', async () => !(await isHot(one)));
});

test('an entry that is corrupt in PostgreSQL too is a miss, until it is written again', async () => {
  const [one] = examples() as [Entry];
  await other.connection.hybrid.write(tenant, [one], HOT);
  await client.unlink(keyOf(one));
  const text = `update ${one.kind.table.name} set payload = 'damaged' where tenant_id = $1`;
  await other.connection.pool.query(text, [tenant]);
  expect(await cache.connection.hybrid.read(tenant, one.kind, one.key)).toEqual({ state: 'miss' });
  await cache.connection.hybrid.write(tenant, [one], HOT);
  await client.unlink(keyOf(one));
  expect(await cache.connection.hybrid.read(tenant, one.kind, one.key)).toMatchObject({ value: one.value });
});

test('Redis gets nothing that PostgreSQL refused', async () => {
  const bad = entry(crawlUrls, sha256('bad'), crawlUrl('bad', { rawKey: 'no\0text' }));
  const good = entry(perceptualHashes, sha256('good'), 'text');
  await expect(cache.connection.hybrid.write(tenant, [good, bad], HOT)).rejects.toThrow();
  expect(await isHot(bad)).toBe(false);
  expect(await isHot(good)).toBe(false);
});

test('Redis gets nothing before PostgreSQL has committed', async () => {
  const [one] = examples() as [Entry];
  postgres.hold();
  const writing = cache.connection.hybrid.write(tenant, [one], HOT);
  await until('the answer of PostgreSQL', () => postgres.holds);
  expect(await isHot(one)).toBe(false);
  postgres.letGo();
  expect(await writing).toEqual({ durable: true, entries: [one] });
  expect(await isHot(one)).toBe(true);
});

test('of a kind that keeps its first value, Redis gets the one that stays', async () => {
  const key = sha256('kept');
  const first = entry(crawlContents, key, crawlContent('first'));
  const later = entry(crawlContents, key, crawlContent('later'));
  await other.connection.hybrid.write(tenant, [first], HOT);
  await client.unlink(keyOf(first));
  expect(await cache.connection.hybrid.write(tenant, [later], HOT)).toEqual({ durable: true, entries: [first] });
  expect(await cache.connection.hybrid.read(tenant, crawlContents, key)).toEqual({
    state: 'hit',
    value: first.value,
    tier: 'redis',
  });
});

test('a later value is what both tiers have', async () => {
  const key = sha256('changed');
  await cache.connection.hybrid.write(tenant, [entry(perceptualHashes, key, 'first')], HOT);
  await cache.connection.hybrid.write(tenant, [entry(perceptualHashes, key, 'second')], HOT);
  const read = () => other.connection.hybrid.read(tenant, perceptualHashes, key);
  expect(await read()).toEqual({ state: 'hit', value: 'second', tier: 'redis' });
  await client.unlink(keyOf(lookup(perceptualHashes, key)));
  expect(await read()).toEqual({ state: 'hit', value: 'second', tier: 'postgres' });
});

test('an older version of a URL that is written late does not become what the URL is known as', async () => {
  const key = sha256('https://example.com/versions.jpg');
  const version = (name: string, fetchedAt: number) => entry(crawlUrls, key, crawlUrl(name, { fetchedAt }));
  const newer = version('newer', 2_000);
  await cache.connection.hybrid.write(tenant, [newer], HOT);
  await cache.connection.hybrid.write(tenant, [version('older', 1_000)], HOT);
  const read = () => other.connection.hybrid.read(tenant, crawlUrls, key);
  expect(await read()).toMatchObject({ value: newer.value });
  await client.unlink(keyOf(newer));
  expect(await read()).toMatchObject({ value: newer.value, tier: 'postgres' });
});

test('every look-up is counted once, by kind and result', async () => {
  await using own = openCache(world.config(), world.namespace);
  const requests = async (kind: string) =>
    Object.fromEntries(
      await Promise.all(
        ['redis_hit', 'postgres_hit', 'miss', 'error'].map(
          async (result) => [result, await counted(own.metrics.cacheRequests, { kind, result })] as const,
        ),
      ),
    );
  const { hybrid } = own.connection;
  await hybrid.readMany(tenant, examples());
  await other.connection.hybrid.write(tenant, examples(), HOT);
  for (const one of examples()) await client.unlink(keyOf(one));
  await hybrid.readMany(tenant, examples());
  for (const one of examples()) await until('the backfill', () => isHot(one));
  await hybrid.readMany(tenant, examples());
  await hybrid.readMany(tenant, examples());
  for (const kind of KIND_NAMES) {
    expect(await requests(kind), kind).toEqual({ redis_hit: 2, postgres_hit: 1, miss: 1, error: 0 });
  }
  expect(await counted(own.metrics.tierErrors, {})).toBe(0);
});

test('without a Redis tier PostgreSQL answers alone', async () => {
  await using alone = openCache(world.config({ REDIS_URL: 'none' }), world.namespace);
  expect(alone.connection.tiers.redis).toBeNull();
  expect(await alone.connection.hybrid.write(tenant, examples(), HOT)).toMatchObject({ durable: true });
  expect(await alone.connection.hybrid.readMany(tenant, examples())).toStrictEqual(hits(examples(), 'postgres'));
  for (const one of examples()) expect(await isHot(one)).toBe(false);
});

test('closing waits for the backfills under way', async () => {
  const [one] = examples() as [Entry];
  await other.connection.hybrid.write(tenant, [one], HOT);
  await client.unlink(keyOf(one));
  {
    await using closing = openCache(world.config(), world.namespace);
    expect(await closing.connection.hybrid.read(tenant, one.kind, one.key)).toMatchObject({ tier: 'postgres' });
  }
  expect(await isHot(one)).toBe(true);
});

/** Resolves when no backfill of `cache` is under way: waiting for them is what closing does first. */
async function settled(): Promise<void> {
  await cache.connection.hybrid.close();
}
