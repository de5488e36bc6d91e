/** The library as its users see it: every public method, for two tenants, on real servers. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { closeCacheService, getCacheService, getHybridCacheService, HybridCacheService } from '../../src/index.js';
import { sha256 } from '../../src/kinds/identity.js';
import { BUILT_IN_MODELS } from '../../src/kinds/models.js';
import { createLogger } from '../../src/logger.js';
import { FACE, ODD_FACE } from '../kinds/examples.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

let world: World;
let client: Redis;
let cache: OpenCache;
let service: HybridCacheService;
let tenant: string;
let other: string;

beforeAll(async () => {
  world = await createWorld();
  client = redisClient(world);
  cache = openCache(world.config(), world.namespace);
  service = cache.service;
});

beforeEach(() => {
  tenant = freshTenant();
  other = freshTenant();
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  client.disconnect();
  await world[Symbol.asyncDispose]();
});

const BYTES = new TextEncoder().encode('the bytes of an image');
const HASH = sha256(BYTES);
const URL_A = 'https://example.com/a.jpg';
const URL_B = 'https://example.com/b.jpg';
const NOT_SKIPPED = { shouldSkip: false, rawKey: null, reason: null };
const skipped = (reason: 'url' | 'content', rawKey = 'raw/1') => ({ shouldSkip: true, rawKey, reason });

async function forgetRedis(): Promise<void> {
  const keys = await client.keys(`${world.namespace}:*`);
  if (keys.length > 0) await client.unlink(...keys);
}

/** How many entries a tenant has in both tiers. */
async function entriesOf(tenantId: string): Promise<number> {
  const tables = [
    'face_embeddings_cache',
    'face_detection_cache',
    'perceptual_hash_cache',
    'perceptual_hash_bands',
    'crawl_cache',
    'crawl_content_cache',
    'rejection_cache',
    'robots_cache',
  ];
  const counts = tables.map((table) => `(select count(*) from ${table} where tenant_id = $1)`);
  const { rows } = await cache.connection.pool.query<{ n: number }>(`select (${counts.join('+')})::int as n`, [
    tenantId,
  ]);
  return (rows[0]?.n ?? 0) + (await client.keys(`${world.namespace}:*:${tenantId}:*`)).length;
}

test('embeddings come back exactly as given, from either tier', async () => {
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toBeNull();
  expect(await service.cacheFaceEmbeddings(HASH, tenant, [FACE, ODD_FACE])).toBe(true);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toStrictEqual([FACE, ODD_FACE]);
  await forgetRedis();
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toStrictEqual([FACE, ODD_FACE]);
});

test('detections come back exactly as given, and are not embeddings [M29]', async () => {
  const detections = [{ bbox: ODD_FACE.bbox, det_score: 0.1, landmarks: [[1, 2]], pose: null }];
  expect(await service.cacheFaceDetection(HASH, tenant, detections)).toBe(true);
  expect(await service.getCachedFaceDetection(HASH, tenant)).toStrictEqual(detections);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toBeNull();
  await forgetRedis();
  expect(await service.getCachedFaceDetection(HASH, tenant)).toStrictEqual(detections);
});

test('no faces is an answer, and unknown is another', async () => {
  expect(await service.cacheFaceEmbeddings(HASH, tenant, [])).toBe(true);
  expect(await service.cacheFaceDetection(HASH, tenant, [])).toBe(true);
  await forgetRedis();
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toEqual([]);
  expect(await service.getCachedFaceDetection(HASH, tenant)).toEqual([]);
  expect(await service.getCachedFaceEmbeddings(HASH, other)).toBeNull();
});

test('the bytes of an image and their hash name the same content', async () => {
  await service.cacheFaceEmbeddings(BYTES, tenant, [FACE]);
  await service.cachePerceptualHash(HASH, tenant, 'opaque');
  await service.cacheFaceDetection(Buffer.from(BYTES), tenant, []);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toEqual([FACE]);
  expect(await service.getCachedPerceptualHash(BYTES, tenant)).toBe('opaque');
  expect(await service.getCachedFaceDetection(BYTES, tenant)).toEqual([]);
});

