/** The one algorithm over both tiers, on real servers; what the tiers are asked is counted on the wire. */
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Answer } from '../../src/cache/answer.js';
import { HEAD_BYTES } from '../../src/cache/envelope.js';
import type { RedisTier } from '../../src/cache/redis-tier.js';
import { type Entry, entry, type Found, type Lookup, lookup } from '../../src/cache/tier.js';
import { crawlContents, crawlUrls } from '../../src/kinds/crawl.js';
import { faceEmbeddings } from '../../src/kinds/faces.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { KIND_NAMES } from '../../src/metrics.js';
import { crawlContent, crawlUrl, examples, FACE, keyOf } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { Relay } from './relay.js';
import { counted, freshTenant, messages, type OpenCache, openCache } from './support.js';
import { tierSuite } from './tier-suite.js';

const HOT = { hotWithoutDurable: true };
const MISS = { state: 'miss' };
const ABSENT = { state: 'absent' };

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
  cache = openBehind(redis, postgres);
  other = openCache(world.config(), world.namespace);
  await write(examples('warm-up'));
  await other.connection.begin();
});

beforeEach(() => {
  tenant = freshTenant();
});

afterAll(async () => {
  const logged = [...messages(cache.logs), ...messages(other.logs)];
  expect(logged.filter((message) => message.includes('unavailable'))).toEqual([]);
  expect(logged.filter((message) => message === 'tier operation failed')).toHaveLength(refusedWrites);
  await cache[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
  await postgres[Symbol.asyncDispose]();
  client.disconnect();
  await world[Symbol.asyncDispose]();
});

/** Writes of this file that PostgreSQL cannot take. */
let refusedWrites = 0;

/** The queue's Redis, where writes are journaled, is asked past the relay. */
function openBehind(hot: Relay, permanent: Relay): OpenCache {
  const env = { REDIS_URL: hot.url, QUEUE_REDIS_URL: world.redisUrl, DATABASE_URL: permanent.url };
  return openCache(world.config(env), world.namespace);
}

const tierOf = (opened: OpenCache) => opened.connection.tiers.redis?.tier as RedisTier;
const redisKey = ({ id }: Lookup) => tierOf(other).keyOf(id);
/** What Redis has, whoever may believe it. */
const inRedis = async (one: Lookup) => (await tierOf(other).read([one])).found[0] as Found;
const isHot = async (one: Lookup) => (await inRedis(one)).state === 'value';
const unlink = (one: Lookup) => client.unlink(redisKey(one));

async function forgetRedis(): Promise<void> {
  const keys = await client.keys(`${world.namespace}:*`);
  if (keys.length > 0) await client.unlink(...keys);
}

function hits(entries: readonly Entry[], tier: 'redis' | 'postgres') {
  return entries.map(({ value }) => ({ state: 'hit', value, tier }));
}

/** Without the stamps. */
function plain(answers: readonly Answer[]) {
  return answers.map((one) => (one.state === 'hit' ? { state: one.state, value: one.value, tier: one.tier } : one));
}

async function read(lookups: readonly Lookup[], by = cache) {
  return plain(await by.connection.hybrid.readMany(lookups));
}

async function readOne(one: Lookup, by = cache) {
  return plain([await by.connection.hybrid.read(one.tenantId, one.kind, keyOf(one))])[0];
}

const write = (entries: readonly Entry[], by = cache) => by.connection.hybrid.write(entries, HOT);
const text = (key: string, value: string) => entry(tenant, perceptualHashes, sha256(key), value);

/** The kinds with their places among the examples. */
const EVERY_KIND = examples('any').map(({ kind }, i) => [kind.name, i] as const);

tierSuite(async () => {
  const relays = [await Relay.to(world.redisUrl), await Relay.to(world.databaseUrl)] as const;
  const opened = openBehind(...relays);
  const { tiers, hybrid } = opened.connection;
  return {
    read: async (lookups) => {
      const answers = await hybrid.readMany(lookups);
      return answers.map((one) => (one.state === 'hit' ? { state: 'value', value: one.value } : { state: 'absent' }));
    },
    write: async (entries) => (await hybrid.write(entries, HOT)).entries,
    ping: async () => void (await Promise.all([tiers.redis?.tier.ping(), tiers.postgres.tier.ping()])),
    judge: (error) => tiers.postgres.tier.judge(error),
    relays,
    damage: async (one) => {
      const { kind, tenantId, parts } = one;
      const damage = `update ${kind.table.name} set payload = 'not ours' where tenant_id = $1 and content_hash = $2`;
      await other.connection.pool.query(damage, [tenantId, parts[0]]);
      await client.set(redisKey(one), 'not ours', 'KEEPTTL');
    },
    // A corrupt entry is a counted miss.
    damaged: ABSENT,
    [Symbol.asyncDispose]: async () => {
      await opened[Symbol.asyncDispose]();
      for (const relay of relays) await relay[Symbol.asyncDispose]();
    },
  };
});

test('what is in Redis is answered without asking PostgreSQL [M32] [M1]', async () => {
  await write(examples(tenant));
  redis.reset();
  postgres.reset();
  expect(await read(examples(tenant))).toStrictEqual(hits(examples(tenant), 'redis'));
  expect(redis.roundTrips).toBe(1);
  expect(postgres.roundTrips).toBe(0);
});

test('after the loss of all that Redis had, every value is the same, and Redis has it again [M2]', async () => {
  await write(examples(tenant));
  await forgetRedis();
  postgres.reset();
  expect(await read(examples(tenant))).toStrictEqual(hits(examples(tenant), 'postgres'));
  expect(postgres.roundTrips).toBe(1);
  for (const one of examples(tenant)) await until(`${one.kind.name} in Redis`, () => isHot(one));
  expect(await read(examples(tenant))).toStrictEqual(hits(examples(tenant), 'redis'));
});

test.each(EVERY_KIND)('a single %s comes back from PostgreSQL equal, and then from Redis [M3]', async (name, i) => {
  const one = examples(tenant)[i] as Entry;
  const backfills = () => counted(cache.metrics.cacheBackfills, { kind: name });
  const before = await backfills();
  await write([one], other);
  await unlink(one);
  expect(await readOne(one)).toStrictEqual({ state: 'hit', value: one.value, tier: 'postgres' });
  await until('the backfill', async () => (await backfills()) === before + 1);
  expect(await readOne(one)).toStrictEqual({ state: 'hit', value: one.value, tier: 'redis' });
  expect(await client.pttl(redisKey(one))).toBeGreaterThan(0);
});

test('of a batch only what Redis lacks is asked of PostgreSQL', async () => {
  const [first, ...rest] = examples(tenant) as [Entry, ...Entry[]];
  await write(examples(tenant));
  await unlink(first);
  const missing = lookup(tenant, perceptualHashes, sha256('nobody has it'));
  expect(await read([...rest, missing, first])).toStrictEqual([
    ...hits(rest, 'redis'),
    MISS,
    ...hits([first], 'postgres'),
  ]);
});

test('an empty batch asks nobody', async () => {
  redis.reset();
  postgres.reset();
  expect(await read([])).toEqual([]);
  expect([redis.roundTrips, postgres.roundTrips]).toEqual([0, 0]);
});

test('what nobody has is a miss, and leaves nothing in Redis', async () => {
  const [one] = examples(tenant) as [Entry];
  expect(await readOne(one)).toEqual(MISS);
  expect(await client.exists(redisKey(one))).toBe(0);
});

test('an answer carries the generation and the version of its value, the same from either tier', async () => {
  await write(examples(tenant), other);
  const hot = await cache.connection.hybrid.readMany(examples(tenant));
  for (const one of examples(tenant)) await unlink(one);
  const permanent = await cache.connection.hybrid.readMany(examples(tenant));
  expect(permanent).toStrictEqual(hot.map((one) => ({ ...one, tier: 'postgres' })));
  for (const one of hot) expect(one).toMatchObject({ generation: 1, version: expect.any(Number) });
});

test('a backfill does not replace what was written while PostgreSQL was asked [M3]', async () => {
  const old = text('raced', 'old');
  await write([old], other);
  await unlink(old);
  postgres.hold('read one');
  const reading = readOne(old);
  await until('the answer of PostgreSQL', () => postgres.holds);
  await write([text('raced', 'new')], other);
  postgres.letGo();
  expect(await reading).toMatchObject({ value: 'old' });
  await settled();
  expect(await readOne(old, other)).toMatchObject({ value: 'new', tier: 'redis' });
});

test('refilling a corrupt entry does not replace what was written while PostgreSQL was asked', async () => {
  const key = { contentHash: sha256('raced'), model: 'm' };
  const old = entry(tenant, faceEmbeddings, key, [FACE]);
  await write([old], other);
  await client.set(redisKey(old), 'damaged');
  postgres.hold('read one');
  const reading = readOne(old);
  await until('the answer of PostgreSQL', () => postgres.holds);
  await write([entry(tenant, faceEmbeddings, key, [])], other);
  postgres.letGo();
  expect(await reading).toMatchObject({ value: [FACE] });
  await settled();
  expect(await readOne(old, other)).toMatchObject({ value: [], tier: 'redis' });
});

test('a backfill under way does not revive what another process invalidates meanwhile [M3] [M26]', async () => {
  const entries = examples(tenant);
  await write(entries, other);
  for (const one of entries) await unlink(one);
  postgres.hold('read ');
  const reading = read(entries);
  await until('the answer of PostgreSQL', () => postgres.holds);
  expect(await other.connection.invalidation.invalidate(tenant)).toBe(entries.length);
  postgres.letGo();
  await reading;
  await settled();
  const nothing = entries.map(() => MISS);
  expect(await read(entries, other)).toEqual(nothing);
  await using third = openCache(world.config(), world.namespace);
  expect(await read(entries, third)).toEqual(nothing);
  await until('the reader to hear of it', async () => (await readOne(entries[0] as Entry))?.state === 'miss');
  expect(await read(entries)).toEqual(nothing);
});

test('who invalidates is not given what was asked for before, nor later what that brought to Redis [M26]', async () => {
  const entries = examples(tenant);
  await write(entries, other);
  for (const one of entries) await unlink(one);
  postgres.hold('read ');
  const reading = read(entries);
  await until('the answer of PostgreSQL', () => postgres.holds);
  expect(await cache.connection.invalidation.invalidate(tenant)).toBe(entries.length);
  postgres.letGo();
  const nothing = entries.map(() => MISS);
  expect(await reading).toEqual(nothing);
  expect(await read(entries)).toEqual(nothing);
  await settled();
  expect(await read(entries)).toEqual(nothing);
  // What is written from now on is there again, in both tiers.
  await write(entries);
  expect(await read(entries)).toEqual(hits(entries, 'redis'));
  for (const one of entries) await unlink(one);
  expect(await read(entries)).toEqual(hits(entries, 'postgres'));
});

test('what Redis still has of an earlier generation is not believed, and is overwritten', async () => {
  const one = text('old generation', 'old');
  await write([one], other);
  const old = (await client.getBuffer(redisKey(one))) as Buffer;
  await other.connection.invalidation.invalidate(tenant);
  await client.set(redisKey(one), old);
  expect(await readOne(one, other)).toEqual(MISS);
  await write([text('old generation', 'new')], other);
  await client.set(redisKey(one), old);
  expect(await readOne(one, other)).toEqual({ state: 'hit', value: 'new', tier: 'postgres' });
  await until('the new value', async () => (await client.getBuffer(redisKey(one)))?.equals(old) === false);
  expect(await readOne(one, other)).toEqual({ state: 'hit', value: 'new', tier: 'redis' });
});

const DAMAGE: [string, (whole: Buffer) => Buffer][] = [
  ['no head', () => Buffer.from('damaged')],
  ['nothing in it', () => Buffer.alloc(0)],
  ['half a head', (whole) => whole.subarray(0, HEAD_BYTES - 1)],
  ['a value that cannot be read', (whole) => Buffer.concat([whole.subarray(0, HEAD_BYTES), Buffer.from([0xff])])],
];

test.each(EVERY_KIND.flatMap(([name, i]) => DAMAGE.map(([what, damage]) => [name, what, i, damage] as const)))(
  'a corrupt %s in Redis, %s, is counted and logged, answered from PostgreSQL and refilled [M21]',
  async (name, _what, i, damage) => {
    const one = examples(tenant)[i] as Entry;
    await write([one], other);
    const whole = (await client.getBuffer(redisKey(one))) as Buffer;
    await client.set(redisKey(one), damage(whole));
    const corrupt = () => counted(cache.metrics.tierErrors, { tier: 'redis', operation: 'read', reason: 'corrupt' });
    const before = await corrupt();
    cache.logs.length = 0;
    expect(await readOne(one)).toStrictEqual({ state: 'hit', value: one.value, tier: 'postgres' });
    expect(await corrupt()).toBe(before + 1);
    const line = cache.logs.find(({ msg }) => msg === 'corrupt cache entry, read as a miss');
    expect(line).toMatchObject({ tier: 'redis', kind: name, key: one.id, level: 'warn' });
    await until('the refill', async () => (await client.getBuffer(redisKey(one)))?.equals(whole));
    expect(await readOne(one)).toStrictEqual({ state: 'hit', value: one.value, tier: 'redis' });
  },
);

test.each(DAMAGE)(
  'a corrupt entry that nobody else has, %s, is a miss, and is removed [M21]',
  async (_what, damage) => {
    const [one, ...rest] = examples(tenant) as [Entry, ...Entry[]];
    await write([one, ...rest], other);
    const whole = (await client.getBuffer(redisKey(one))) as Buffer;
    await other.connection.pool.query('delete from face_embeddings_cache where tenant_id = $1', [tenant]);
    await client.set(redisKey(one), damage(whole));
    expect(await read([one, ...rest])).toEqual([MISS, ...hits(rest, 'redis')]);
    await settled();
    expect(await inRedis(one)).toEqual(ABSENT);
  },
);

test('a corrupt entry that says it is newer than what PostgreSQL has is removed, and can be written again', async () => {
  const one = text('newer', 'right');
  await write([one], other);
  const ahead = (await client.getBuffer(redisKey(one))) as Buffer;
  ahead.writeUInt32BE(ahead.readUInt32BE(20) + 1_000, 20);
  await client.set(redisKey(one), Buffer.concat([ahead.subarray(0, HEAD_BYTES), Buffer.from([0xff])]));
  expect(await readOne(one)).toEqual({ state: 'hit', value: 'right', tier: 'postgres' });
  await settled();
  expect(await inRedis(one)).toEqual(ABSENT);
  expect(await readOne(one)).toEqual({ state: 'hit', value: 'right', tier: 'postgres' });
  await until('a later value in Redis', async () => {
    await write([text('newer', 'later')], other);
    return isHot(one);
  });
  expect(await readOne(one)).toEqual({ state: 'hit', value: 'later', tier: 'redis' });
});

test('bytes as long as a head that no run of this Redis wrote are a miss, and are refilled', async () => {
  const one = text('garbage', 'right');
  await write([one], other);
  for (const garbage of [Buffer.alloc(HEAD_BYTES, 0xff), Buffer.from('x'.repeat(200))]) {
    await client.set(redisKey(one), garbage);
    expect(await readOne(one)).toEqual({ state: 'hit', value: 'right', tier: 'postgres' });
    await until('the refill', () => isHot(one));
  }
});

test('what another format of the kind has left in Redis is a miss, and is refilled', async () => {
  const one = text('format', 'right');
  await write([one], other);
  const another = (await client.getBuffer(redisKey(one))) as Buffer;
  another.writeUInt8(99, HEAD_BYTES - 1);
  await client.set(redisKey(one), another);
  expect(await readOne(one)).toEqual({ state: 'hit', value: 'right', tier: 'postgres' });
  await until('the refill', () => isHot(one));
});

test('an entry that is corrupt in PostgreSQL too is a miss, until it is written again', async () => {
  const [one] = examples(tenant) as [Entry];
  await write([one], other);
  await unlink(one);
  const damage = `update ${one.kind.table.name} set payload = 'damaged' where tenant_id = $1`;
  await other.connection.pool.query(damage, [tenant]);
  const corrupt = () => counted(cache.metrics.tierErrors, { tier: 'postgres', operation: 'read', reason: 'corrupt' });
  const before = await corrupt();
  expect(await readOne(one)).toEqual(MISS);
  expect(await corrupt()).toBe(before + 1);
  await write([one]);
  await unlink(one);
  expect(await readOne(one)).toMatchObject({ value: one.value });
});

test('Redis gets nothing that PostgreSQL refused', async () => {
  const bad = entry(tenant, crawlUrls, sha256('bad'), crawlUrl('bad', { rawKey: 'no\0text' }));
  const good = text('good', 'text');
  await expect(write([good, bad])).rejects.toThrow();
  refusedWrites += 1;
  expect(await isHot(bad)).toBe(false);
  expect(await isHot(good)).toBe(false);
});

test('what PostgreSQL refuses of one caller does not take along what others write at the same time', async () => {
  const bad = entry(tenant, perceptualHashes, sha256('bad'), 'no\0text');
  const good = ['a', 'b', 'c'].map((key) => text(key, key));
  const [refused, ...written] = await Promise.allSettled([bad, ...good].map((one) => write([one])));
  // Once together, and once alone.
  refusedWrites += 2;
  expect(refused?.status).toBe('rejected');
  expect(written).toMatchObject(good.map((one) => ({ value: { durable: true, entries: [one] } })));
  expect(await read([bad, ...good], other)).toEqual([MISS, ...hits(good, 'redis')]);
});

test('Redis gets nothing before PostgreSQL has committed [M49]', async () => {
  const [one] = examples(tenant) as [Entry];
  postgres.hold('write ');
  const writing = write([one]);
  await until('the answer of PostgreSQL', () => postgres.holds);
  expect(await isHot(one)).toBe(false);
  postgres.letGo();
  expect(await writing).toMatchObject({ durable: true, entries: [one] });
  expect(await isHot(one)).toBe(true);
});

test('of a kind that keeps its first value, Redis gets the one that stays', async () => {
  const content = (name: string) => entry(tenant, crawlContents, sha256('kept'), crawlContent(name));
  const [first, later] = [content('first'), content('later')];
  await write([first], other);
  await unlink(first);
  expect(await write([later])).toMatchObject({ durable: true, entries: [{ value: first.value }] });
  expect(await readOne(first)).toEqual({ state: 'hit', value: first.value, tier: 'redis' });
});

test('a later value is what both tiers have', async () => {
  await write([text('changed', 'first')]);
  await write([text('changed', 'second')]);
  const one = text('changed', '');
  expect(await readOne(one, other)).toEqual({ state: 'hit', value: 'second', tier: 'redis' });
  await unlink(one);
  expect(await readOne(one, other)).toEqual({ state: 'hit', value: 'second', tier: 'postgres' });
});

const version = (url: string, name: string, fetchedAt: number) =>
  entry(tenant, crawlUrls, sha256(url), crawlUrl(name, { fetchedAt }));

test('an older version of a URL that is written late does not become what the URL is known as', async () => {
  const newer = version('late', 'newer', 2_000);
  await write([newer]);
  await write([version('late', 'older', 1_000)]);
  expect(await readOne(newer, other)).toMatchObject({ value: newer.value });
  await unlink(newer);
  expect(await readOne(newer, other)).toMatchObject({ value: newer.value, tier: 'postgres' });
});

test('of two versions of a URL that are written at once the one fetched last counts, and both are kept', async () => {
  const [older, newer] = [version('at once', 'older', 1_000), version('at once', 'newer', 2_000)];
  for (const written of await Promise.all([write([newer]), write([older])])) {
    expect(written).toMatchObject({ durable: true, entries: [{ value: newer.value }] });
  }
  expect(await readOne(newer)).toMatchObject({ value: newer.value });
  const kept = 'select raw_key from crawl_cache where tenant_id = $1 order by fetched_at';
  const { rows } = await other.connection.pool.query(kept, [tenant]);
  expect(rows).toEqual([{ raw_key: 'raw/older' }, { raw_key: 'raw/newer' }]);
});

/** As many overwrites of five keys as two processes make who take turns. */
async function overwrite(each: (round: number, key: number) => Entry): Promise<void> {
  const writer = async (by: OpenCache, key: number, parity: number) => {
    for (let round = 0; round < 20; round++) await write([each(2 * round + parity, key)], by);
  };
  await Promise.all([0, 1, 2, 3, 4].flatMap((key) => [writer(cache, key, 0), writer(other, key, 1)]));
}

/** The same value in the same version in both tiers, of each, and nothing of it left to repair. */
async function expectTiersEqual(lookups: readonly Lookup[]): Promise<void> {
  const permanent = await other.connection.tiers.postgres.tier.read(lookups);
  const hot = await Promise.all(lookups.map(inRedis));
  const stamped = (found: readonly Found[]) =>
    found.map((one) => (one.state === 'value' ? [one.value, one.version, one.generation] : one.state));
  expect(stamped(hot)).toEqual(stamped(permanent));
  expect(permanent.map(({ state }) => state)).toEqual(lookups.map(() => 'value'));
  for (const by of [cache, other]) {
    expect(await read(lookups, by)).toMatchObject(
      permanent.map((one) => ({ value: (one as { value: unknown }).value })),
    );
  }
  const repairs = 'select count(*)::int as n from redis_repairs where tenant_id = $1';
  await until('every overwrite to be confirmed', async () => {
    const { rows } = await other.connection.pool.query<{ n: number }>(repairs, [tenant]);
    return rows[0]?.n === 0;
  });
  expect(stamped(await Promise.all(lookups.map(inRedis)))).toEqual(stamped(permanent));
}

test('two processes that overwrite the same keys leave both tiers equal [M49]', async () => {
  await overwrite((round, key) => text(`overwritten ${key}`, `${round}`));
  await expectTiersEqual([0, 1, 2, 3, 4].map((key) => text(`overwritten ${key}`, '')));
});

test('two processes that store versions of the same URLs leave both tiers equal, with the one fetched last', async () => {
  const order = (round: number) => (round * 17) % 40;
  await overwrite((round, key) => version(`${key}`, `${key}-${order(round)}`, 1_000 + order(round)));
  const lookups = [0, 1, 2, 3, 4].map((key) => version(`${key}`, `${key}-39`, 1_039));
  await expectTiersEqual(lookups);
  expect(await read(lookups)).toMatchObject(lookups.map(({ value }) => ({ value })));
});

test('every look-up is counted once, by kind and result [M46]', async () => {
  await using own = openCache(world.config(), world.namespace);
  const requests = async (kind: string) =>
    Object.fromEntries(
      await Promise.all(
        ['redis_hit', 'postgres_hit', 'miss', 'error'].map(
          async (result) => [result, await counted(own.metrics.cacheRequests, { kind, result })] as const,
        ),
      ),
    );
  await read(examples(tenant), own);
  await write(examples(tenant), other);
  for (const one of examples(tenant)) await unlink(one);
  await read(examples(tenant), own);
  for (const one of examples(tenant)) await until('the backfill', () => isHot(one));
  await read(examples(tenant), own);
  await read(examples(tenant), own);
  for (const kind of KIND_NAMES) {
    expect(await requests(kind), kind).toEqual({ redis_hit: 2, postgres_hit: 1, miss: 1, error: 0 });
  }
  expect(await counted(own.metrics.tierErrors, {})).toBe(0);
});

test('without a Redis tier PostgreSQL answers alone', async () => {
  await using alone = openCache(world.config({ REDIS_URL: 'none' }), world.namespace);
  expect(alone.connection.tiers.redis).toBeNull();
  expect(await write(examples(tenant), alone)).toMatchObject({ durable: true });
  expect(await read(examples(tenant), alone)).toStrictEqual(hits(examples(tenant), 'postgres'));
  for (const one of examples(tenant)) expect(await isHot(one)).toBe(false);
});

test('closing waits for the backfills under way', async () => {
  const [one] = examples(tenant) as [Entry];
  await write([one], other);
  await unlink(one);
  {
    await using closing = openCache(world.config(), world.namespace);
    expect(await readOne(one, closing)).toMatchObject({ tier: 'postgres' });
  }
  expect(await isHot(one)).toBe(true);
});

/** Resolves when no backfill of `cache` is under way: waiting for them is what closing does first. */
async function settled(): Promise<void> {
  await cache.connection.hybrid.close();
}
