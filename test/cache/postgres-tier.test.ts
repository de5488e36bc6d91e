/** The permanent tier, on a real PostgreSQL. */
import type { Pool } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { PostgresTier } from '../../src/cache/postgres-tier.js';
import { type Entry, entry, type Lookup, lookup, type Stored } from '../../src/cache/tier.js';
import { createPool } from '../../src/db/client.js';
import { crawlContents, crawlUrls } from '../../src/kinds/crawl.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { createLogger } from '../../src/logger.js';
import { crawlContent, crawlUrl, examples, MOMENT } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';
import { Relay } from './relay.js';
import { freshTenant } from './support.js';
import { plain, tierSuite } from './tier-suite.js';

let world: World;
let pool: Pool;
let tier: PostgresTier;

beforeAll(async () => {
  world = await createWorld();
  pool = createPool({ connectionString: world.databaseUrl }, createLogger('silent'), { max: 10 });
  tier = new PostgresTier(pool);
});

afterAll(async () => {
  await pool.end();
  await world[Symbol.asyncDispose]();
});

tierSuite(async () => {
  const relay = await Relay.to(world.databaseUrl);
  const own = createPool({ connectionString: relay.url }, createLogger('silent'), { max: 10 });
  const opened = new PostgresTier(own);
  return {
    read: (lookups) => opened.read(lookups),
    write: (entries) => stored(opened, entries),
    ping: () => opened.ping(),
    judge: (error) => opened.judge(error),
    relays: [relay],
    damage: async ({ kind, tenantId, parts }) => {
      const text = `update ${kind.table.name} set payload = 'not ours' where tenant_id = $1 and content_hash = $2`;
      const { rowCount } = await pool.query(text, [tenantId, parts[0]]);
      expect(rowCount).toBe(1);
    },
    damaged: { state: 'corrupt', error: expect.any(Error), version: expect.any(Number) },
    [Symbol.asyncDispose]: async () => {
      await own.end();
      await relay[Symbol.asyncDispose]();
    },
  };
});

const read = async (lookups: readonly Lookup[]) => plain(await tier.read(lookups));

/** Where nothing was read before. */
async function stored(into: PostgresTier, entries: readonly Entry[]): Promise<Stored[]> {
  return (await into.write(entries)) as Stored[];
}

const write = (entries: readonly Entry[]) => stored(tier, entries);

test('of two versions of a URL the one fetched last counts, whichever was written last, and both are kept', async () => {
  const tenant = freshTenant();
  const key = sha256('https://example.com/changing.jpg');
  const version = (name: string, fetchedAt: number) => entry(tenant, crawlUrls, key, crawlUrl(name, { fetchedAt }));
  const [older, newer] = [version('older', MOMENT), version('newer', MOMENT + 1)];
  expect(await write([newer])).toMatchObject([newer]);
  // The late writer is told what the URL is known as.
  expect(await write([older])).toMatchObject([newer]);
  expect(await read([older])).toEqual([{ state: 'value', value: newer.value }]);
  const { rows } = await pool.query('select raw_key from crawl_cache where tenant_id = $1 order by fetched_at', [
    tenant,
  ]);
  expect(rows).toEqual([{ raw_key: 'raw/older' }, { raw_key: 'raw/newer' }]);
});

test('the same version again renews its row', async () => {
  const tenant = freshTenant();
  const key = sha256('https://example.com/same.jpg');
  await write([entry(tenant, crawlUrls, key, crawlUrl('same'))]);
  const again = entry(
    tenant,
    crawlUrls,
    key,
    crawlUrl('same', { fetchedAt: MOMENT + 5, sourceUrl: null, jobId: 'second' }),
  );
  await write([again]);
  expect(await read([again])).toEqual([{ state: 'value', value: again.value }]);
  const { rows } = await pool.query('select count(*)::int as n from crawl_cache where tenant_id = $1', [tenant]);
  expect(rows).toEqual([{ n: 1 }]);
});

