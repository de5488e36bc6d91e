/** What holds for every kind: it round trips in both of its forms, and its keys are its own. */
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RedisTier } from '../../src/cache/redis-tier.js';
import { entry, lookup } from '../../src/cache/tier.js';
import { ArgumentError } from '../../src/errors.js';
import { crawlContents, crawlUrls, rejections } from '../../src/kinds/crawl.js';
import { faceDetections, faceEmbeddings } from '../../src/kinds/faces.js';
import { checkKinds } from '../../src/kinds/index.js';
import { type AnyKind, checkContentHash, checkModel, checkTenantId } from '../../src/kinds/kind.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { searches } from '../../src/kinds/search-results.js';
import { createLogger } from '../../src/logger.js';
import { KIND_NAMES } from '../../src/metrics.js';
import { examples } from './examples.js';

const hex = fc.stringMatching(/^[0-9a-f]{64}$/);
const letters = 'abcXYZ019._-';
const named = (more: string) => fc.string({ unit: fc.constantFrom(...letters, ...more), minLength: 1, maxLength: 100 });
const tenant = named('');
const model = named('@/');
const text = fc.string({ unit: 'grapheme' });
const moment = fc.integer({ min: 0, max: 4_000_000_000_000 });
const maybe = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: null });

/** Plain objects, as JSON makes them. */
const record = <T>(fields: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record(fields, { noNullPrototype: true });

const VALUES: [AnyKind, fc.Arbitrary<unknown>][] = [
  [
    crawlUrls as AnyKind,
    record({
      url: text,
      contentHash: hex,
      rawKey: text,
      thumbnailKey: maybe(text),
      sourceUrl: maybe(text),
      jobId: maybe(text),
      etag: maybe(text),
      lastModified: maybe(text),
      fetchedAt: moment,
    }),
  ],
  [
    crawlContents as AnyKind,
    record({
      rawKey: text,
      thumbnailKey: maybe(text),
      mimeType: maybe(text),
      byteSize: maybe(fc.nat()),
      width: maybe(fc.nat()),
      height: maybe(fc.nat()),
      jobId: maybe(text),
      storedAt: moment,
    }),
  ],
  [
    rejections as AnyKind,
    record({
      reason: fc.constantFrom('gone', 'robots'),
      detail: text,
      jobId: maybe(text),
      rejectedAt: moment,
      expiresAt: moment,
    }),
  ],
  [perceptualHashes as AnyKind, text],
];

test.each(VALUES.map(([kind, values]) => [kind.name, kind, values] as const))(
  '%s comes back equal from its Redis form and from its row',
  (_name, kind, values) => {
    fc.assert(
      fc.property(values, (value) => {
        const bytes = kind.encode(value);
        expect(kind.decode(bytes)).toStrictEqual(value);
        expect(kind.fromRow(kind.toRow(value, bytes))).toStrictEqual(value);
      }),
    );
  },
);

test.each(examples('tenant').map((one) => [one.kind.name, one] as const))(
  '%s has as many cells as its table has columns, and they make the value again',
  (_name, { kind, value, bytes }) => {
    const row = kind.toRow(value, bytes);
    expect(row).toHaveLength(kind.table.columns.length);
    expect(kind.fromRow(row)).toStrictEqual(value);
    expect(kind.decode(bytes)).toStrictEqual(value);
    expect(kind.encodedIn?.(row) ?? bytes).toEqual(bytes);
  },
);

test.each([
  ['crawl_url', crawlUrls as AnyKind],
  ['perceptual_hash', perceptualHashes as AnyKind],
  ['face_embedding', faceEmbeddings as AnyKind],
  ['search_results', searches as AnyKind],
])('%s refuses bytes that it did not make', (_name, kind) => {
  expect(() => kind.decode(Buffer.from([0xff, 0xfe, 0x00]))).toThrow();
});

test.each([['[]'], ['null'], ['1'], ['"text"'], ['{"rawKey":"a'], ['']])('a record is not %j', (bytes) => {
  expect(() => crawlContents.decode(Buffer.from(bytes))).toThrow();
});

test('every kind is declared once, has a table of its own and an example here', () => {
  const kinds = examples('tenant').map(({ kind }) => kind);
  expect(() => checkKinds()).not.toThrow();
  expect(kinds.map(({ name }) => name).sort()).toEqual([...KIND_NAMES].sort());
  expect(new Set(kinds.map(({ table }) => table.name)).size).toBe(kinds.length);
});

test('a missing or doubled kind stops the process, saying which and what to do', () => {
  const [first, ...rest] = examples('tenant').map(({ kind }) => kind) as [AnyKind, ...AnyKind[]];
  const told = (times: number) => `kind ${first.name} is declared ${times} times: list it once in kinds/index.ts`;
  expect(() => checkKinds(rest)).toThrow(told(0));
  expect(() => checkKinds([first, ...rest, first])).toThrow(told(2));
});

test.each(['a', '7', 'a.b', '..', '.', '-', '_', 'A-b_c.9', 'x'.repeat(100)])('%j is a tenant', (id) => {
  expect(checkTenantId(id)).toBe(id);
});

const NOT_TENANTS = ['', '*', 'a:b', '[x]', 'x'.repeat(101), '🙂', 'ä', 'a b', ' a', 'a\n', 'a/b', '?', 'a\\', 'a\0'];
test.each([...NOT_TENANTS, undefined, null, 7, ['a'], {}])('%j is no tenant', (id) => {
  expectRefused(() => checkTenantId(id), 'tenantId');
});

test.each(['ssd@1.7', 'a/b', 'x'.repeat(100)])('%j is a model', (id) => {
  expect(checkModel(id)).toBe(id);
});

test.each(['', 'a:b', 'a b', '*', 'x'.repeat(101), '🙂', undefined, null, 3])('%j is no model', (id) => {
  expectRefused(() => checkModel(id), 'model');
});

const HASH = 'ab'.repeat(32);
const NOT_HASHES = ['', HASH.slice(1), `${HASH}0`, HASH.toUpperCase(), `g${HASH.slice(1)}`, `${HASH}\n`];
test.each([...NOT_HASHES, null, undefined, 5])('%j is no content hash', (hash) => {
  expectRefused(() => checkContentHash(hash), 'content');
});

test('a content hash is 64 lower-case hex characters', () => {
  expect(checkContentHash(HASH)).toBe(HASH);
});

function expectRefused(check: () => unknown, argument: string): void {
  try {
    check();
  } catch (error) {
    expect(error).toBeInstanceOf(ArgumentError);
    expect((error as ArgumentError).argument).toBe(argument);
    expect((error as ArgumentError).message).toContain(argument);
    return;
  }
  throw new Error(`${argument} was not refused`);
}

test.each(['a:b', '*', '', '🙂'])('no entry is named for the tenant %j', (id) => {
  expectRefused(() => lookup(id, perceptualHashes, HASH), 'tenantId');
  expectRefused(() => entry(id, perceptualHashes, HASH, 'text'), 'tenantId');
});

test.each([0, -1, 1.5, 2 ** 31, Number.NaN, Number.POSITIVE_INFINITY, '1', null, undefined])(
  '%j is no number of matches',
  (topK) => {
    expectRefused(() => lookup('a', searches, { contentHash: HASH, topK: topK as never }), 'topK');
  },
);

test('two entries share a Redis key only where tenant, kind and key are the same', () => {
  const ttl = { embedding: 1, search: 1, phash: 1, faceDetection: 1, crawl: 1 };
  const tier = new RedisTier({ url: 'redis://localhost', ttl }, createLogger('silent'));
  // Of two hashes and a few of the rest, so that all but one part are often equal.
  const fewHashes = fc.constantFrom(HASH, 'cd'.repeat(32));
  const fewModels = fc.oneof(fc.constantFrom('a', 'b', 'a/b', '1', '10'), model);
  const fewTenants = fc.oneof(fc.constantFrom('a', 'b', '1', '..', 'face_embedding', 'a'.repeat(100)), tenant);
  const topK = fc.oneof(fc.constantFrom(1, 10), fc.integer({ min: 1, max: 2 ** 31 - 1 }));
  const asked: fc.Arbitrary<{ kind: AnyKind; key: unknown }> = fc.oneof(
    record({
      kind: fc.constantFrom(...([perceptualHashes, crawlContents, crawlUrls, rejections] as AnyKind[])),
      key: fewHashes,
    }),
    record({
      kind: fc.constantFrom(...([faceEmbeddings, faceDetections] as AnyKind[])),
      key: record({ contentHash: fewHashes, model: fewModels }),
    }),
    record({ kind: fc.constant(searches as AnyKind), key: record({ contentHash: fewHashes, topK }) }),
  );
  fc.assert(
    fc.property(fewTenants, asked, fewTenants, asked, (tenantA, a, tenantB, b) => {
      const [one, other] = [lookup(tenantA, a.kind, a.key), lookup(tenantB, b.kind, b.key)];
      const same = isDeepStrictEqual([tenantA, a.kind.name, a.key], [tenantB, b.kind.name, b.key]);
      expect(tier.keyOf(one.id) === tier.keyOf(other.id)).toBe(same);
    }),
    { numRuns: 5_000 },
  );
});
