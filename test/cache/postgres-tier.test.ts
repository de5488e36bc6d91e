/** The permanent tier, on a real PostgreSQL. */
import type { Pool } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { PostgresTier } from '../../src/cache/postgres-tier.js';
import { type Entry, entry, lookup } from '../../src/cache/tier.js';
import { createPool } from '../../src/db/client.js';
import { crawlContents, crawlUrls } from '../../src/kinds/crawl.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { createLogger } from '../../src/logger.js';
import { crawlContent, crawlUrl, examples, MOMENT } from '../kinds/examples.js';
import { createWorld, type World } from '../support/world.js';
import { Relay } from './relay.js';
import { freshTenant } from './support.js';
import { tierSuite } from './tier-suite.js';

let world: World;
let pool: Pool;
let tier: PostgresTier;

beforeAll(async () => {
  world = await createWorld();
  pool = createPool({ connectionString: world.databaseUrl }, createLogger('silent'));
  tier = new PostgresTier(pool);
});

afterAll(async () => {
  await pool.end();
  await world[Symbol.asyncDispose]();
});

tierSuite(async () => {
  const relay = await Relay.to(world.databaseUrl);
  const own = createPool({ connectionString: relay.url }, createLogger('silent'));
  return {
    tier: new PostgresTier(own),
    relay,
    damage: async (tenantId, { kind, key }) => {
      const text = `update ${kind.table.name} set payload = 'not ours' where tenant_id = $1 and content_hash = $2`;
      const { rowCount } = await pool.query(text, [tenantId, kind.key(key)[0]]);
      expect(rowCount).toBe(1);
    },
    [Symbol.asyncDispose]: async () => {
      await own.end();
      await relay[Symbol.asyncDispose]();
    },
  };
});

test('of two versions of a URL the one fetched last counts, whichever was written last, and both are kept', async () => {
  const tenant = freshTenant();
  const key = sha256('https://example.com/changing.jpg');
  const version = (name: string, fetchedAt: number) => entry(crawlUrls, key, crawlUrl(name, { fetchedAt }));
  const [older, newer] = [version('older', MOMENT), version('newer', MOMENT + 1)];
  expect(await tier.write(tenant, [newer])).toEqual([newer]);
  // The late writer is told what the URL is known as.
  expect(await tier.write(tenant, [older])).toEqual([newer]);
  expect(await tier.read(tenant, [older])).toEqual([{ state: 'value', value: newer.value }]);
  const { rows } = await pool.query('select raw_key from crawl_cache where tenant_id = $1 order by fetched_at', [
    tenant,
  ]);
  expect(rows).toEqual([{ raw_key: 'raw/older' }, { raw_key: 'raw/newer' }]);
});

test('the same version again renews its row', async () => {
  const tenant = freshTenant();
  const key = sha256('https://example.com/same.jpg');
  await tier.write(tenant, [entry(crawlUrls, key, crawlUrl('same'))]);
  const again = entry(crawlUrls, key, crawlUrl('same', { fetchedAt: MOMENT + 5, sourceUrl: null, jobId: 'second' }));
  await tier.write(tenant, [again]);
  expect(await tier.read(tenant, [again])).toEqual([{ state: 'value', value: again.value }]);
  const { rows } = await pool.query('select count(*)::int as n from crawl_cache where tenant_id = $1', [tenant]);
  expect(rows).toEqual([{ n: 1 }]);
});

test('a version that is written again with an older time keeps its newer row', async () => {
  const tenant = freshTenant();
  const key = sha256('https://example.com/late.jpg');
  const at = (fetchedAt: number) => entry(crawlUrls, key, crawlUrl('late', { fetchedAt, jobId: `${fetchedAt}` }));
  await tier.write(tenant, [at(MOMENT)]);
  expect(await tier.write(tenant, [at(MOMENT - 1)])).toEqual([at(MOMENT)]);
  expect(await tier.write(tenant, [at(MOMENT + 1)])).toEqual([at(MOMENT + 1)]);
  expect(await tier.read(tenant, [at(0)])).toEqual([{ state: 'value', value: at(MOMENT + 1).value }]);
});

test('the first content record stays, and a later writer is told what stays', async () => {
  const tenant = freshTenant();
  const first = entry(crawlContents, sha256('kept'), crawlContent('first'));
  const later = entry(crawlContents, sha256('kept'), crawlContent('later', { thumbnailKey: null, width: 7 }));
  expect(await tier.write(tenant, [first])).toEqual([first]);
  expect(await tier.write(tenant, [later])).toEqual([first]);
  expect(await tier.read(tenant, [later])).toEqual([{ state: 'value', value: first.value }]);
});