test('a version that is written again with an older time keeps its newer row', async () => {
  const tenant = freshTenant();
  const key = sha256('https://example.com/late.jpg');
  const at = (fetchedAt: number) =>
    entry(tenant, crawlUrls, key, crawlUrl('late', { fetchedAt, jobId: `${fetchedAt}` }));
  await write([at(MOMENT)]);
  expect(await write([at(MOMENT - 1)])).toMatchObject([at(MOMENT)]);
  expect(await write([at(MOMENT + 1)])).toMatchObject([at(MOMENT + 1)]);
  expect(await read([at(0)])).toEqual([{ state: 'value', value: at(MOMENT + 1).value }]);
});

test('the first content record stays, and a later writer is told what stays', async () => {
  const tenant = freshTenant();
  const first = entry(tenant, crawlContents, sha256('kept'), crawlContent('first'));
  const later = entry(tenant, crawlContents, sha256('kept'), crawlContent('later', { thumbnailKey: null, width: 7 }));
  expect(await write([first])).toMatchObject([first]);
  expect(await write([later])).toMatchObject([first]);
  expect(await read([later])).toEqual([{ state: 'value', value: first.value }]);
});

test('in a batch a later writer is told what stays of each entry, and the others stand as written', async () => {
  const tenant = freshTenant();
  const content = (name: string, by: string) => entry(tenant, crawlContents, sha256(name), crawlContent(by));
  await write([content('b', 'first')]);
  const phash = entry(tenant, perceptualHashes, sha256('a'), '00ff00ff00ff00ff');
  const batch = [content('a', 'later'), phash, content('b', 'later'), content('c', 'later')];
  const standing = await write(batch);
  expect(standing).toMatchObject([content('a', 'later'), phash, content('b', 'first'), content('c', 'later')]);
});

test('of fifty writers of one content record one wins, and all are told the same', async () => {
  const tenant = freshTenant();
  const standing = await Promise.all(
    Array.from({ length: 50 }, (_, i) =>
      write([entry(tenant, crawlContents, sha256('raced'), crawlContent(`writer-${i}`))]),
    ),
  );
  const told = new Set(standing.map(([one]) => (one?.value as { rawKey: string }).rawKey));
  expect(told.size).toBe(1);
});

test('a batch with a value that PostgreSQL refuses is not written at all', async () => {
  const tenant = freshTenant();
  const good = entry(tenant, perceptualHashes, sha256('good'), 'text');
  const bad = entry(tenant, crawlUrls, sha256('bad'), crawlUrl('bad', { rawKey: 'no\0text' }));
  const failure = await write([good, bad]).catch((error: unknown) => error);
  expect(failure).toMatchObject({ code: '22021' });
  expect(tier.judge(failure)).toBe('wrong');
  expect(await read([good])).toEqual([{ state: 'absent' }]);
});

test('a look-up walks the primary key of its table [M33, M45]', async () => {
  const tenant = freshTenant();
  await fill(tenant);
  const { watched, planOfLast, seen } = watching();
  for (const one of examples(tenant)) {
    await watched.read([one]);
    const plan = await planOfLast();
    expect(plan).toMatch(new RegExp(`Index.* Scan.* ${one.kind.table.name}_pk`));
    expect(plan).not.toContain('Seq Scan');
  }
  expect(seen).toHaveLength(examples(tenant).length);
});

test('a batch is written without reading its table whole [M45]', async () => {
  const tenant = freshTenant();
  await fill(tenant);
  const { watched, planOfLast } = watching();
  const batches = Array.from({ length: 32 }, (_, n) => examples(tenant, `batch ${n}`));
  for (const [i, { kind }] of examples(tenant).entries()) {
    await watched.write(batches.map((each) => each[i] as Entry));
    expect(await planOfLast(), kind.name).not.toContain(`Seq Scan on ${kind.table.name}`);
  }
});

/** A tier whose statements are seen, and explained as PostgreSQL would go about them. */
function watching() {
  const seen: { text: string; values: unknown[] }[] = [];
  const query = (statement: { text: string; values: unknown[] }) => {
    seen.push(statement);
    return pool.query(statement);
  };
  const watched = new PostgresTier(Object.assign(Object.create(pool) as Pool, { query }));
  const planOfLast = async () => {
    const { text, values } = seen.at(-1) ?? { text: '', values: [] };
    const { rows } = await pool.query<{ 'QUERY PLAN': string }>(`explain (costs off) ${text}`, values);
    return rows.map((row) => row['QUERY PLAN']).join('\n');
  };
  return { watched, planOfLast, seen };
}

