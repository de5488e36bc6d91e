/** Forgetting on purpose, through every outage that may come with it. Real servers, real signals, several processes. */
import { once } from 'node:events';
import { Client } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Answer } from '../../src/cache/answer.js';
import { type Entry, entry, type FoundValue } from '../../src/cache/tier.js';
import { ArgumentError, TierUnavailableError } from '../../src/errors.js';
import { crawlContents, rejections } from '../../src/kinds/crawl.js';
import { sha256 } from '../../src/kinds/identity.js';
import { KINDS } from '../../src/kinds/index.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { robotsFiles } from '../../src/kinds/robots.js';
import { FACE } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { isUp, noticed, Servers } from './chaos-support.js';
import { freshTenant, type OpenCache } from './support.js';

const HASH = sha256('invalidation');
const URL_OF = 'https://example.com/invalidation.jpg';
const REFUSED = 'https://example.com/refused.jpg';
const ORIGIN = 'https://example.com';
const PHASH = '0f0f0f0f0f0f0f0f';
const ROWS = KINDS.length;
/** SPEC: every other process stops within a second. */
const PROMISED_MS = 1_000;
const TABLES = KINDS.map(({ table }) => table.name);

let servers: Servers;
let a: OpenCache;
let b: OpenCache;
let tenant: string;

beforeAll(async () => {
  servers = await Servers.start();
});

afterAll(() => servers[Symbol.asyncDispose]());

beforeEach(() => {
  tenant = freshTenant();
  a = servers.open();
  b = servers.open();
});

afterEach(() => servers.heal());

/** One entry of every kind. */
async function fill({ service, records, connection }: OpenCache, tenantId = tenant, hash = HASH): Promise<void> {
  expect(await service.cacheFaceEmbeddings(hash, tenantId, [FACE])).toBe(true);
  expect(await service.cacheFaceDetection(hash, tenantId, [])).toBe(true);
  expect(await service.cachePerceptualHash(hash, tenantId, PHASH)).toBe(true);
  expect(await service.cacheSearchResults(hash, tenantId, 5, [{ id: 1 }])).toBe(true);
  expect(await service.storeCrawledImage(URL_OF, hash, { rawKey: 'raw' }, tenantId)).toBe(true);
  await records.reject(tenantId, { url: REFUSED }, { reason: 'gone', detail: '410', jobId: null });
  const robots = { origin: ORIGIN, rules: '', trouble: null, fetchedAt: 0, expiresAt: 1 };
  await connection.hybrid.write([entry(tenantId, robotsFiles, sha256(ORIGIN), robots)], { hotWithoutDurable: false });
}

/** How many of those entries a process serves. */
async function served({ service, connection: { hybrid } }: OpenCache, tenantId = tenant, hash = HASH): Promise<number> {
  const answers = await Promise.all([
    service.getCachedFaceEmbeddings(hash, tenantId),
    service.getCachedFaceDetection(hash, tenantId),
    service.getCachedPerceptualHash(hash, tenantId),
    service.getCachedSearchResults(hash, tenantId, 5),
    service.shouldSkipUrl(URL_OF, tenantId).then(({ rawKey }) => rawKey),
    hybrid.read(tenantId, crawlContents, hash).then(valueOf),
    hybrid.read(tenantId, rejections, sha256(REFUSED)).then(valueOf),
    hybrid.read(tenantId, robotsFiles, sha256(ORIGIN)).then(valueOf),
  ]);
  return answers.filter((answer) => answer !== null).length;
}

function valueOf(answer: Answer): unknown {
  return answer.state === 'hit' ? answer.value : null;
}

const servesNothing = async (cache: OpenCache) => (await served(cache)) === 0;

/** Rows of a tenant, reachable or not, by table. */
async function rows(tenantId: string): Promise<Record<string, number>> {
  const counts = await Promise.all(
    [...TABLES, 'perceptual_hash_bands'].map(async (table) => {
      const [row] = await servers.sql<{ n: number }>(`select count(*)::int as n from ${table} where tenant_id = $1`, [
        tenantId,
      ]);
      return [table, row?.n ?? 0] as const;
    }),
  );
  return Object.fromEntries(counts.filter(([, n]) => n > 0));
}

