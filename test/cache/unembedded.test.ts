/** The sweep's question: which recorded images have no embedding of a model, and no reason why not. */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type Unembedded, unembeddedSince } from '../../src/cache/unembedded.js';
import { TierUnavailableError } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { createWorld, type World } from '../support/world.js';
import { type OpenCache, openCache } from './support.js';

const MODEL = 'puppet@1';
const EVER = new Date(0);

let world: World;
let cache: OpenCache;

beforeAll(async () => {
  world = await createWorld();
  cache = openCache(world.config({ REDIS_URL: 'none' }), world.namespace);
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

beforeEach(() => cache.connection.pool.query('truncate crawl_content_cache, face_embeddings_cache, rejection_cache'));

/** Records images, all in one transaction and so all at the same microsecond. */
async function record(tenant: string, names: readonly string[]): Promise<void> {
  const text = `insert into crawl_content_cache (tenant_id, generation, content_hash, raw_key, job_id, stored_at, version)
    select $1, (select max(generation) from cache_generations where tenant_id in ($1, '*')), hash, 'raw', 'job', now(), 1 from unnest($2::text[]) as hash`;
  await cache.connection.pool.query(text, [tenant, names.map((name) => sha256(name))]);
}

async function pages(since = EVER, model = MODEL): Promise<Unembedded[][]> {
  const all: Unembedded[][] = [];
  for await (const page of unembeddedSince(cache.connection.query, model, since)) {
    all.push(page);
    if (all.length > 20) throw new Error('there is no end to it');
  }
  return all;
}

const found = async (since?: Date, model?: string) =>
  (await pages(since, model)).flat().map(({ tenantId, contentHash }) => ({ tenantId, contentHash }));
const image = (tenantId: string, name: string) => ({ tenantId, contentHash: sha256(name) });

test('an empty table has none', async () => {
  expect(await pages()).toEqual([]);
});

test('an image that no job of ours stored is left out: its bytes are in a store of somebody else', async () => {
  await record('a', ['ours']);
  await cache.connection.pool.query('update crawl_content_cache set job_id = null');
  expect(await found()).toEqual([]);
});

test('images of all tenants are given, oldest first', async () => {
  for (const [tenant, name] of [
    ['b', 'first'],
    ['a', 'second'],
    ['c', 'third'],
  ] as const)
    await record(tenant, [name]);
  expect(await found()).toEqual([image('b', 'first'), image('a', 'second'), image('c', 'third')]);
});

test.each([999, 1_000, 1_001, 2_500])('%d images recorded at one moment are given once each', async (count) => {
  const names = Array.from({ length: count }, (_, i) => `image ${i}`);
  await record('tenant', names);
  const all = await found();
  expect(all).toHaveLength(count);
  expect(new Set(all.map(({ contentHash }) => contentHash))).toEqual(new Set(names.map((name) => sha256(name))));
});

test('images recorded within a millisecond, more than a page of them, are given once each', async () => {
  await record(
    'tenant',
    Array.from({ length: 2_100 }, (_, i) => `image ${i}`),
  );
  const spread = `update crawl_content_cache as image set created_at = '2026-01-01T00:00:00.123Z'::timestamptz
      + numbered.n % 900 * interval '1 microsecond'
    from (select content_hash, row_number() over () as n from crawl_content_cache) as numbered
    where numbered.content_hash = image.content_hash`;
  await cache.connection.pool.query(spread);
  const all = await found();
  expect(all).toHaveLength(2_100);
  expect(new Set(all.map(({ contentHash }) => contentHash)).size).toBe(2_100);
});

test('an image is left out once it has an embedding of that model', async () => {
  await record('tenant', ['embedded', 'other model', 'neither']);
  await cache.service.cacheFaceEmbeddings(sha256('embedded'), 'tenant', [], { model: MODEL });
  await cache.service.cacheFaceEmbeddings(sha256('other model'), 'tenant', [], { model: 'other@1' });
  await cache.service.cacheFaceEmbeddings(sha256('neither'), 'another-tenant', [], { model: MODEL });
  expect(new Set(await found())).toEqual(new Set([image('tenant', 'other model'), image('tenant', 'neither')]));
  expect(await found(EVER, 'other@1')).toHaveLength(2);
});

test('an image that was refused for good is left out until the refusal ends', async () => {
  await record('tenant', ['refused', 'forgiven', 'fine']);
  const refusal = { reason: 'corrupt', detail: 'cut short', jobId: null } as const;
  for (const name of ['refused', 'forgiven']) {
    await cache.records.reject('tenant', { contentHash: sha256(name) }, refusal);
  }
  const end = "update rejection_cache set expires_at = now() - interval '1 second' where subject_hash = $1";
  await cache.connection.pool.query(end, [sha256('forgiven')]);
  expect(new Set(await found())).toEqual(new Set([image('tenant', 'forgiven'), image('tenant', 'fine')]));
});

test('an image that was unknown to an earlier job is given: by now it is known', async () => {
  await record('tenant', ['late']);
  const refusal = { reason: 'unknown-image', detail: 'no such image', jobId: null } as const;
  await cache.records.reject('tenant', { contentHash: sha256('late') }, refusal);
  expect(await found()).toEqual([image('tenant', 'late')]);
});

test('an image of a tenant that was invalidated since is left out, until it is recorded again', async () => {
  await record('invalidated', ['image']);
  await record('tenant', ['image']);
  await cache.connection.invalidation.invalidate('invalidated');
  expect(await found()).toEqual([image('tenant', 'image')]);
  await record('invalidated', ['image']);
  expect(new Set(await found())).toEqual(new Set([image('tenant', 'image'), image('invalidated', 'image')]));
});

test('only images recorded at the given moment or later are given', async () => {
  await record('tenant', ['old']);
  const age = "update crawl_content_cache set created_at = '2026-01-01T00:00:00Z'";
  await cache.connection.pool.query(age);
  await record('tenant', ['new']);
  expect(await found(new Date('2026-01-01T00:00:00.001Z'))).toEqual([image('tenant', 'new')]);
  expect(await found(new Date('2026-01-01T00:00:00Z'))).toHaveLength(2);
});

test('without PostgreSQL it says so, and does not answer that there are none', async () => {
  const nowhere = new URL(world.databaseUrl);
  nowhere.pathname = '/no_such_database';
  await using lost = openCache(world.config({ REDIS_URL: 'none', DATABASE_URL: nowhere.href }), world.namespace);
  const first = unembeddedSince(lost.connection.query, MODEL, EVER).next();
  await expect(first).rejects.toBeInstanceOf(TierUnavailableError);
});