/** Two thousand rows of every kind, as many tenants that were invalidated, and statistics that know of them: of an empty table, a scan is the best plan. */
async function fill(tenant: string): Promise<void> {
  const rows = Array.from({ length: 2_000 }, (_, i) => examples(tenant, `row ${i}`));
  for (let i = 0; i < rows.length; i += 200) await write(rows.slice(i, i + 200).flat());
  await pool.query(
    "insert into cache_generations (tenant_id, generation) select 'tenant ' || n, n from generate_series(1, 2000) as n on conflict do nothing",
  );
  await pool.query('analyze');
}

test('statements are prepared once a connection, connections are bounded, and one that hangs is ended [M19]', async () => {
  const own = createPool({ connectionString: world.databaseUrl }, createLogger('silent'), { max: 1, timeoutMs: 200 });
  try {
    const opened = new PostgresTier(own);
    const tenantId = freshTenant();
    await stored(opened, [entry(tenantId, perceptualHashes, sha256('first'), '00000000000000aa')]);
    const keys = Array.from({ length: 50 }, (_, n) => [lookup(tenantId, perceptualHashes, sha256(`key ${n % 7}`))]);
    await Promise.all(keys.map((one) => opened.read(one)));
    expect(own.totalCount).toBe(1);
    const { rows } = await own.query<{ name: string; runs: number }>(
      'select name, (generic_plans + custom_plans)::int as runs from pg_prepared_statements order by 2 desc',
    );
    expect(rows[0]).toMatchObject({ name: expect.stringMatching(/./), runs: 50 });
    await expect(own.query('select pg_sleep(10)')).rejects.toMatchObject({ code: '57014' });
  } finally {
    await own.end();
  }
});

test('an error tells a tier that is away from one that is unable, and from a wrong statement', () => {
  const sql = (code: string) => tier.judge(Object.assign(new Error('refused'), { code }));
  for (const code of ['08006', '53300', '57P01', '57P03', '28P01', '3D000']) expect(sql(code), code).toBe('away');
  for (const code of ['25006', '42P01', '42703', '42883', '53100', '55P03', '57014', '40P01', '40001']) {
    expect(sql(code), code).toBe('unserved');
  }
  for (const code of ['22021', '23505', '42601', '22P02']) expect(sql(code), code).toBe('wrong');
  expect(sql('ECONNREFUSED')).toBe('away');
  expect(tier.judge(new Error('Connection terminated unexpectedly'))).toBe('away');
  expect(tier.judge(new RangeError('of ours'))).toBe('wrong');
});

test('an entry of another kind is written in the same transaction', async () => {
  const tenant = freshTenant();
  await write(examples(tenant));
  const moments = new Set<string>();
  for (const { kind } of examples(tenant)) {
    const text = `select created_at::text as at from ${kind.table.name} where tenant_id = $1`;
    const { rows } = await pool.query<{ at: string }>(text, [tenant]);
    for (const { at } of rows) moments.add(at);
  }
  // now() is the transaction's.
  expect(moments.size).toBe(1);
});

const NEWER = { generation: 1, overwrote: true };

test('every value of a key is a version of its own, later than the one before', async () => {
  const tenant = freshTenant();
  const value = (text: string) => entry(tenant, perceptualHashes, sha256('versions'), text);
  const before = Date.now() * 1_000;
  const [first] = await write([value('first')]);
  const [second] = await write([value('second')]);
  const [third] = await write([value('second')]);
  expect(first).toMatchObject({ generation: 1, overwrote: false });
  expect(second).toMatchObject(NEWER);
  expect(third).toMatchObject(NEWER);
  // The clock of PostgreSQL, which is this machine's; give or take its rounding.
  expect(first?.version).toBeGreaterThanOrEqual(before - 1_000);
  expect(second?.version).toBeGreaterThan(first?.version as number);
  expect(third?.version).toBeGreaterThan(second?.version as number);
  expect(await tier.read([value('')])).toMatchObject([{ value: 'second', version: third?.version, generation: 1 }]);
});

