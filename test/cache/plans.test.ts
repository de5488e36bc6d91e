/** The plans of what is asked beside look-ups: in tables of ten thousand rows none of it reads a table whole. */
import type { QueryResultRow } from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { Claims } from '../../src/cache/claims.js';
import { Coherence } from '../../src/cache/coherence.js';
import { viewImage } from '../../src/cache/image-view.js';
import { Invalidation } from '../../src/cache/invalidation.js';
import type { Query } from '../../src/cache/query.js';
import type { Stored } from '../../src/cache/tier.js';
import { Events } from '../../src/events.js';
import { sha256 } from '../../src/kinds/identity.js';
import { createLogger } from '../../src/logger.js';
import { createMetrics } from '../../src/metrics.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

const ROWS = 10_000;
const HASH = sha256('plans');

let world: World;
let cache: OpenCache;
let tenant: string;
let plans: Map<string, string>;

beforeAll(async () => {
  world = await createWorld();
  cache = openCache(world.config(), world.namespace);
  tenant = freshTenant();
  await cache.service.storeCrawledImage('https://example.com/', HASH, { rawKey: 'raw' }, tenant);
  await sql(`insert into cache_generations (tenant_id, generation, purged) select 'tenant ' || n, 1, 1
    from generate_series(1, ${ROWS}) as n`);
  await sql(`insert into redis_repairs (tenant_id, entry, version) select 'tenant', 'rejection:tenant:' || n, n
    from generate_series(1, ${ROWS}) as n`);
  await sql(`insert into claims (tenant_id, subject, holder, claimed_at, expires_at)
    select 'tenant ' || n % 100, n, n, now(), now() + interval '1 hour' from generate_series(1, ${ROWS}) as n`);
  await sql(`insert into crawl_cache (tenant_id, generation, url_hash, content_hash, url, raw_key, fetched_at, version)
    select 'tenant ' || n % 1000, 1, n, n, n, n, now(), n from generate_series(1, ${ROWS}) as n`);
  await sql('analyze');
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

beforeEach(() => {
  plans = new Map();
});

const sql = async (text: string) => (await cache.connection.pool.query(text)).rows;

/** Asks as the cache does, and looks at how PostgreSQL will go about it. */
const explained: Query = async <Row extends QueryResultRow>(...asked: Parameters<Query>) => {
  const [{ name, text, values }] = asked;
  const { rows } = await cache.connection.pool.query(`explain (costs off) ${text}`, values);
  plans.set(name ?? text, rows.map((row) => row['QUERY PLAN']).join('\n'));
  return cache.connection.query<Row>(...asked);
};

const events = () => new Events(createMetrics(), createLogger('silent'));

function coherence(): Coherence {
  return new Coherence({ query: explained, guard: cache.connection.tiers.postgres.guard }, null, events(), 60);
}

/** Of statements that were asked; what is about an empty table besides may well read it whole. */
function expectIndexes(...names: string[]): void {
  for (const name of names) {
    expect(plans.get(name), name).toMatch(/Index|Tid Scan/);
    expect(plans.get(name), name).not.toMatch(/Seq Scan on (cache_generations|redis_repairs|claims|crawl_cache)/);
  }
}

test('what has changed, and what Redis has confirmed [M45]', async () => {
  const one = coherence();
  await one.poll();
  plans.clear(); // the first time, all is asked for
  one.confirmed([{ tenantId: 'tenant', id: 'rejection:tenant:7', version: 7, overwrote: true } as Stored]);
  await one.poll();
  expectIndexes('coherence', 'coherence_confirm');
  expect(await sql("select from redis_repairs where entry = 'rejection:tenant:7'")).toEqual([]);
});

test('what was invalidated and is to be deleted [M45]', async () => {
  const { tiers, pool } = cache.connection;
  const invalidation = new Invalidation(tiers, pool, explained, coherence(), events());
  await sql("select invalidate_tenant_cache('tenant 7')");
  invalidation.purge();
  await until(
    'it to be deleted',
    async () => (await sql('select from cache_generations where purged < generation')).length === 0,
  );
  await invalidation.close();
  expect(plans.get('purge_next')).toContain('cache_generations_unpurged_idx');
  expectIndexes('purge_next', 'purge_look crawl_cache', 'purge crawl_cache', 'purged');
});

test('the URLs of an image [M45]', async () => {
  const view = await viewImage({ ...cache.connection, query: explained }, tenant, HASH, 'model@1');
  expect(view?.urls).toEqual(['https://example.com/']);
  expectIndexes('image_urls');
});

test('claims [M45]', async () => {
  const claims = new Claims(explained);
  const claim = { tenantId: tenant, subject: 's', holder: 'h' };
  const taken = await claims.take(claim, 1_000);
  if (!taken.taken) throw new Error('nobody else was to have the claim');
  await claims.release(claim, new Map([[claim.subject, taken.since]]));
  await claims.releaseAll(claim);
  await claims.forgetExpired();
  expect(plans.size).toBe(4);
  expectIndexes(...plans.keys());
});