/** Names of the entries that Redis holds of a tenant, whatever they are worth. */
async function keys(tenantId: string): Promise<string[]> {
  const all = await servers.redis((redis) => redis.keys(`${servers.prefix}:*`));
  const names = all.map((key) => key.slice(servers.prefix.length + 1));
  return names.filter((name) => !name.startsWith('generation:') && name.split(':')[1] === tenantId);
}

test('counts every row that it makes unreachable, of every kind, and the second time none [M26]', async () => {
  const other = freshTenant();
  await fill(a);
  await fill(a, other);
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS);
  expect(await a.service.invalidateTenantCache(tenant)).toBe(0);
  expect(await served(a)).toBe(0);
  expect(await a.service.invalidateTenantCache(freshTenant())).toBe(0);
  expect(await served(a, other)).toBe(ROWS);
});

test('versions of a URL are rows, and are counted as such', async () => {
  for (const version of ['one', 'two', 'three']) {
    expect(await a.service.storeCrawledImage(URL_OF, Buffer.from(version), { rawKey: version }, tenant)).toBe(true);
  }
  expect(await a.service.invalidateTenantCache(tenant)).toBe(6);
});

test('two processes that invalidate at once count no row twice', async () => {
  for (let round = 0; round < 5; round++) {
    await fill(a);
    const counts = await Promise.all([a, b, a, b].map(({ service }) => service.invalidateTenantCache(tenant)));
    expect(counts.reduce((sum, count) => sum + count)).toBe(ROWS);
    expect(await served(a)).toBe(0);
    expect(await served(b)).toBe(0);
  }
});

test('this process serves nothing older from then on, and every other one stops within a second [M26]', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  await a.service.invalidateTenantCache(tenant);
  expect(await served(a)).toBe(0);
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
  for (let i = 0; i < 20; i++) expect([await served(a), await served(b)]).toEqual([0, 0]);
});

test('what is written afterwards is served by everyone, also when its writer has not heard of the invalidation', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  await a.service.invalidateTenantCache(tenant);
  expect(await b.service.cachePerceptualHash(HASH, tenant, 'new')).toBe(true);
  expect(await b.service.getCachedPerceptualHash(HASH, tenant)).toBe('new');
  expect(await a.service.getCachedPerceptualHash(HASH, tenant)).toBe('new');
  await until('the other process to stop', async () => (await served(b)) === 1, PROMISED_MS);
  expect(await a.service.getCachedFaceEmbeddings(HASH, tenant)).toBeNull();
});

test('a read that is under way when the tenant is invalidated answers nothing older', async () => {
  const link = await servers.link('postgres');
  const reader = servers.open({ DATABASE_URL: link.url });
  const plain = servers.openWithoutRedis();
  expect(await plain.service.cacheSearchResults(HASH, tenant, 5, ['old'])).toBe(true);
  expect(await reader.service.getCachedSearchResults(sha256('warm'), tenant, 5)).toBeNull();
  const [before] = await servers.sql<{ now: string }>('select clock_timestamp()::text as now');
  link.hold();
  const reading = reader.service.getCachedSearchResults(HASH, tenant, 5);
  await until('PostgreSQL to have answered', async () => {
    const [row] = await servers.sql<{ done: boolean }>(
      `select count(*) > 0 as done from pg_stat_activity
         where query like 'select 0, 0%from search_results_cache%' and state = 'idle' and query_start > $1::timestamptz`,
      [before?.now],
    );
    return row?.done;
  });
  expect(await reader.service.invalidateTenantCache(tenant)).toBe(1);
  link.letGo();
  expect(await reading).toBeNull();
});

test('a backfill that arrives late revives nothing', async () => {
  await fill(a);
  const redis = a.connection.tiers.redis?.tier;
  const one = entry(tenant, perceptualHashes, HASH, PHASH);
  const [old] = (await a.connection.tiers.postgres.tier.read([one])) as [FoundValue];
  await a.service.invalidateTenantCache(tenant);
  await redis?.write([{ ...one, generation: old.generation, version: old.version }]);
  expect(await a.service.getCachedPerceptualHash(HASH, tenant)).toBeNull();
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
  await redis?.write([{ ...one, generation: old.generation, version: old.version }]);
  expect([await served(a), await served(b), await served(servers.open())]).toEqual([0, 0, 0]);
});

