/** Whatever a value is made of, it comes back exactly as it was given: from its bytes, and from either real tier. */
import fc from 'fast-check';
import type { Pool } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { PostgresTier } from '../../src/cache/postgres-tier.js';
import { RedisTier } from '../../src/cache/redis-tier.js';
import { HybridCacheService } from '../../src/cache/service.js';
import { type Entry, entry, type Found } from '../../src/cache/tier.js';
import { createPool } from '../../src/db/client.js';
import { type FaceDetection, type FaceEmbedding, faceDetections, faceEmbeddings } from '../../src/kinds/faces.js';
import { sha256 } from '../../src/kinds/identity.js';
import { type AnyKind, isSoundText, type Kind } from '../../src/kinds/kind.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { type SearchResults, searches } from '../../src/kinds/search-results.js';
import { createLogger } from '../../src/logger.js';
import { freshTenant } from '../cache/support.js';
import { createWorld, type World } from '../support/world.js';

let world: World;
let pool: Pool;
let redis: RedisTier;
let postgres: PostgresTier;
let service: HybridCacheService;
/** Without Redis, so that every value comes back from PostgreSQL. */
let permanent: HybridCacheService;

beforeAll(async () => {
  world = await createWorld();
  const log = createLogger('silent');
  pool = createPool({ connectionString: world.databaseUrl }, log, { max: 4 });
  postgres = new PostgresTier(pool);
  redis = new RedisTier({ url: world.redisUrl, ttl: world.config().ttl, prefix: world.namespace }, log);
  service = serviceWith({});
  permanent = serviceWith({ REDIS_URL: 'none' });
});

afterAll(async () => {
  await service.close();
  await permanent.close();
  await redis.close();
  await pool.end();
  await world[Symbol.asyncDispose]();
});

function serviceWith(env: Record<string, string>): HybridCacheService {
  return new HybridCacheService({ config: world.config(env), logger: createLogger('silent') });
}

const AWKWARD = [
  -0,
  0,
  5e-324,
  -5e-324,
  2.2250738585072014e-308,
  1e-45,
  Number.MAX_VALUE,
  -Number.MAX_VALUE,
  0.1,
  2 ** 53,
];
const number = fc.oneof(fc.constantFrom(...AWKWARD), fc.double({ noNaN: true, noDefaultInfinity: true }));
const single = fc.oneof(
  fc.constantFrom(-0, 0, 1.401298464324817e-45),
  fc.float({ noNaN: true, noDefaultInfinity: true }),
);
/** Names and texts with all that UTF-16 allows, half surrogate pairs and NULs included. */
const anyText = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.string({ unit: 'grapheme' }),
  fc.constantFrom('\0', '\ud800', '__proto__'),
);
const json = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.constantFrom(null, true, false),
    number,
    anyText,
    fc.array(tie('value'), { maxLength: 4 }),
    fc.dictionary(anyText, tie('value'), { maxKeys: 4, noNullPrototype: true }),
  ),
})).value;

const KNOWN = ['bbox', 'det_score', 'embedding'];
const unknownFields = fc
  .dictionary(anyText, json, { maxKeys: 4, noNullPrototype: true })
  .map((fields) => Object.fromEntries(Object.entries(fields).filter(([name]) => !KNOWN.includes(name))));
const score = fc.oneof(fc.constantFrom(0, -0, 1, 5e-324), fc.double({ min: 0, max: 1, noNaN: true }));
const vector = fc.oneof(fc.array(single, { maxLength: 30 }), fc.array(number, { maxLength: 30 }), fc.constant([]));
const detection = fc
  .tuple(unknownFields, fc.tuple(number, number, number, number), score)
  .map(([fields, bbox, det_score]) => ({ ...fields, bbox, det_score }) as FaceDetection);
const embedding = fc
  .tuple(detection, vector)
  .map(([face, numbers]) => ({ ...face, embedding: numbers }) as FaceEmbedding);
const results = fc.array(json, { maxLength: 6 }) as fc.Arbitrary<SearchResults>;
const hashText = fc
  .oneof(
    fc.string({ unit: 'grapheme', maxLength: 128 }),
    fc.string({ unit: 'binary', maxLength: 128 }),
    fc.constant('\ufeff'),
  )
  .filter((text) => text.length <= 128 && isSoundText(text));

type Sort = [name: string, kind: AnyKind, values: fc.Arbitrary<unknown>, key: (of: number) => unknown];

function sort<Key, Value>(kind: Kind<Key, Value>, values: fc.Arbitrary<Value>, key: (of: string) => Key): Sort {
  return [kind.name, kind as AnyKind, values, (of) => key(sha256(`${of}`))];
}