test('versions rise however far ahead the last one is', async () => {
  const tenant = freshTenant();
  const value = (text: string) => entry(tenant, perceptualHashes, sha256('ahead'), text);
  await write([value('first')]);
  const ahead = (Date.now() + 3_600_000) * 1_000;
  await pool.query('update perceptual_hash_cache set version = $2 where tenant_id = $1', [tenant, ahead]);
  expect(await write([value('second')])).toMatchObject([{ version: ahead + 1, overwrote: true }]);
});

test('a version of a URL is when it was fetched, and a clock that is ahead does not put it out of reach', async () => {
  const tenant = freshTenant();
  const at = (name: string, fetchedAt: number) =>
    entry(tenant, crawlUrls, sha256('clocks'), crawlUrl(name, { fetchedAt }));
  const [first] = await write([at('first', MOMENT)]);
  expect(first).toMatchObject({ version: MOMENT * 1_000, overwrote: false });
  const tomorrow = Date.now() + 86_400_000;
  const [ahead] = await write([at('ahead', tomorrow)]);
  expect(ahead).toMatchObject({ value: { rawKey: 'raw/ahead', fetchedAt: tomorrow }, overwrote: true });
  expect(ahead?.version).toBeLessThan(tomorrow * 1_000);
  const [now] = await write([at('now', Date.now() + 1)]);
  expect(now).toMatchObject({ value: { rawKey: 'raw/now' } });
});

test('of a batch with two versions of a URL the one fetched last counts, and both are kept', async () => {
  const tenant = freshTenant();
  const key = sha256('https://example.com/in-one-batch.jpg');
  const version = (name: string, fetchedAt: number) => entry(tenant, crawlUrls, key, crawlUrl(name, { fetchedAt }));
  const [older, newer] = [version('older', MOMENT), version('newer', MOMENT + 1)];
  expect(await write([newer, older])).toMatchObject([newer, newer]);
  expect(await read([older])).toEqual([{ state: 'value', value: newer.value }]);
  const { rows } = await pool.query('select raw_key from crawl_cache where tenant_id = $1 order by fetched_at', [
    tenant,
  ]);
  expect(rows).toEqual([{ raw_key: 'raw/older' }, { raw_key: 'raw/newer' }]);
});

test('a batch with two versions of a URL that has one already notes one thing to repair, the latest', async () => {
  const tenant = freshTenant();
  const version = (name: string, fetchedAt: number) =>
    entry(tenant, crawlUrls, sha256('of three versions'), crawlUrl(name, { fetchedAt }));
  await write([version('first', MOMENT)]);
  const newest = version('third', MOMENT + 2);
  expect(await write([version('second', MOMENT + 1), newest])).toMatchObject([newest, newest]);
  const repairs = 'select entry, version::float8 from redis_repairs where tenant_id = $1';
  const { rows } = await pool.query(repairs, [tenant]);
  expect(rows).toEqual([{ entry: newest.id, version: (MOMENT + 2) * 1_000 }]);
});

test('who writes a version of a URL while another writer commits a newer one is told that one', async () => {
  const tenant = freshTenant();
  const at = (fetchedAt: number) => entry(tenant, crawlUrls, sha256('raced'), crawlUrl('same', { fetchedAt }));
  const [older, newer] = [at(MOMENT), at(MOMENT + 1)];
  // One connection, and so one transaction.
  const own = createPool({ connectionString: world.databaseUrl }, createLogger('silent'), { max: 1 });
  await own.query('begin');
  await new PostgresTier(own).write([newer]);
  const writing = write([older]);
  await until('the writer that waits', async () => {
    const waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    return (await pool.query(waiting)).rowCount;
  });
  await own.query('commit');
  await own.end();
  expect(await writing).toMatchObject([newer]);
  expect(await read([older])).toEqual([{ state: 'value', value: newer.value }]);
});

test('of fifty writers of one version of a URL each is told what stands, and the one fetched last does', async () => {
  const tenant = freshTenant();
  const keys = Array.from({ length: 20 }, (_, i) => sha256(`raced ${i}`));
  const at = (key: string, i: number) => entry(tenant, crawlUrls, key, crawlUrl('same', { fetchedAt: MOMENT + i }));
  const told = await Promise.all(
    keys.flatMap((key) => Array.from({ length: 50 }, (_, i) => write([at(key, (i * 37) % 50)]))),
  );
  for (const [one] of told) expect(one).toMatchObject({ kind: crawlUrls, value: { rawKey: 'raw/same' } });
  expect(await read(keys.map((key) => at(key, 0)))).toEqual(
    keys.map((key) => ({ state: 'value', value: at(key, 49).value })),
  );
});