test('backfills of another process that run into invalidations revive nothing', async () => {
  const plain = servers.openWithoutRedis();
  for (let round = 0; round < 10; round++) {
    const hash = sha256(`round ${round}`);
    expect(await plain.service.cachePerceptualHash(hash, tenant, PHASH)).toBe(true);
    const reading = Promise.all(Array.from({ length: 5 }, () => b.service.getCachedPerceptualHash(hash, tenant)));
    const [invalidated] = await Promise.all([a.service.invalidateTenantCache(tenant), reading]);
    expect(invalidated).toBe(1);
    expect(await a.service.getCachedPerceptualHash(hash, tenant)).toBeNull();
    const stopped = async () => (await b.service.getCachedPerceptualHash(hash, tenant)) === null;
    await until('the other process to stop', stopped, PROMISED_MS);
  }
});

test('Redis is down during the call and comes back with all it had: nothing of it is served [M26]', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  await servers.kill('redis');
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS);
  expect(await served(a)).toBe(0);
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
  await servers.restart('redis');
  await until('Redis to be used again', () => isUp('redis', a, b));
  expect(await keys(tenant)).not.toEqual([]);
  for (const cache of [a, b, servers.open()]) expect(await served(cache)).toBe(0);
});

test('Redis restarts from an old copy of its data: nothing of it is served, also while PostgreSQL is away', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  const putBack = await servers.copyRedis();
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS);
  await until('the dead entries to be deleted', async () => (await keys(tenant)).length === 0);
  await servers.kill('redis');
  await putBack();
  await servers.restart('redis');
  await until('Redis to be used again', () => isUp('redis', a, b));
  expect(await keys(tenant)).not.toEqual([]);
  for (const cache of [a, b, servers.open()]) expect(await served(cache)).toBe(0);
  await servers.kill('postgres');
  await noticed('postgres', a, b);
  for (const cache of [a, b, servers.open()]) expect(await served(cache)).toBe(0);
});

test('Redis is frozen during the call: nothing older is served, before and after it goes on', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  await servers.freeze('redis');
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS);
  expect(await served(a)).toBe(0);
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
  await servers.thaw('redis');
  await until('Redis to be used again', () => isUp('redis', a, b));
  for (const cache of [a, b, servers.open()]) expect(await served(cache)).toBe(0);
});

test('Redis is cut off for the invalidating process alone: the others stop within a second', async () => {
  const link = await servers.link('redis');
  const alone = servers.open({ REDIS_URL: link.url });
  await fill(alone);
  expect(await served(b)).toBe(ROWS);
  link.cut();
  expect(await alone.service.invalidateTenantCache(tenant)).toBe(ROWS);
  expect(await served(alone)).toBe(0);
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
  await link.mend();
  await until('Redis to be used again', () => isUp('redis', alone));
  for (const cache of [alone, b, servers.open()]) expect(await served(cache)).toBe(0);
});

test('PostgreSQL goes away right after the call: processes that have not heard of it ask Redis', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS);
  await servers.kill('postgres');
  expect(await served(a)).toBe(0);
  expect(await served(servers.open())).toBe(0);
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
});

test('PostgreSQL is cut off for another process alone: that one stops within a second too', async () => {
  const link = await servers.link('postgres');
  const alone = servers.open({ DATABASE_URL: link.url });
  await fill(a);
  expect(await served(alone)).toBe(ROWS);
  link.cut();
  await noticed('postgres', alone);
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS);
  await until('that process to stop', () => servesNothing(alone), PROMISED_MS);
});

test('PostgreSQL is down: the call rejects, and nothing has changed [M26]', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  const copies = () =>
    servers.redis(async (redis) => {
      const names = await redis.keys(`${servers.prefix}:generation:*`);
      return Promise.all(names.sort().map(async (name) => [name, (await redis.getBuffer(name))?.toString('hex')]));
    });
  const before = await copies();
  await servers.kill('postgres');
  await expect(a.service.invalidateTenantCache(tenant)).rejects.toBeInstanceOf(TierUnavailableError);
  await expect(a.service.invalidateTenantCache(tenant)).rejects.toThrow('postgres is unavailable');
  expect(await copies()).toEqual(before);
  expect([await served(a), await served(b)]).toEqual([ROWS, ROWS]);
  await servers.restart('postgres');
  await until('PostgreSQL to be used again', () => isUp('postgres', a, b));
  expect(await served(servers.openWithoutRedis())).toBe(ROWS);
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS);
});

