/** What a process asks PostgreSQL for, every 400 ms. */
import type { QueryResultRow } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Coherence } from '../../src/cache/coherence.js';
import type { Tiers } from '../../src/cache/hybrid.js';
import type { Query } from '../../src/cache/query.js';
import { entry, type Stored } from '../../src/cache/tier.js';
import { Events } from '../../src/events.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { createLogger } from '../../src/logger.js';
import { createMetrics } from '../../src/metrics.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

let world: World;
let cache: OpenCache;

beforeAll(async () => {
  world = await createWorld();
  cache = openCache(world.config(), world.namespace);
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

const sql = async (text: string, values: unknown[]) => (await cache.connection.pool.query(text, values)).rows;

/**
 * Polls when it is told to alone; `repairs` are how many of them PostgreSQL told of, round by round.
 *
 * @param mayConfirm holds back what is told to PostgreSQL of them
 */
function listening(redis: Tiers['redis'], mayConfirm?: Promise<void>): { coherence: Coherence; repairs: number[] } {
  const { query, tiers } = cache.connection;
  const repairs: number[] = [];
  const heard: Query = async <Row extends QueryResultRow>(...asked: Parameters<Query>) => {
    if (asked[0].name === 'coherence_confirm') await mayConfirm;
    const result = await query<Row>(...asked);
    if (asked[0].name === 'coherence') repairs.push(result.rows[0]?.repairs.length);
    return result;
  };
  const log = createLogger('error', { write: () => undefined });
  const postgres = { query: heard, guard: tiers.postgres.guard };
  return { coherence: new Coherence(postgres, redis, new Events(createMetrics(), log), 60), repairs };
}

test('who has no Redis hears of generations, and not of what Redis has yet to confirm', async () => {
  const tenant = freshTenant();
  await sql(
    `insert into redis_repairs (tenant_id, entry, version, written_at)
     select $1, 'perceptual_hash:' || $1 || ':' || n, n, now() - interval '1 minute' from generate_series(1, 3) n`,
    [tenant],
  );
  const alone = listening(null);
  await alone.coherence.poll();
  const [{ generation }] = (await sql('select new_generation::float8 as generation from invalidate_tenant_cache($1)', [
    tenant,
  ])) as [{ generation: number }];
  await alone.coherence.poll();
  expect(alone.repairs).toEqual([0, 0]);
  expect(alone.coherence.generationOf(tenant)).toBe(generation);

  const both = listening(cache.connection.tiers.redis);
  await both.coherence.poll();
  expect(both.repairs).toEqual([3]);
  expect(both.coherence.generationOf(tenant)).toBe(generation);
  expect(await sql('select from redis_repairs where tenant_id = $1', [tenant])).toEqual([]);
});

test('a repair that somebody has locked holds up nobody who asks for generations', async () => {
  const tenant = freshTenant();
  const entry = `perceptual_hash:${tenant}:locked`;
  await sql('insert into redis_repairs (tenant_id, entry, version) values ($1, $2, 1)', [tenant, entry]);
  const { coherence } = listening(null);
  await coherence.poll();
  const other = await cache.connection.pool.connect();
  try {
    await other.query('begin');
    await other.query('select from redis_repairs where entry = $1 for update', [entry]);
    coherence.confirmed([{ tenantId: tenant, id: entry, version: 1, overwrote: true } as Stored]);
    await sql('select invalidate_tenant_cache($1)', [tenant]);
    await coherence.poll();
    expect(coherence.generationOf(tenant)).toBeGreaterThan(1);
  } finally {
    await other.query('rollback');
    other.release();
  }
});

test('the first answer does not wait until all is repaired', async () => {
  const tenant = freshTenant();
  const repair = [tenant, `perceptual_hash:${tenant}:late`];
  await sql(
    `insert into redis_repairs (tenant_id, entry, version, written_at) values ($1, $2, 1, now() - interval '1 minute')`,
    repair,
  );
  let mayConfirm = () => undefined as void;
  const { coherence, repairs } = listening(
    cache.connection.tiers.redis,
    new Promise((resolve) => {
      mayConfirm = resolve;
    }),
  );
  await coherence.begin();
  expect(repairs).toEqual([1]);
  expect(await sql('select from redis_repairs where tenant_id = $1', [tenant])).toHaveLength(1);
  mayConfirm();
  await coherence.close();
  expect(await sql('select from redis_repairs where tenant_id = $1', [tenant])).toEqual([]);
});

test('what PostgreSQL has is no miss while nobody can tell whether its generation is over', async () => {
  const tenant = freshTenant();
  const key = sha256('of a generation');
  const { hybrid, pool, tiers } = cache.connection;
  await hybrid.write([entry(tenant, perceptualHashes, key, '0123456789abcdef')], { hotWithoutDurable: false });
  const state = async () => (await hybrid.read(tenant, perceptualHashes, key)).state;
  expect(await state()).toBe('hit');
  // Redis tells of a later generation, and what says whether there is one is locked: the tables are not.
  await tiers.redis?.tier.tellGeneration(tenant, 1_000_000);
  const other = await pool.connect();
  try {
    await other.query('begin');
    await other.query('lock table redis_repairs in access exclusive mode');
    const states = new Set<string>();
    await until('the answer to be unknown', async () => {
      states.add(await state());
      return states.has('unknown');
    });
    expect(states).not.toContain('miss');
    expect(tiers.postgres.guard.isUp).toBe(true);
  } finally {
    await other.query('rollback');
    other.release();
  }
  await until('PostgreSQL to tell again', async () => (await state()) === 'hit');
});