test('in a batch a later writer is told what stays of each entry, and the others stand as written', async () => {
  const tenant = freshTenant();
  const content = (name: string, by: string) => entry(crawlContents, sha256(name), crawlContent(by));
  await tier.write(tenant, [content('b', 'first')]);
  const phash = entry(perceptualHashes, sha256('a'), '00ff00ff00ff00ff');
  const batch = [content('a', 'later'), phash, content('b', 'later'), content('c', 'later')];
  const standing = await tier.write(tenant, batch);
  expect(standing).toHaveLength(batch.length);
  expect(standing).toEqual(
    expect.arrayContaining([content('a', 'later'), phash, content('b', 'first'), content('c', 'later')]),
  );
});

test('of fifty writers of one content record one wins, and all are told the same', async () => {
  const tenant = freshTenant();
  const standing = await Promise.all(
    Array.from({ length: 50 }, (_, i) =>
      tier.write(tenant, [entry(crawlContents, sha256('raced'), crawlContent(`writer-${i}`))]),
    ),
  );
  const told = new Set(standing.map(([one]) => (one?.value as { rawKey: string }).rawKey));
  expect(told.size).toBe(1);
});

test('a batch is written whole or not at all', async () => {
  const tenant = freshTenant();
  const good = entry(perceptualHashes, sha256('good'), 'text');
  const bad = entry(crawlUrls, sha256('bad'), crawlUrl('bad', { rawKey: 'no\0text' }));
  const failure = await tier.write(tenant, [good, bad]).catch((error: unknown) => error);
  expect(failure).toMatchObject({ code: '22021' });
  expect(tier.judge(failure)).toBe('wrong');
  expect(await tier.read(tenant, [good])).toEqual([{ state: 'absent' }]);
});

test('a look-up walks the primary key of its table', async () => {
  const tenant = freshTenant();
  await fill(tenant);
  const seen: { text: string; values: unknown[] }[] = [];
  const query = (statement: { text: string; values: unknown[] }) => {
    seen.push(statement);
    return pool.query(statement);
  };
  const watched = new PostgresTier(Object.assign(Object.create(pool) as Pool, { query }));
  for (const { kind, key } of examples()) {
    await watched.read(tenant, [lookup(kind, key as never)]);
    const { text, values } = seen.at(-1) ?? { text: '', values: [] };
    const { rows } = await pool.query<{ 'QUERY PLAN': string }>(`explain (costs off) ${text}`, values);
    const plan = rows.map((row) => row['QUERY PLAN']).join('\n');
    expect(plan).toMatch(new RegExp(`Index.* Scan.* ${kind.table.name}_[a-z_]*pk`));
    expect(plan).not.toContain('Seq Scan');
  }
  expect(seen).toHaveLength(examples().length);
});

/** Two thousand rows of every kind, and statistics that know of them: of an empty table, a scan is the best plan. */
async function fill(tenant: string): Promise<void> {
  const rows = Array.from({ length: 2_000 }, (_, i) => examples(`row ${i}`));
  for (let i = 0; i < rows.length; i += 200) await tier.write(tenant, rows.slice(i, i + 200).flat());
  await pool.query('analyze');
}

test('an error tells a tier that is away from one that is unable, and from a wrong statement', () => {
  const sql = (code: string) => tier.judge(Object.assign(new Error('refused'), { code }));
  for (const code of ['08006', '53300', '57P01', '57P03', '28P01', '3D000']) expect(sql(code), code).toBe('away');
  for (const code of ['25006', '42P01', '53100', '55P03', '57014']) expect(sql(code), code).toBe('unserved');
  for (const code of ['22021', '23505', '40P01', '42601', '22P02']) expect(sql(code), code).toBe('wrong');
  expect(sql('ECONNREFUSED')).toBe('away');
  expect(tier.judge(new Error('Connection terminated unexpectedly'))).toBe('away');
  expect(tier.judge(new RangeError('of ours'))).toBe('wrong');
});

test('an entry of another kind is written in the same transaction', async () => {
  const tenant = freshTenant();
  await tier.write(tenant, examples());
  const moments = new Set<string>();
  for (const { kind } of examples() as Entry[]) {
    const text = `select created_at::text as at from ${kind.table.name} where tenant_id = $1`;
    const { rows } = await pool.query<{ at: string }>(text, [tenant]);
    for (const { at } of rows) moments.add(at);
  }
  // now() is the transaction's.
  expect(moments.size).toBe(1);
});