test('other tenants and queues stay, whatever they are called [M26]', async () => {
  const names = ['crawl', 'bull', 'a.b', 'axb', 'a', 'x'.repeat(100), 'x'.repeat(99), HASH, 'generation', 'replay'];
  for (const name of names) await fill(a, name);
  const queue = ['bull:crawl:wait', 'bull:crawl:meta', 'bull:embedding:a.b:1', `${servers.prefix}:replay`];
  await servers.redis(async (redis) => {
    for (const key of queue) await redis.rpush(key, 'a job');
  });
  for (const [i, name] of names.entries()) {
    expect(await a.service.invalidateTenantCache(name)).toBe(ROWS);
    await until(`the entries of ${name} to be deleted`, async () => (await keys(name)).length === 0);
    for (const gone of names.slice(0, i + 1)) expect(await served(a, gone)).toBe(0);
    for (const stays of names.slice(i + 1)) {
      expect(await served(a, stays)).toBe(ROWS);
      expect(await keys(stays)).toHaveLength(ROWS);
    }
  }
  await servers.redis(async (redis) => {
    expect(await redis.exists(...queue)).toBe(queue.length);
    await redis.del(...queue);
  });
  await expect(a.service.invalidateTenantCache('*')).rejects.toBeInstanceOf(ArgumentError);
});

/** More than two batches. */
function many(tenantId: string, count = 2_500): Entry[] {
  return Array.from({ length: count }, (_, i) => {
    const hash = sha256(`entry ${i}`);
    return entry(tenantId, perceptualHashes, hash, hash.slice(0, 16));
  });
}

test('what is dead is deleted afterwards from every table and from Redis, and what is new stays', async () => {
  await fill(a);
  await a.connection.hybrid.write(many(tenant), { hotWithoutDurable: false });
  expect(await a.service.invalidateTenantCache(tenant)).toBe(ROWS + 2_500);
  expect(await a.service.cachePerceptualHash(HASH, tenant, PHASH)).toBe(true);
  const left = { perceptual_hash_cache: 1, perceptual_hash_bands: 4 };
  await until('the dead rows to be deleted', () => isPurged(tenant));
  expect(await rows(tenant)).toEqual(left);
  await until('the dead entries to be deleted', async () => (await keys(tenant)).length === 1);
  expect(await a.service.getCachedPerceptualHash(HASH, tenant)).toBe(PHASH);
});

test('a process that dies behind its decision leaves the deleting to others', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  const [decided] = await servers.sql<{ invalidated: string }>('select invalidated from invalidate_tenant_cache($1)', [
    tenant,
  ]);
  expect(Number(decided?.invalidated)).toBe(ROWS);
  await until('the others to stop', async () => (await servesNothing(a)) && (await servesNothing(b)), PROMISED_MS);
  expect(Object.keys(await rows(tenant))).not.toEqual([]);
  b.connection.invalidation.purge();
  await until('the dead rows to be deleted', async () => Object.keys(await rows(tenant)).length === 0);
  await until('the dead entries to be deleted', async () => (await keys(tenant)).length === 0);
});

test.each(['commit', 'rollback'])(
  'a process whose batch another has deleted, up to its %s, leaves no row behind',
  async (end) => {
    await Promise.all(
      Array.from({ length: 1_500 }, (_, n) => a.service.cachePerceptualHash(sha256(`${tenant} ${n}`), tenant, PHASH)),
    );
    await servers.sql('select invalidate_tenant_cache($1)', [tenant]);
    await using first = await transaction();
    const batch = `delete from perceptual_hash_cache where ctid = any(
    array(select ctid from perceptual_hash_cache where tenant_id = $1 limit 1000))`;
    expect((await first.query(batch, [tenant])).rowCount).toBe(1000);
    a.connection.invalidation.purge();
    const waiting = `select from pg_stat_activity where wait_event_type = 'Lock' and query like '%delete from perceptual_hash%'`;
    await until('the second to wait for the first', async () => (await servers.sql(waiting)).length > 0);
    await first.query(end);
    await until('the deleting to be noted', () => isPurged(tenant));
    expect(await rows(tenant)).toEqual({});
  },
);

