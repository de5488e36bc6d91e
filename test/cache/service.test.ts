/** The library as its users see it: every public method, for two tenants, on real servers. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import {
  ArgumentError,
  closeCacheService,
  type FaceEmbedding,
  getCacheService,
  getHybridCacheService,
  HybridCacheService,
} from '../../src/index.js';
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

type Call = (service: HybridCacheService, tenantId: never, bad: never) => Promise<unknown>;

const METHODS: [string, Call][] = [
  ['cacheFaceEmbeddings', (s, t) => s.cacheFaceEmbeddings(HASH, t, [FACE])],
  ['getCachedFaceEmbeddings', (s, t) => s.getCachedFaceEmbeddings(HASH, t)],
  ['cacheFaceDetection', (s, t) => s.cacheFaceDetection(HASH, t, [])],
  ['getCachedFaceDetection', (s, t) => s.getCachedFaceDetection(HASH, t)],
  ['cachePerceptualHash', (s, t) => s.cachePerceptualHash(HASH, t, 'ff00ff00ff00ff00')],
  ['getCachedPerceptualHash', (s, t) => s.getCachedPerceptualHash(HASH, t)],
  ['shouldSkipUrl', (s, t) => s.shouldSkipUrl(URL_A, t)],
  ['shouldSkipCrawledImage', (s, t) => s.shouldSkipCrawledImage(URL_A, BYTES, t)],
  ['storeCrawledImage', (s, t) => s.storeCrawledImage(URL_A, BYTES, { rawKey: 'raw' }, t)],
  ['findNearDuplicates', (s, t) => s.findNearDuplicates('ff00ff00ff00ff00', t)],
];

test.each(METHODS)('%s refuses what is no tenant, naming the argument [M52]', async (_name, call) => {
  for (const bad of ['', '*', 'a:b', '[x]', '🙂', 'x'.repeat(101), undefined, null, 7]) {
    await expectRefused(call(service, bad as never, undefined as never), 'tenantId');
  }
});

test.each(METHODS)('%s takes every tenant that the rules allow', async (_name, call) => {
  for (const good of ['a.b', '..', '-', `${tenant}-${'x'.repeat(99 - tenant.length)}`]) {
    await expect(call(service, good as never, undefined as never)).resolves.not.toThrow();
  }
});

const number = (changes: object): FaceEmbedding[] => [{ ...FACE, ...changes } as FaceEmbedding];
const t = () => tenant;

const BAD: [string, string, (bad: HybridCacheService) => Promise<unknown>][] = [
  ['content', 'a hash that is none', (s) => s.cacheFaceEmbeddings('abc', t(), [])],
  ['content', 'an upper-case hash', (s) => s.getCachedFaceEmbeddings(HASH.toUpperCase(), t())],
  ['content', 'no content', (s) => s.cachePerceptualHash(undefined as never, t(), 'x')],
  ['content', 'a number', (s) => s.getCachedPerceptualHash(1 as never, t())],
  ['imageBytes', 'a bad hash of a crawled image', (s) => s.storeCrawledImage(URL_A, 'abc', { rawKey: 'r' }, t())],
  ['imageBytes', 'a bad hash to skip by', (s) => s.shouldSkipCrawledImage(URL_A, 'abc', t())],
  ['model', 'an empty model', (s) => s.cacheFaceEmbeddings(HASH, t(), [], { model: '' })],
  ['model', 'a model with a colon', (s) => s.getCachedFaceEmbeddings(HASH, t(), { model: 'a:b' })],
  ['model', 'a number as model', (s) => s.cacheFaceDetection(HASH, t(), [], { model: 1 as never })],
  ['embeddings', 'no list', (s) => s.cacheFaceEmbeddings(HASH, t(), {} as never)],
  ['embeddings[0].embedding', 'no vector', (s) => s.cacheFaceEmbeddings(HASH, t(), number({ embedding: undefined }))],
  ['embeddings[0].embedding[0]', 'NaN', (s) => s.cacheFaceEmbeddings(HASH, t(), number({ embedding: [Number.NaN] }))],
  [
    'embeddings[1].embedding[1]',
    'Infinity',
    (s) => s.cacheFaceEmbeddings(HASH, t(), [FACE, ...number({ embedding: [1, Number.POSITIVE_INFINITY] })]),
  ],
  [
    'embeddings[0].bbox[3]',
    'NaN in a box',
    (s) => s.cacheFaceEmbeddings(HASH, t(), number({ bbox: [0, 0, 1, Number.NaN] })),
  ],
  ['embeddings[0].bbox', 'a box of three', (s) => s.cacheFaceEmbeddings(HASH, t(), number({ bbox: [0, 0, 1] }))],
  ['embeddings[0].det_score', 'a score above 1', (s) => s.cacheFaceEmbeddings(HASH, t(), number({ det_score: 1.1 }))],
  ['embeddings[0].det_score', 'a negative score', (s) => s.cacheFaceEmbeddings(HASH, t(), number({ det_score: -0.1 }))],
  ['detections[0].det_score', 'no score', (s) => s.cacheFaceDetection(HASH, t(), [{ bbox: [0, 0, 1, 1] }] as never)],
  ['detections[0].extra', 'what JSON cannot carry', (s) => s.cacheFaceDetection(HASH, t(), number({ extra: 1n }))],
  ['phash', 'an empty hash', (s) => s.cachePerceptualHash(HASH, t(), '')],
  ['phash', 'a hash of 129 characters', (s) => s.cachePerceptualHash(HASH, t(), 'x'.repeat(129))],
  ['phash', 'a hash with a NUL', (s) => s.cachePerceptualHash(HASH, t(), 'a\0b')],
  ['phash', 'half a surrogate pair', (s) => s.cachePerceptualHash(HASH, t(), 'a\ud800')],
  ['phash', 'a number as hash', (s) => s.cachePerceptualHash(HASH, t(), 5 as never)],
  ['phash', 'no hash to search for', (s) => s.findNearDuplicates(undefined as never, t())],
  ['url', 'no URL', (s) => s.shouldSkipUrl('no url', t())],
  ['url', 'another scheme', (s) => s.shouldSkipCrawledImage('ftp://example.com/a', BYTES, t())],
  ['url', 'credentials', (s) => s.storeCrawledImage('https://u:p@example.com/', BYTES, { rawKey: 'r' }, t())],
  ['url', 'undefined', (s) => s.shouldSkipUrl(undefined as never, t())],
  ['rawKey', 'no keys', (s) => s.storeCrawledImage(URL_A, BYTES, undefined as never, t())],
  ['rawKey', 'an empty key', (s) => s.storeCrawledImage(URL_A, BYTES, { rawKey: '' }, t())],
  ['rawKey', 'a key with a NUL', (s) => s.storeCrawledImage(URL_A, BYTES, { rawKey: 'a\0' }, t())],
  [
    'thumbnailKey',
    'a number as key',
    (s) => s.storeCrawledImage(URL_A, BYTES, { rawKey: 'r', thumbnailKey: 5 as never }, t()),
  ],
  ['sourceUrl', 'a NUL', (s) => s.storeCrawledImage(URL_A, BYTES, { rawKey: 'r', sourceUrl: '\0' }, t())],
  ['maxDistance', 'eight', (s) => s.findNearDuplicates('ff00ff00ff00ff00', t(), { maxDistance: 8 })],
];

test.each(BAD)('%s is refused: %s; nothing is written', async (argument, _what, call) => {
  await expectRefused(call(service), argument);
  expect(await entriesOf(tenant)).toBe(0);
});

async function expectRefused(call: Promise<unknown>, argument: string): Promise<void> {
  const refusal = await call.then(
    (answer) => `not refused but answered with ${JSON.stringify(answer)}`,
    (error: unknown) => error,
  );
  expect(refusal).toBeInstanceOf(ArgumentError);
  expect(refusal).toMatchObject({ argument, message: expect.stringContaining(argument) });
}

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
