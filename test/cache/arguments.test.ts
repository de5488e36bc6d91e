/** Every method of the library refuses what is no argument of its, by name, before anything is read or written. */
import type { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { ArgumentError, type FaceEmbedding, HybridCacheService } from '../../src/index.js';
import { sha256 } from '../../src/kinds/identity.js';
import { FACE } from '../kinds/examples.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

let world: World;
let client: Redis;
let cache: OpenCache;
let tenant = '';

beforeAll(async () => {
  world = await createWorld();
  client = redisClient(world);
  cache = openCache(world.config(), world.namespace);
  // What is written at the first use of a tier is written now.
  await cache.service.cachePerceptualHash(HASH, 'warm-up', 'text');
});

beforeEach(() => {
  tenant = freshTenant();
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  client.disconnect();
  await world[Symbol.asyncDispose]();
});

const BYTES = new TextEncoder().encode('the bytes of an image');
const HASH = sha256(BYTES);
const URL_A = 'https://example.com/a.jpg';
const KEYS = { rawKey: 'raw/1' };
const PHASH = 'ff00ff00ff00ff00';

type Call = (service: HybridCacheService, tenantId: string) => Promise<unknown>;

/** Every method that is about a tenant, each with arguments that are right. */
const METHODS: Record<string, Call> = {
  cacheFaceEmbeddings: (s, t) => s.cacheFaceEmbeddings(HASH, t, [FACE]),
  getCachedFaceEmbeddings: (s, t) => s.getCachedFaceEmbeddings(HASH, t),
  getCachedFaceEmbeddingsBatch: (s, t) => s.getCachedFaceEmbeddingsBatch([HASH], t),
  cacheFaceDetection: (s, t) => s.cacheFaceDetection(HASH, t, []),
  getCachedFaceDetection: (s, t) => s.getCachedFaceDetection(HASH, t),
  getCachedFaceDetectionBatch: (s, t) => s.getCachedFaceDetectionBatch([HASH], t),
  cachePerceptualHash: (s, t) => s.cachePerceptualHash(HASH, t, PHASH),
  getCachedPerceptualHash: (s, t) => s.getCachedPerceptualHash(HASH, t),
  getCachedPerceptualHashBatch: (s, t) => s.getCachedPerceptualHashBatch([HASH], t),
  cacheSearchResults: (s, t) => s.cacheSearchResults(HASH, t, 5, [{ a: 1 }]),
  getCachedSearchResults: (s, t) => s.getCachedSearchResults(HASH, t, 5),
  getCachedSearchResultsBatch: (s, t) => s.getCachedSearchResultsBatch([HASH], t, 5),
  shouldSkipUrl: (s, t) => s.shouldSkipUrl(URL_A, t),
  shouldSkipUrlBatch: (s, t) => s.shouldSkipUrlBatch([URL_A], t),
  shouldSkipCrawledImage: (s, t) => s.shouldSkipCrawledImage(URL_A, BYTES, t),
  shouldSkipCrawledImageBatch: (s, t) => s.shouldSkipCrawledImageBatch([{ url: URL_A, imageBytes: BYTES }], t),
  storeCrawledImage: (s, t) => s.storeCrawledImage(URL_A, BYTES, KEYS, t),
  findNearDuplicates: (s, t) => s.findNearDuplicates(PHASH, t),
  invalidateTenantCache: (s, t) => s.invalidateTenantCache(t),
};
/** Those that are about no tenant. */
const OTHERS = ['constructor', 'clearAllCache', 'getCacheStats', 'resetCacheStats', 'close'];

const NO_TENANTS = [
  ...['', '*', 'a:b', '[x]', 'a*', 'a?', 'x'.repeat(101), '🙂', 'ä', 'a b', 'a\n', '\n', 'a/b', 'a\0', '${a}', '{a}'],
  ...[undefined, null, 7, 0, true, ['a'], { toString: () => 'a' }, Symbol('a'), Buffer.from('a')],
];

/** Rows and keys of everybody. */
async function everything(): Promise<string> {
  const tables = `select table_name as name from information_schema.tables
    where table_schema = 'public' and table_type = 'BASE TABLE' order by 1`;
  const { rows } = await cache.connection.pool.query<{ name: string }>(tables);
  const counts = rows.map(({ name }) => `'${name} ' || (select count(*) from ${name})`);
  const counted = await cache.connection.pool.query<{ n: string }>(`select concat_ws(', ', ${counts.join(', ')}) as n`);
  return `${counted.rows[0]?.n}; ${(await client.keys(`${world.namespace}:*`)).sort().join(' ')}`;
}

/** How the call ended. */
async function refusal(call: () => Promise<unknown>): Promise<unknown> {
  try {
    return `not refused, but answered with ${JSON.stringify(await call())}`;
  } catch (error) {
    return error;
  }
}

async function expectRefused(call: () => Promise<unknown>, argument: string | RegExp, what = ''): Promise<void> {
  const error = await refusal(call);
  expect(error, what).toBeInstanceOf(ArgumentError);
  expect((error as ArgumentError).argument, what).toMatch(argument);
  expect((error as ArgumentError).message, what).toMatch(argument);
}

test('every public method is in the table of those that want a tenant, or wants none', () => {
  const methods = Object.getOwnPropertyNames(HybridCacheService.prototype);
  expect(methods.sort()).toEqual([...Object.keys(METHODS), ...OTHERS].sort());
});

test.each(Object.entries(METHODS))(
  '%s refuses what is no tenant, naming the argument, and writes nothing [M52]',
  async (_, call) => {
    const before = await everything();
    for (const bad of NO_TENANTS) {
      await expectRefused(() => call(cache.service, bad as string), /^tenantId/, String(bad));
    }
    expect(await everything()).toBe(before);
  },
);

const t = () => tenant;
const face = (changes: object): FaceEmbedding[] => [{ ...FACE, ...changes } as FaceEmbedding];
/** What is no content, whatever method it is given to. */
const NO_CONTENT = ['', 'abc', HASH.toUpperCase(), `${HASH}0`, `${HASH}\n`, undefined, null, 1, {}, [HASH]];
const NO_MODEL = ['', 'a:b', 'a b', '*', 'x'.repeat(101), '🙂', null, 1];
const NO_TOP_K = [0, -1, 1.5, 2 ** 31, Number.NaN, Number.POSITIVE_INFINITY, '5', null, undefined];
const NO_URL = ['', 'no url', 'ftp://example.com/a', 'https://u:p@example.com/', undefined, null, 7, {}];
const NO_LIST = [undefined, null, 'text', {}, 7, { length: 1, 0: HASH }];

type Table = [
  argument: string | RegExp,
  bad: readonly unknown[],
  call: (s: HybridCacheService, bad: never) => Promise<unknown>,
];

const BAD: Table[] = [
  ['content', NO_CONTENT, (s, bad) => s.cacheFaceEmbeddings(bad, t(), [])],
  ['content', NO_CONTENT, (s, bad) => s.getCachedFaceEmbeddings(bad, t())],
  ['content', NO_CONTENT, (s, bad) => s.getCachedFaceEmbeddingsBatch([HASH, bad], t())],
  ['content', NO_CONTENT, (s, bad) => s.cacheFaceDetection(bad, t(), [])],
  ['content', NO_CONTENT, (s, bad) => s.getCachedFaceDetection(bad, t())],
  ['content', NO_CONTENT, (s, bad) => s.getCachedFaceDetectionBatch([HASH, bad], t())],
  ['content', NO_CONTENT, (s, bad) => s.cachePerceptualHash(bad, t(), 'x')],
  ['content', NO_CONTENT, (s, bad) => s.getCachedPerceptualHash(bad, t())],
  ['content', NO_CONTENT, (s, bad) => s.getCachedPerceptualHashBatch([HASH, bad], t())],
  ['content', NO_CONTENT, (s, bad) => s.cacheSearchResults(bad, t(), 5, [])],
  ['content', NO_CONTENT, (s, bad) => s.getCachedSearchResults(bad, t(), 5)],
  ['content', NO_CONTENT, (s, bad) => s.getCachedSearchResultsBatch([HASH, bad], t(), 5)],
  ['imageBytes', NO_CONTENT, (s, bad) => s.storeCrawledImage(URL_A, bad, KEYS, t())],
  ['imageBytes', NO_CONTENT, (s, bad) => s.shouldSkipCrawledImage(URL_A, bad, t())],
  [
    /^images\[0\]\.imageBytes/,
    NO_CONTENT,
    (s, bad) => s.shouldSkipCrawledImageBatch([{ url: URL_A, imageBytes: bad }], t()),
  ],
  ['contents', NO_LIST, (s, bad) => s.getCachedFaceEmbeddingsBatch(bad, t())],
  ['contents', NO_LIST, (s, bad) => s.getCachedFaceDetectionBatch(bad, t())],
  ['contents', NO_LIST, (s, bad) => s.getCachedPerceptualHashBatch(bad, t())],
  ['contents', NO_LIST, (s, bad) => s.getCachedSearchResultsBatch(bad, t(), 5)],
  ['urls', NO_LIST, (s, bad) => s.shouldSkipUrlBatch(bad, t())],
  ['images', NO_LIST, (s, bad) => s.shouldSkipCrawledImageBatch(bad, t())],
  [/^images\[0\]/, [null, undefined, 7, 'text', {}], (s, bad) => s.shouldSkipCrawledImageBatch([bad], t())],
  ['model', NO_MODEL, (s, bad) => s.cacheFaceEmbeddings(HASH, t(), [], { model: bad })],
  ['model', NO_MODEL, (s, bad) => s.getCachedFaceEmbeddings(HASH, t(), { model: bad })],
  ['model', NO_MODEL, (s, bad) => s.getCachedFaceEmbeddingsBatch([HASH], t(), { model: bad })],
  ['model', NO_MODEL, (s, bad) => s.cacheFaceDetection(HASH, t(), [], { model: bad })],
  ['model', NO_MODEL, (s, bad) => s.getCachedFaceDetection(HASH, t(), { model: bad })],
  ['model', NO_MODEL, (s, bad) => s.getCachedFaceDetectionBatch([HASH], t(), { model: bad })],
  ['model', NO_MODEL, (s, bad) => s.getCachedFaceEmbeddingsBatch([], t(), { model: bad })],
  ['model', NO_MODEL, (s, bad) => s.getCachedFaceDetectionBatch([], t(), { model: bad })],
  ['embeddings', [...NO_LIST, [null], ['face']], (s, bad) => s.cacheFaceEmbeddings(HASH, t(), bad)],
  ['detections', [...NO_LIST, [null], ['face']], (s, bad) => s.cacheFaceDetection(HASH, t(), bad)],
  [
    'embeddings[0].embedding',
    [undefined, null, 'text', [Number.NaN], [Number.POSITIVE_INFINITY], [null], ['1'], [1n]],
    (s, embedding) => s.cacheFaceEmbeddings(HASH, t(), face({ embedding })),
  ],
  [
    'embeddings[0].bbox',
    [undefined, null, [], [0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 1, Number.NaN], ['0', 0, 1, 1], { 0: 0 }],
    (s, bbox) => s.cacheFaceEmbeddings(HASH, t(), face({ bbox })),
  ],
  [
    'embeddings[0].det_score',
    [undefined, null, 1.1, -0.1, Number.NaN, '0.5'],
    (s, det_score) => s.cacheFaceEmbeddings(HASH, t(), face({ det_score })),
  ],
  [
    'detections[0].extra',
    [1n, Symbol('x'), () => 1, new Date(), new Map(), Number.NaN, [undefined], { a: [1n] }],
    (s, extra) => s.cacheFaceDetection(HASH, t(), face({ extra })),
  ],
  [
    'phash',
    ['', 'x'.repeat(129), 'a\0b', 'a\ud800', 5, null, undefined],
    (s, bad) => s.cachePerceptualHash(HASH, t(), bad),
  ],
  ['phash', ['', 'x'.repeat(129), 5, null, undefined], (s, bad) => s.findNearDuplicates(bad, t())],
  ['topK', NO_TOP_K, (s, bad) => s.cacheSearchResults(HASH, t(), bad, [])],
  ['topK', NO_TOP_K, (s, bad) => s.getCachedSearchResults(HASH, t(), bad)],
  ['topK', NO_TOP_K, (s, bad) => s.getCachedSearchResultsBatch([HASH], t(), bad)],
  ['topK', NO_TOP_K, (s, bad) => s.getCachedSearchResultsBatch([], t(), bad)],
  [
    'results',
    [...NO_LIST, [undefined], [Number.NaN], [1n], [new Date()], [{ a: [() => 1] }]],
    (s, bad) => s.cacheSearchResults(HASH, t(), 5, bad),
  ],
  ['url', NO_URL, (s, bad) => s.shouldSkipUrl(bad, t())],
  ['url', NO_URL, (s, bad) => s.shouldSkipUrlBatch([URL_A, bad], t())],
  ['url', NO_URL, (s, bad) => s.shouldSkipCrawledImage(bad, BYTES, t())],
  [/^images\[0\]\.url/, NO_URL, (s, bad) => s.shouldSkipCrawledImageBatch([{ url: bad, imageBytes: BYTES }], t())],
  ['url', NO_URL, (s, bad) => s.storeCrawledImage(bad, BYTES, KEYS, t())],
  ['rawKey', [undefined, null, {}], (s, bad) => s.storeCrawledImage(URL_A, BYTES, bad, t())],
  [
    'rawKey',
    ['', 'a\0', 'x'.repeat(2_049), 5, null],
    (s, rawKey) => s.storeCrawledImage(URL_A, BYTES, { rawKey }, t()),
  ],
  [
    'thumbnailKey',
    ['', 'a\0', 'x'.repeat(2_049), 5, {}],
    (s, thumbnailKey) => s.storeCrawledImage(URL_A, BYTES, { ...KEYS, thumbnailKey }, t()),
  ],
  [
    'sourceUrl',
    ['', 'a\0', 'x'.repeat(2_049), 5, {}],
    (s, sourceUrl) => s.storeCrawledImage(URL_A, BYTES, { ...KEYS, sourceUrl }, t()),
  ],
  [
    'maxDistance',
    [-1, 8, 1.5, Number.NaN, Number.POSITIVE_INFINITY, '6'],
    (s, maxDistance) => s.findNearDuplicates(PHASH, t(), { maxDistance }),
  ],
  ['confirm', [false, 'true', 1, undefined, null], (s, confirm) => s.clearAllCache({ confirm })],
  ['confirm', [undefined, null, true], (s, bad) => s.clearAllCache(bad)],
];

test('a value that holds itself is refused by name', async () => {
  const circle: Record<string, unknown> = { bbox: [0, 0, 1, 1], embedding: [1], det_score: 1, confidence: 1 };
  circle.itself = circle;
  const before = await everything();
  for (const [argument, call] of [
    ['embeddings', () => cache.service.cacheFaceEmbeddings(BYTES, t(), [circle as never])],
    ['detections', () => cache.service.cacheFaceDetection(BYTES, t(), [circle as never])],
    ['results', () => cache.service.cacheSearchResults(BYTES, t(), 1, [circle as never])],
  ] as const) {
    await expectRefused(call, argument);
  }
  expect(await everything()).toBe(before);
});

test.each(BAD.map(([argument, bad, call]) => [argument, called(call), bad, call] as const))(
  '%s is refused where it is wrong, and nothing is written: %s',
  async (argument, _method, bads, call) => {
    const before = await everything();
    for (const bad of bads) {
      const named = typeof argument === 'string' ? new RegExp(`^${escaped(argument)}`) : argument;
      await expectRefused(() => call(cache.service, bad as never), named, shown(bad));
    }
    expect(await everything()).toBe(before);
  },
);

// The last one: what it invalidates is deleted in the background.
test.each(['a.b', '..', '.', '-', '_', '7', '__proto__', 'generation', 'x'.repeat(100)])(
  'every method takes the tenant %j, and keeps it apart',
  async (good) => {
    for (const [name, call] of Object.entries(METHODS)) {
      await expect(call(cache.service, good), name).resolves.toBeDefined();
    }
    const { service } = cache;
    await service.cachePerceptualHash(HASH, good, `of ${good}`);
    expect(await service.getCachedPerceptualHash(HASH, good)).toBe(`of ${good}`);
    expect(await service.getCachedPerceptualHash(HASH, tenant)).toBeNull();
    expect(await service.getCachedPerceptualHash(HASH, 'warm-up')).toBe('text');
    expect(await service.invalidateTenantCache(good)).toBeGreaterThan(0);
    expect(await service.getCachedPerceptualHash(HASH, good)).toBeNull();
    expect(await service.getCachedPerceptualHash(HASH, 'warm-up')).toBe('text');
  },
);

/** The name of the method, out of the source of its call. */
function called(call: Table[2]): string {
  return /\bs\.(\w+)/.exec(call.toString())?.[1] ?? '';
}

function escaped(words: string): string {
  return words.replace(/[[\].]/g, '\\$&');
}

function shown(bad: unknown): string {
  return Array.isArray(bad) ? `[${bad.map(String).join()}]` : String(bad);
}