test('a batch does not pass again what was deleted before it, while vacuum cannot remove that', async () => {
  const count = 20_000;
  await servers.sql(
    `insert into face_detection_cache (tenant_id, generation, content_hash, model, faces, payload, version)
     select $1, generation, 'hash ' || n, 'm@1', 0, '', n from cache_generations, generate_series(1, $2::int) n
     where tenant_id = '*'`,
    [tenant, count],
  );
  await using long = await transaction();
  await long.query('set transaction isolation level repeatable read');
  await long.query('select from face_detection_cache limit 1');
  await servers.sql('select invalidate_tenant_cache($1)', [tenant]);
  const before = await entriesRead('face_detection_cache_pk');
  // As where there are so many tenants that only the index leads to this one.
  const database = new URL(servers.stack.env.DATABASE_URL);
  database.searchParams.set('options', '-c enable_seqscan=off -c enable_bitmapscan=off');
  const purging = servers.open({ DATABASE_URL: database.href });
  purging.connection.invalidation.purge();
  await until('the deleting to be noted', () => isPurged(tenant));
  await servers.close(purging);
  // Once to delete them, and once to see that none is left.
  expect((await entriesRead('face_detection_cache_pk')) - before).toBe(2 * count);
  expect(await rows(tenant)).toEqual({});
});

test('a crowd of invalidations leaves connections to reads', async () => {
  await fill(a);
  await using busy = await transaction();
  await busy.query(`select from cache_generations where tenant_id = '*' for update`);
  const crowd = Array.from({ length: 12 }, () => a.service.invalidateTenantCache(freshTenant()));
  const waiting = `select from pg_stat_activity where wait_event_type = 'Lock' and query like '%invalidate_tenant%'`;
  await until('an invalidation to wait', async () => (await servers.sql(waiting)).length > 0);
  await servers.redis((redis) => redis.flushdb());
  expect(await a.service.getCachedPerceptualHash(HASH, tenant)).toBe(PHASH);
  await busy.query('commit');
  expect(await Promise.all(crowd)).toEqual(crowd.map(() => 0));
});

test('a process that stands still before it commits holds up nobody else for long, and has done nothing', async () => {
  await fill(a);
  const goesOn = new AbortController();
  const wakes = once(goesOn.signal, 'abort');
  a.connection.pool.on('acquire', (client: Pick<Client, 'query'>) => {
    const query = client.query.bind(client) as (...args: unknown[]) => unknown;
    const late = async (...args: unknown[]) => (await wakes) && query(...args);
    Object.assign(client, { query: (...args: unknown[]) => (args[0] === 'commit' ? late : query)(...args) });
  });
  const still = a.service.invalidateTenantCache(tenant).catch((error: unknown) => error);
  const waiting = `select from pg_stat_activity where state = 'idle in transaction' and query like '%invalidate_tenant%'`;
  await until('it to stand still', async () => (await servers.sql(waiting)).length > 0);
  expect(await b.service.invalidateTenantCache(freshTenant())).toBe(0);
  goesOn.abort();
  expect(await still).toBeInstanceOf(TierUnavailableError);
  expect(await served(b)).toBe(ROWS);
});

test('clearAllCache empties both tiers, and leaves queues, the journal and foreign keys [M28]', async () => {
  const foreign = [
    'bull:crawl:wait',
    `${servers.prefix}:replay`,
    `${servers.prefix}x:phash:a:b`,
    'perceptual_hash:a:b',
  ];
  await fill(a);
  await fill(b, freshTenant());
  await servers.redis(async (redis) => {
    for (const key of foreign) await redis.rpush(key, 'stays');
  });
  // @ts-expect-error: every tenant is affected, so it has to be said
  await expect(a.service.clearAllCache({})).rejects.toBeInstanceOf(ArgumentError);
  // @ts-expect-error
  await expect(a.service.clearAllCache()).rejects.toBeInstanceOf(ArgumentError);
  expect(await served(a)).toBe(ROWS);

  expect(await a.service.clearAllCache({ confirm: true })).toBe(true);
  for (const table of [...TABLES, 'perceptual_hash_bands', 'redis_repairs']) {
    expect(await servers.sql(`select from ${table}`)).toEqual([]);
  }
  const left = await servers.redis((redis) => redis.keys(`${servers.prefix}:*`));
  // What processes that cannot ask PostgreSQL go by holds nobody’s facts.
  const entries = left.filter((key) => !/:(generation:.*|incarnation)$/.test(key));
  expect(entries).toEqual([`${servers.prefix}:replay`]);
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
  await servers.redis(async (redis) => {
    expect(await redis.exists(...foreign)).toBe(foreign.length);
    await redis.del(...foreign);
  });
  await fill(b);
  expect([await served(a), await served(b)]).toEqual([ROWS, ROWS]);
});

