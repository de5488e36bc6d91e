import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { entry, type FoundValue, type Stamp } from '../../src/cache/tier.js';
import { verify } from '../../src/cache/verify.js';
import { TierUnavailableError } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { KINDS } from '../../src/kinds/index.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { robotsFiles } from '../../src/kinds/robots.js';
import { FACE, ODD_FACE } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

const HASH = sha256('verify');
const ORIGIN = 'https://example.com';
const NOTHING = { void: 0, dead: 0, repairing: 0, unjournaled: 0 };

let world: World;
let cache: OpenCache;
let tenant: string;

beforeAll(async () => {
  world = await createWorld();
});

afterAll(() => world[Symbol.asyncDispose]());

beforeEach(() => {
  cache = openCache(world.config(), world.namespace);
  tenant = freshTenant();
});

afterEach(async () => {
  expect(await cache.service.clearAllCache({ confirm: true })).toBe(true);
  await cache[Symbol.asyncDispose]();
});

async function fill(): Promise<void> {
  const { service, records } = cache;
  await service.cacheFaceEmbeddings(HASH, tenant, [FACE, ODD_FACE]);
  await service.cacheFaceDetection(HASH, tenant, []);
  await service.cachePerceptualHash(HASH, tenant, 'opaque');
  await service.cacheSearchResults(HASH, tenant, 5, [{ b: 1, a: [0.1, null] }]);
  await service.storeCrawledImage('https://example.com/a.jpg', HASH, { rawKey: 'raw' }, tenant);
  await records.reject(tenant, { url: 'https://example.com/b.jpg' }, { reason: 'gone', detail: '410', jobId: null });
  const robots = { origin: ORIGIN, rules: '', trouble: null, fetchedAt: 0, expiresAt: 1 };
  await cache.connection.hybrid.write([entry(tenant, robotsFiles, sha256(ORIGIN), robots)], {
    hotWithoutDurable: false,
  });
}

const one = (value: string, hash = HASH) => entry(tenant, perceptualHashes, hash, value);
const redis = () => cache.connection.tiers.redis?.tier;

/** Writes to Redis behind the cache's back. */
async function plant(value: string, stamp: Stamp, hash = HASH, options = {}): Promise<void> {
  await redis()?.write([{ ...one(value, hash), ...stamp }], options);
}

/** A value that both tiers have, and its stamp. */
async function written(value = 'opaque'): Promise<Stamp> {
  expect(await cache.service.cachePerceptualHash(HASH, tenant, value)).toBe(true);
  const [{ generation, version }] = (await cache.connection.tiers.postgres.tier.read([one(value)])) as [FoundValue];
  return { generation, version };
}

test('two tiers that agree have no differences, whether Redis was written or filled from PostgreSQL [M49]', async () => {
  await fill();
  const each = Object.fromEntries(KINDS.map(({ name }) => [name, 1]));
  const clean = {
    differences: [],
    compared: KINDS.length,
    sampled: { redis: each, postgres: each },
    passedOver: NOTHING,
    pendingReplays: 0,
  };
  expect(await verify(cache.connection)).toEqual(clean);

  const client = redisClient(world);
  const entries = (await client.keys(`${world.namespace}:*:${tenant}:*`)).filter(
    (key) => !key.includes(':generation:'),
  );
  expect(await client.del(...entries)).toBe(KINDS.length);
  client.disconnect();
  expect(await verify(cache.connection)).toEqual({ ...clean, compared: 0, sampled: { redis: {}, postgres: each } });
  await cache.service.getCachedFaceEmbeddings(HASH, tenant);
  await cache.service.getCachedFaceDetection(HASH, tenant);
  await cache.service.getCachedSearchResults(HASH, tenant, 5);
  await cache.service.shouldSkipCrawledImage('https://example.com/a.jpg', HASH, tenant);
  await cache.connection.hybrid.close(); // backfills are done
  const { sampled, differences } = await verify(cache.connection);
  expect(Object.keys(sampled.redis).sort()).toEqual([
    'crawl_content',
    'crawl_url',
    'face_detection',
    'face_embedding',
    'search_results',
  ]);
  expect(differences).toEqual([]);
});

test('an entry of Redis that PostgreSQL does not have, or has otherwise, is a difference', async () => {
  const stamp = await written();
  const where = { kind: 'perceptual_hash', tenantId: tenant, id: one('').id };
  await plant('later', { ...stamp, version: stamp.version + 1 });
  expect((await verify(cache.connection)).differences).toEqual([{ ...where, what: 'another version in Redis' }]);
  await redis()?.forget([{ id: one('').id, before: stamp.generation + 1 }]);
  await plant('same version', stamp);
  expect((await verify(cache.connection)).differences).toEqual([{ ...where, what: 'another value in Redis' }]);
  await redis()?.forget([{ id: one('').id, before: stamp.generation + 1 }]);
  await plant('opaque', stamp);
  await plant('orphan', stamp, sha256('orphan'));
  const id = one('', sha256('orphan')).id;
  expect((await verify(cache.connection)).differences).toEqual([
    { ...where, id, what: 'in Redis and not in PostgreSQL' },
  ]);
});