test('every model has values of its own, and no model means the configured one [M8]', async () => {
  await service.cacheFaceEmbeddings(HASH, tenant, [FACE]);
  await service.cacheFaceEmbeddings(HASH, tenant, [ODD_FACE], { model: 'arcface@2' });
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toEqual([FACE]);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant, { model: BUILT_IN_MODELS.embedding })).toEqual([FACE]);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant, { model: 'arcface@2' })).toEqual([ODD_FACE]);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant, { model: 'arcface@3' })).toBeNull();

  await service.cacheFaceDetection(HASH, tenant, [], { model: 'retina@1' });
  expect(await service.getCachedFaceDetection(HASH, tenant)).toBeNull();
  expect(await service.getCachedFaceDetection(HASH, tenant, { model: 'retina@1' })).toEqual([]);
  await service.cacheFaceDetection(HASH, tenant, [], { model: BUILT_IN_MODELS.detection });
  expect(await service.getCachedFaceDetection(HASH, tenant)).toEqual([]);
});

test('a service over another engine has that engine for its default model', async () => {
  const models = { detection: 'own-detector@1', embedding: 'own-embedder@1' };
  const own = new HybridCacheService({ connection: cache.connection, models });
  await own.cacheFaceEmbeddings(HASH, tenant, []);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant, { model: 'own-embedder@1' })).toEqual([]);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toBeNull();
});

test('perceptual hashes are opaque text of up to 128 characters [M23]', async () => {
  for (const phash of ['0123456789abcdef', 'x'.repeat(128), 'größe 🙂', ' ']) {
    expect(await service.cachePerceptualHash(HASH, tenant, phash)).toBe(true);
    expect(await service.getCachedPerceptualHash(HASH, tenant)).toBe(phash);
    await forgetRedis();
    expect(await service.getCachedPerceptualHash(HASH, tenant)).toBe(phash);
  }
});

test('a later value replaces an older one', async () => {
  await service.cacheFaceEmbeddings(HASH, tenant, [FACE]);
  await service.cacheFaceEmbeddings(HASH, tenant, []);
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toEqual([]);
  await forgetRedis();
  expect(await service.getCachedFaceEmbeddings(HASH, tenant)).toEqual([]);
});

test('an unknown URL is not skipped', async () => {
  expect(await service.shouldSkipUrl(URL_A, tenant)).toEqual(NOT_SKIPPED);
  expect(await service.shouldSkipCrawledImage(URL_A, BYTES, tenant)).toEqual(NOT_SKIPPED);
  expect(await entriesOf(tenant)).toBe(0);
});

test('a stored URL is skipped by URL, in every spelling, from either tier', async () => {
  const keys = { rawKey: 'raw/1', thumbnailKey: 'thumb/1', sourceUrl: 'https://example.com/page' };
  expect(await service.storeCrawledImage(URL_A, BYTES, keys, tenant)).toBe(true);
  for (let round = 0; round < 2; round++) {
    expect(await service.shouldSkipUrl(URL_A, tenant)).toEqual(skipped('url'));
    expect(await service.shouldSkipUrl('HTTPS://EXAMPLE.com:443/x/../a.jpg#top', tenant)).toEqual(skipped('url'));
    expect(await service.shouldSkipCrawledImage(URL_A, HASH, tenant)).toEqual(skipped('url'));
    await forgetRedis();
  }
  const { rows } = await cache.connection.pool.query('select * from crawl_cache where tenant_id = $1', [tenant]);
  expect(rows).toHaveLength(1);
  expect(rows[0]).toMatchObject({
    url: URL_A,
    content_hash: HASH,
    raw_key: 'raw/1',
    thumbnail_key: 'thumb/1',
    source_url: 'https://example.com/page',
  });
});