const SORTS: Sort[] = [
  sort(faceEmbeddings, fc.array(embedding, { maxLength: 4 }), (contentHash) => ({ contentHash, model: 'm@1' })),
  sort(faceDetections, fc.array(detection, { maxLength: 4 }), (contentHash) => ({ contentHash, model: 'm@1' })),
  sort(searches, results, (contentHash) => ({ contentHash, topK: 7 })),
  sort(perceptualHashes, hashText, (contentHash) => contentHash),
];

test.each(SORTS)('any %s comes back exactly from its bytes and from its row', (_name, kind, values) => {
  fc.assert(
    fc.property(values, (value) => {
      const bytes = kind.encode(value);
      expect(kind.decode(bytes)).toStrictEqual(value);
      expect(kind.fromRow(kind.toRow(value, bytes))).toStrictEqual(value);
      // The same value is the same bytes, also after a round trip: a backfill writes what was written first.
      expect(kind.encode(kind.decode(bytes))).toEqual(bytes);
    }),
    { numRuns: 500 },
  );
});

const valuesOf = (found: readonly Found[]) => found.map((one) => (one.state === 'value' ? one.value : one));

let version = 1;
async function throughBoth(entries: readonly Entry[], check: (found: unknown[]) => void): Promise<void> {
  await redis.write(entries.map((one) => ({ ...one, generation: 1, version: ++version })));
  check(valuesOf((await redis.read(entries)).found));
  await postgres.write(entries);
  check(valuesOf(await postgres.read(entries)));
}

test.each(SORTS)(
  'any %s comes back exactly from either tier, alone and in a batch',
  async (_name, kind, values, key) => {
    const tenant = freshTenant();
    await fc.assert(
      fc.asyncProperty(fc.array(values, { minLength: 1, maxLength: 12 }), async (list) => {
        const entries = list.map((value, i) => entry(tenant, kind, key(i), value));
        await throughBoth(entries, (found) => expect(found).toStrictEqual(list));
        await throughBoth(entries.slice(0, 1), (found) => expect(found).toStrictEqual(list.slice(0, 1)));
      }),
      { numRuns: 60 },
    );
  },
);

test('values of all kinds come back exactly from either tier in one batch', async () => {
  const tenant = freshTenant();
  const each = SORTS.map(([, kind, values, key]) => values.map((value) => entry(tenant, kind, key(0), value)));
  await fc.assert(
    fc.asyncProperty(fc.tuple(...each), async (entries) => {
      await throughBoth(entries, (found) => expect(found).toStrictEqual(entries.map(({ value }) => value)));
    }),
    { numRuns: 60 },
  );
});

test('what the library takes it gives back exactly, unknown fields included [M20] [M22] [M30]', async () => {
  const tenant = freshTenant();
  const hash = sha256('the same image every time');
  await fc.assert(
    fc.asyncProperty(
      fc.array(embedding, { maxLength: 3 }),
      fc.array(detection, { maxLength: 3 }),
      results,
      hashText.filter((text) => text !== ''),
      async (faces, found, matches, phash) => {
        expect(await service.cacheFaceEmbeddings(hash, tenant, faces)).toBe(true);
        expect(await service.cacheFaceDetection(hash, tenant, found)).toBe(true);
        expect(await service.cacheSearchResults(hash, tenant, 3, matches)).toBe(true);
        expect(await service.cachePerceptualHash(hash, tenant, phash)).toBe(true);
        for (const from of [service, permanent]) {
          expect(await from.getCachedFaceEmbeddings(hash, tenant)).toStrictEqual(faces);
          expect(await from.getCachedFaceDetection(hash, tenant)).toStrictEqual(found);
          expect(await from.getCachedSearchResults(hash, tenant, 3)).toStrictEqual(matches);
          expect(await from.getCachedPerceptualHash(hash, tenant)).toBe(phash);
        }
      },
    ),
    { numRuns: 60 },
  );
});

test('a field that is called as what every object has is a field like any other', async () => {
  const tenant = freshTenant();
  const hash = sha256('names');
  const fields = { constructor: 1, toString: null, hasOwnProperty: [1], valueOf: {}, toJSON: 'x' };
  const face = { ...fields, bbox: [0, 0, 1, 1], det_score: 0.5 } as unknown as FaceDetection;
  await service.cacheSearchResults(hash, tenant, 1, [fields as never]);
  expect(await permanent.getCachedSearchResults(hash, tenant, 1)).toStrictEqual([fields]);
  await service.cacheFaceDetection(hash, tenant, [face]);
  expect(await permanent.getCachedFaceDetection(hash, tenant)).toStrictEqual([face]);
});