test('clearAllCache says false while Redis is away, and what Redis still has is not served later [M28]', async () => {
  await fill(a);
  expect(await served(b)).toBe(ROWS);
  await servers.freeze('redis');
  expect(await a.service.clearAllCache({ confirm: true })).toBe(false);
  expect(await served(a)).toBe(0);
  await servers.thaw('redis');
  await until('Redis to be used again', () => isUp('redis', a, b));
  await until('the other process to stop', () => servesNothing(b), PROMISED_MS);
  expect(await served(servers.open())).toBe(0);
  expect(await a.service.clearAllCache({ confirm: true })).toBe(true);
});

test('clearAllCache says false while PostgreSQL is away, having done nothing [M28]', async () => {
  await fill(a);
  await servers.kill('postgres');
  expect(await a.service.clearAllCache({ confirm: true })).toBe(false);
  expect(await served(a)).toBe(ROWS);
  expect(await keys(tenant)).toHaveLength(ROWS);
});

test('a process that is closed in the middle of deleting leaves the rest to others [M26]', async () => {
  const closing = servers.open();
  const entries = many(tenant, 20_000);
  for (let i = 0; i < entries.length; i += 1_000) {
    const written = await closing.connection.hybrid.write(entries.slice(i, i + 1_000), { hotWithoutDurable: false });
    expect(written.durable).toBe(true);
  }
  expect(await closing.service.invalidateTenantCache(tenant)).toBe(20_000);
  await closing[Symbol.asyncDispose]();
  expect(await isPurged(tenant)).toBe(false);
  a.connection.invalidation.purge();
  await until('the dead rows to be deleted', async () => Object.keys(await rows(tenant)).length === 0);
  await until('the deleting to be noted', () => isPurged(tenant));
});

test('many tenants are deleted from Redis in one look through it', async () => {
  const tenants = Array.from({ length: 20 }, () => freshTenant());
  for (const one of tenants) await a.service.cachePerceptualHash(HASH, one, PHASH);
  await Promise.all(tenants.map((one) => servers.sql('select invalidate_tenant_cache($1)', [one])));
  await a.service.cachePerceptualHash(HASH, tenants[0] as string, PHASH);
  await servers.redis((redis) => redis.config('RESETSTAT'));
  a.connection.invalidation.purge();
  await until('all of them to be noted', async () => (await Promise.all(tenants.map(isPurged))).every(Boolean));
  const left = await Promise.all(tenants.map(async (one) => (await keys(one)).length));
  expect(left).toEqual(tenants.map((_, i) => (i === 0 ? 1 : 0)));
  const told = await servers.redis((redis) => redis.info('commandstats'));
  expect(Number(/cmdstat_scan:calls=(\d+)/.exec(told)?.[1])).toBeLessThan(tenants.length);
});

/** Whether a process has noted that nothing dead of the tenant is left. */
async function isPurged(tenantId: string): Promise<boolean> {
  const unfinished = 'select from cache_generations where tenant_id = $1 and purged < generation';
  return (await servers.sql(unfinished, [tenantId])).length === 0;
}

/** How many entries of an index were read so far. A connection tells of its last reads when it ends: closes the caches. */
async function entriesRead(index: string): Promise<number> {
  for (const cache of [a, b]) await servers.close(cache);
  const others = `select from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid() and state is distinct from 'idle in transaction'`;
  await until('all connections to end', async () => (await servers.sql(others)).length === 0);
  const [row] = await servers.sql<{ read: number }>(
    'select idx_tup_read::float8 as read from pg_stat_user_indexes where indexrelname = $1',
    [index],
  );
  return row?.read ?? Number.NaN;
}

/** Of somebody else, begun; what is not committed by its end is taken back. */
async function transaction(): Promise<Pick<Client, 'query'> & AsyncDisposable> {
  const client = new Client({ connectionString: servers.stack.env.DATABASE_URL });
  await client.connect();
  await client.query('begin');
  return { query: client.query.bind(client), [Symbol.asyncDispose]: () => client.end() };
}