test('the same bytes under another URL are skipped by content, and that URL is remembered [M10]', async () => {
  await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/1' }, tenant);
  expect(await service.shouldSkipUrl(URL_B, tenant)).toEqual(NOT_SKIPPED);
  expect(await service.shouldSkipCrawledImage(URL_B, BYTES, tenant)).toEqual(skipped('content'));
  expect(await service.shouldSkipUrl(URL_B, tenant)).toEqual(skipped('url'));
  expect(await service.shouldSkipCrawledImage(URL_B, BYTES, tenant)).toEqual(skipped('url'));
  await forgetRedis();
  expect(await service.shouldSkipUrl(URL_B, tenant)).toEqual(skipped('url'));
});

test('changed bytes under a known URL are not skipped, and both versions are kept', async () => {
  const changed = new TextEncoder().encode('other bytes');
  await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/1' }, tenant);
  expect(await service.shouldSkipCrawledImage(URL_A, changed, tenant)).toEqual(NOT_SKIPPED);
  expect(await service.storeCrawledImage(URL_A, changed, { rawKey: 'raw/2' }, tenant)).toBe(true);
  expect(await service.shouldSkipUrl(URL_A, tenant)).toEqual(skipped('url', 'raw/2'));
  expect(await service.shouldSkipCrawledImage(URL_A, changed, tenant)).toEqual(skipped('url', 'raw/2'));
  // The first version's bytes are known as content, wherever they come from.
  expect(await service.shouldSkipCrawledImage(URL_B, BYTES, tenant)).toEqual(skipped('content', 'raw/1'));
  const text = 'select content_hash, raw_key from crawl_cache where tenant_id = $1 and url = $2 order by fetched_at';
  const { rows } = await cache.connection.pool.query(text, [tenant, URL_A]);
  expect(rows).toEqual([
    { content_hash: HASH, raw_key: 'raw/1' },
    { content_hash: sha256(changed), raw_key: 'raw/2' },
  ]);
});

test('a URL that serves its first version again is known as that again', async () => {
  await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/1' }, tenant);
  await service.storeCrawledImage(URL_A, sha256('second'), { rawKey: 'raw/2' }, tenant);
  expect(await service.shouldSkipCrawledImage(URL_A, BYTES, tenant)).toEqual(skipped('content', 'raw/1'));
  expect(await service.shouldSkipUrl(URL_A, tenant)).toEqual(skipped('url', 'raw/1'));
});