test('bytes in Redis that nobody can read are a difference', async () => {
  await written();
  const client = redisClient(world);
  await client.set(redis()?.keyOf(one('').id) as string, 'short');
  client.disconnect();
  const [difference] = (await verify(cache.connection)).differences;
  expect(difference).toMatchObject({ tenantId: tenant, what: 'unreadable in Redis' });
});

test('what is not served from Redis is no difference, and is counted apart', async () => {
  const stamp = await written();
  const named = (name: string) => sha256(`${tenant} ${name}`);
  await plant('dead', { generation: stamp.generation - 1, version: stamp.version }, named('dead'));
  await plant('hot only', stamp, named('unjournaled'), { unjournaled: true });
  await redis()?.drop([{ id: one('', named('dropped')).id, version: stamp.version }]);
  const client = redisClient(world);
  const other = await client.getBuffer(redis()?.keyOf(one('').id) as string);
  await client.set(redis()?.keyOf(one('', named('another run')).id) as string, Buffer.from(other?.fill(7, 0, 8) ?? []));
  client.disconnect();
  expect(await verify(cache.connection)).toMatchObject({
    differences: [],
    sampled: { redis: { perceptual_hash: 5 }, postgres: { perceptual_hash: 1 } },
    passedOver: { void: 2, dead: 1, repairing: 0, unjournaled: 1 },
  });
});

test('a difference that is gone at the second look is none', async () => {
  const stamp = await written();
  await plant('in flight', { ...stamp, version: stamp.version + 1 });
  const looking = verify(cache.connection);
  // Between the looks, a second apart, the write of which Redis has told already is committed.
  await cache.connection.pool.query(
    'update perceptual_hash_cache set version = version + 1, phash = $2 where tenant_id = $1',
    [tenant, 'in flight'],
  );
  expect((await looking).differences).toEqual([]);
});

test('as many entries are looked at as were asked for, of every table', async () => {
  const hashes = Array.from({ length: 700 }, (_, i) => sha256(`many ${i}`));
  const entries = hashes.map((hash) => one(hash.slice(0, 16), hash));
  // What other tests have had dropped leaves tombstones in Redis for a while.
  await using alone = openCache(world.config(), `${world.namespace}-alone`);
  await alone.connection.hybrid.write(entries, { hotWithoutDurable: false });
  const all = await verify(alone.connection);
  expect(all.sampled).toEqual({ redis: { perceptual_hash: 700 }, postgres: { perceptual_hash: 700 } });
  const some = await verify(alone.connection, { sample: 50 });
  expect(some.sampled).toEqual({ redis: { perceptual_hash: 50 }, postgres: { perceptual_hash: 50 } });
  expect([...all.differences, ...some.differences]).toEqual([]);
});

test('writes that wait for PostgreSQL are counted', async () => {
  // Nobody has asked this cache for anything, so it replays nothing.
  const idle = openCache(world.config(), `${world.namespace}-idle`);
  const stamp = { generation: 1, version: 1 };
  expect(await idle.connection.journal?.keep([{ ...one('waits'), ...stamp }])).toBe(true);
  expect(await verify(idle.connection)).toMatchObject({ differences: [], pendingReplays: 1 });
  await idle[Symbol.asyncDispose]();
});

test('without Redis, PostgreSQL is sampled and nothing compared', async () => {
  await written();
  const plain = openCache(world.config({ REDIS_URL: 'none' }), world.namespace);
  expect(await verify(plain.connection)).toEqual({
    sampled: { redis: {}, postgres: { perceptual_hash: 1 } },
    compared: 0,
    differences: [],
    passedOver: NOTHING,
    pendingReplays: null,
  });
  await plain[Symbol.asyncDispose]();
});

test.each([
  ['redis', { REDIS_URL: 'redis://127.0.0.1:1/0' }],
  ['postgres', { DATABASE_URL: 'postgresql://nobody@127.0.0.1:1/none' }],
])('a tier that is away (%s) is an error, and not a clean answer', async (tier, env) => {
  const away = openCache(world.config(env), world.namespace);
  const verifying = verify(away.connection);
  await expect(verifying).rejects.toBeInstanceOf(TierUnavailableError);
  await expect(verifying).rejects.toMatchObject({ tier });
  await away[Symbol.asyncDispose]();
});

test('samples of a part of Redis begin anywhere in it', async () => {
  // A page of SCAN is 500 keys: the same few thousand would else be passed by for ever.
  const many = Array.from({ length: 4_000 }, (_, i) => sha256(`${tenant} ${i}`));
  const client = redisClient(world);
  await client.mset(many.flatMap((hash) => [redis()?.keyOf(one('', hash).id) ?? '', 'damaged']));
  client.disconnect();
  const seen = new Set<string>();
  await until('another part to be looked at', async () => {
    const { differences } = await verify(cache.connection, { sample: 50 });
    for (const { id } of differences) seen.add(id);
    return seen.size > 50;
  });
});

test('entries count as Redis has them, also where it lost what it was told of PostgreSQL', async () => {
  await written();
  const client = redisClient(world);
  await client.unlink(`${world.namespace}:incarnation`);
  client.disconnect();
  await using fresh = openCache(world.config(), world.namespace);
  expect(await verify(fresh.connection)).toMatchObject({ compared: 1, differences: [] });
});