test('what overwrites is noted in the same transaction, until Redis has confirmed it; what is new is not', async () => {
  const tenant = freshTenant();
  const noted = async () =>
    (await pool.query('select entry, version::float8 from redis_repairs where tenant_id = $1 order by entry', [tenant]))
      .rows;
  const of = (name: string, value: string) => entry(tenant, perceptualHashes, sha256(name), value);
  await write([of('a', 'first'), of('b', 'first')]);
  const kept = entry(tenant, crawlContents, sha256('kept'), crawlContent('first'));
  await write([kept]);
  await write([kept]);
  expect(await noted()).toEqual([]);
  const [second] = await write([of('b', 'second'), of('c', 'first')]);
  expect(await noted()).toEqual([{ entry: second?.id, version: second?.version }]);
  const bad = entry(tenant, crawlUrls, sha256('bad'), crawlUrl('bad', { rawKey: 'no\0text' }));
  await write([of('a', 'second'), bad]).catch(() => undefined);
  expect(await noted()).toHaveLength(1);
});

test('rows of an earlier generation are neither read nor overwritten', async () => {
  const tenant = freshTenant();
  const old = examples(tenant);
  await write(old);
  const { rows } = await pool.query<{ g: string }>('select new_generation as g from invalidate_tenant_cache($1)', [
    tenant,
  ]);
  const generation = Number(rows[0]?.g);
  expect(await read(old)).toEqual(old.map(() => ({ state: 'absent' })));
  const [one] = old as [Entry];
  expect(await write([one])).toMatchObject([{ generation, overwrote: false }]);
  expect(await tier.read([one])).toMatchObject([{ state: 'value', generation }]);
  const text = 'select generation::int as g from face_embeddings_cache where tenant_id = $1 order by 1';
  expect((await pool.query(text, [tenant])).rows).toEqual([{ g: 1 }, { g: generation }]);
});

const restorable = (one: Entry, version: number, generation: number) => ({ ...one, version, generation });

test('what is restored replaces an older value, and neither a newer one nor one of a later generation', async () => {
  const tenant = freshTenant();
  const value = (name: string, text: string) => entry(tenant, perceptualHashes, sha256(name), text);
  const standing = await write([value('older', 'old'), value('newer', 'new')]);
  const [older, newer] = standing.map(({ version }) => version) as [number, number];
  const restored = await tier.restore([
    restorable(value('older', 'restored'), older + 1, 1),
    restorable(value('newer', 'restored'), newer - 1, 1),
    restorable(value('missing', 'restored'), 5, 1),
  ]);
  expect(restored.map(({ parts, version }) => [parts[0], version]).sort()).toEqual(
    [
      [sha256('older'), older + 1],
      [sha256('missing'), 5],
    ].sort(),
  );
  const asked = ['older', 'newer', 'missing'].map((name) => value(name, ''));
  expect(await read(asked)).toMatchObject([{ value: 'restored' }, { value: 'new' }, { value: 'restored' }]);
  await pool.query('select invalidate_tenant_cache($1)', [tenant]);
  const future = (Date.now() + 3_600_000) * 1_000;
  expect(await tier.restore([restorable(value('older', 'revived'), future, 1)])).toEqual([]);
  expect(await read(asked.slice(0, 1))).toEqual([{ state: 'absent' }]);
});

test('what was written by who could not know the generation is of the present one, unless that began later', async () => {
  const tenant = freshTenant();
  const value = (name: string) => entry(tenant, perceptualHashes, sha256(name), name);
  const invalidated = Date.now() * 1_000;
  await pool.query('select invalidate_tenant_cache($1)', [tenant]);
  const later = (Date.now() + 60_000) * 1_000;
  const batch = [restorable(value('before'), invalidated - 1_000_000, 0), restorable(value('after'), later, 0)];
  expect(await tier.restore(batch)).toMatchObject([{ id: value('after').id, version: later }]);
  expect((await read([value('before'), value('after')])).map(({ state }) => state)).toEqual(['absent', 'value']);
});