test('storing the same image twice is one record', async () => {
  expect(await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/1' }, tenant)).toBe(true);
  expect(await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/1' }, tenant)).toBe(true);
  const text = 'select (select count(*) from crawl_cache where tenant_id = $1)::int as urls, count(*)::int as contents';
  const { rows } = await cache.connection.pool.query(`${text} from crawl_content_cache where tenant_id = $1`, [tenant]);
  expect(rows).toEqual([{ urls: 1, contents: 1 }]);
});

test('no method gives one tenant what another one has', async () => {
  await service.cacheFaceEmbeddings(HASH, tenant, [FACE]);
  await service.cacheFaceDetection(HASH, tenant, []);
  await service.cachePerceptualHash(HASH, tenant, 'ff00ff00ff00ff00');
  await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/1' }, tenant);
  for (const stranger of [other, `${tenant}.`, tenant.slice(0, -1), tenant.toUpperCase()]) {
    expect(await service.getCachedFaceEmbeddings(HASH, stranger)).toBeNull();
    expect(await service.getCachedFaceDetection(HASH, stranger)).toBeNull();
    expect(await service.getCachedPerceptualHash(HASH, stranger)).toBeNull();
    expect(await service.shouldSkipUrl(URL_A, stranger)).toEqual(NOT_SKIPPED);
    expect(await service.shouldSkipCrawledImage(URL_A, BYTES, stranger)).toEqual(NOT_SKIPPED);
    expect(await service.findNearDuplicates('ff00ff00ff00ff00', stranger)).toEqual([]);
    expect(await entriesOf(stranger)).toBe(0);
  }
});

test('two tenants with the same image and URL have their own records', async () => {
  await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/1' }, tenant);
  await service.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw/2' }, other);
  expect(await service.shouldSkipUrl(URL_A, tenant)).toEqual(skipped('url', 'raw/1'));
  expect(await service.shouldSkipUrl(URL_A, other)).toEqual(skipped('url', 'raw/2'));
});

test('near-duplicates are found through the service, six bits apart unless said otherwise', async () => {
  await service.cachePerceptualHash(HASH, tenant, 'ff00ff00ff00ff00');
  const at = (distance: number) => ({ contentHash: HASH, phash: 'ff00ff00ff00ff00', distance });
  expect(await service.findNearDuplicates('ff00ff00ff00ff3f', tenant)).toEqual([at(6)]);
  expect(await service.findNearDuplicates('ff00ff00ff00ff7f', tenant)).toEqual([]);
  expect(await service.findNearDuplicates('ff00ff00ff00ff7f', tenant, { maxDistance: 7 })).toEqual([at(7)]);
  expect(await service.findNearDuplicates('ff00ff00ff00ff00', tenant, { maxDistance: 0 })).toEqual([at(0)]);
  expect(await service.findNearDuplicates('opaque', tenant)).toEqual([]);
});

test('a service closes what it opened itself, and leaves what it was given', async () => {
  const own = new HybridCacheService({ config: world.config(), logger: createLogger('silent') });
  expect(await own.getCachedPerceptualHash(HASH, tenant)).toBeNull();
  await own.close();
  await own.close();
  const guest = new HybridCacheService({ connection: cache.connection });
  await guest.close();
  expect(await service.cachePerceptualHash(HASH, tenant, 'still open')).toBe(true);
});

test('the process has one service, made at the first call, until it is closed [M15, M31]', async () => {
  const first = getHybridCacheService();
  expect(getHybridCacheService()).toBe(first);
  expect(getCacheService()).toBe(first);
  await closeCacheService();
  await closeCacheService();
  const second = getHybridCacheService();
  expect(second).not.toBe(first);
  await closeCacheService();
});

test('importing the library opens nothing, and loads neither the HTTP server nor a face model [M15]', async () => {
  const script = `
    import net from 'node:net';
    import { createRequire } from 'node:module';
    let sockets = 0;
    const { connect } = net.Socket.prototype;
    net.Socket.prototype.connect = function (...args) { sockets += 1; return connect.apply(this, args); };
    const resources = () => process.getActiveResourcesInfo().sort().join();
    const before = resources();
    const library = await import('./src/index.ts');
    const made = library.getHybridCacheService();
    const loaded = Object.keys(createRequire(import.meta.url).cache);
    const heavy = loaded.filter((file) => /node_modules.(fastify|@tensorflow|@vladmandic|sharp|bullmq)/.test(file));
    const opened = resources().split(',').filter((one) => /TCP|Pipe|Timeout/.test(one) && !before.includes(one));
    console.log(JSON.stringify({ names: Object.keys(library).sort(), sockets, heavy, opened, made: typeof made }));
  `;
  const cwd = fileURLToPath(new URL('../..', import.meta.url));
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '-e', script],
    { cwd, env: { PATH: process.env.PATH, REDIS_URL: world.redisUrl, DATABASE_URL: world.databaseUrl } },
  );
  expect(JSON.parse(stdout)).toEqual({
    names: [
      'ArgumentError',
      'ConfigError',
      'HybridCacheService',
      'TierUnavailableError',
      'closeCacheService',
      'getCacheService',
      'getHybridCacheService',
      'resetCacheStats',
    ],
    sockets: 0,
    heavy: [],
    opened: [],
    made: 'object',
  });
});
