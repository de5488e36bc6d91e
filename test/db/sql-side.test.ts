/** What operators and other programs use from SQL: the view and its functions, and what keeps them fast. */
import { readdir, readFile } from 'node:fs/promises';
import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { LookupCounts } from '../../src/cache/lookup-counts.js';
import { readStatistics } from '../../src/cache/statistics.js';
import { KINDS } from '../../src/kinds/index.js';
import { type Columns, daysAgo, Rows, TABLES } from '../support/cache-rows.js';
import { until } from '../support/until.js';

/** Rows that are counted one by one, and tenants. */
const MOST_ENTRIES = 10_000;
const MOST_TENANTS = 1_000;

let db: Rows;

beforeAll(async () => {
  db = await Rows.open();
});

afterAll(async () => {
  await db[Symbol.asyncDispose]();
});

beforeEach(() => db.clear());

test('the tables and keys that SQL knows of are those that the kinds declare', async () => {
  const declared = KINDS.map(({ name, table }) => ({
    kind: name,
    table_name: table.name,
    key_columns: table.key.map((column) => column.name),
  }));
  expect(await db.all('select * from cache_kinds()')).toEqual(declared);
});

test('the migrations are plain SQL: psql can run them from an empty database on [M13]', async () => {
  const name = `${db.world.namespace}_plain`;
  await db.client.query(`create database ${name} template template0`);
  try {
    const url = new URL(db.world.databaseUrl);
    url.pathname = `/${name}`;
    const plain = new Client({ connectionString: url.href });
    await plain.connect();
    try {
      const files = (await readdir('drizzle')).filter((file) => file.endsWith('.sql')).sort();
      for (const file of files) await plain.query(await readFile(`drizzle/${file}`, 'utf8'));
      expect((await plain.query('select * from cache_stats')).rows).toHaveLength(KINDS.length);
      expect((await plain.query('select * from cleanup_old_cache_entries()')).rows).toHaveLength(KINDS.length);
      expect((await plain.query('select * from get_cache_index_usage()')).rows).not.toHaveLength(0);
    } finally {
      await plain.end();
    }
  } finally {
    await db.client.query(`drop database ${name} with (force)`);
  }
});

test('clear_all_cache draws its number after those it has waited for [M28]', async () => {
  const { rows: first } = await db.client
    .query('begin; select from cache_generations for update')
    .then(() => db.client.query<{ pid: number }>('select pg_backend_pid() as pid'));
  const other = new Client({ connectionString: db.world.databaseUrl });
  await other.connect();
  try {
    const cleared = other.query('select new_generation::int as generation from clear_all_cache()');
    await until('it to wait', async () => {
      const waiting = 'select from pg_locks where not granted and $1 = any(pg_blocking_pids(pid))';
      return (await db.client.query(waiting, [first[0]?.pid])).rowCount;
    });
    const [invalidated] = await db.all<{ generation: number }>(
      "select new_generation::int as generation from invalidate_tenant_cache('a')",
    );
    await db.client.query('commit');
    expect((await cleared).rows[0].generation).toBeGreaterThan(invalidated?.generation as number);
  } finally {
    await other.end();
  }
});

describe('cache_stats', () => {
  const stats = async () => db.all<Columns>('select * from cache_stats');
  const statsOf = async (type: string) => (await stats()).find((row) => row.cache_type === type);
  const isExact = async () => (await db.statistics('crawl_content'))?.is_exact;

  test('has a row for each kind, named as the Python service named its own [M39]', async () => {
    const columns = ['cache_type', 'total_entries', 'unique_tenants', 'oldest_entry', 'newest_entry', 'table_size'];
    const rows = await stats();
    for (const row of rows) expect(Object.keys(row)).toEqual(columns);
    const types = ['face_embeddings', 'face_detection', 'perceptual_hash', 'search_results'];
    expect(rows.map((row) => row.cache_type)).toEqual([...types, 'crawl', 'crawl_content', 'rejection', 'robots']);
  });

  test('knows of an empty table that it is empty', async () => {
    const nothing = { total_entries: '0', unique_tenants: '0', oldest_entry: null, newest_entry: null };
    for (const row of await stats()) expect(row).toMatchObject(nothing);
  });

  test('counts entries and tenants, and finds the first and the last', async () => {
    const [first, last] = [daysAgo(9), daysAgo(1)];
    await db.put('face_embedding', { content_hash: '1', created_at: daysAgo(3) });
    await db.put('face_embedding', { content_hash: '2', created_at: first });
    await db.put('face_embedding', { tenant_id: 'b', created_at: last });
    const row = { total_entries: '3', unique_tenants: '2', oldest_entry: first, newest_entry: last };
    expect(await statsOf('face_embeddings')).toMatchObject(row);
    expect((await statsOf('face_embeddings'))?.table_size).toMatch(/^\d+ (bytes|kB)$/);
  });

  test('leaves out what an invalidation put out of reach', async () => {
    const alive = daysAgo(2);
    await db.put('perceptual_hash', { tenant_id: 'a', content_hash: 'dead', created_at: daysAgo(3) });
    await db.put('perceptual_hash', { tenant_id: 'a', content_hash: 'late', created_at: daysAgo(1) });
    await db.put('perceptual_hash', { tenant_id: 'b' });
    await db.client.query(`insert into cache_generations (tenant_id, generation) values ('a', 5)`);
    await db.put('perceptual_hash', { tenant_id: 'a', generation: 5, content_hash: 'alive', created_at: alive });
    expect(await statsOf('perceptual_hash')).toMatchObject({
      total_entries: '2',
      unique_tenants: '2',
      oldest_entry: alive,
    });
    await db.client.query(`update cache_generations set generation = 5`);
    const row = { total_entries: '1', unique_tenants: '1', oldest_entry: alive, newest_entry: alive };
    expect(await statsOf('perceptual_hash')).toMatchObject(row);
    await db.client.query(`update cache_generations set generation = 6`);
    const none = { total_entries: '0', unique_tenants: '0', oldest_entry: null, newest_entry: null };
    expect(await statsOf('perceptual_hash')).toMatchObject(none);
  });

  test.each([MOST_ENTRIES - 1, MOST_ENTRIES])('counts %d entries one by one', async (count) => {
    await db.putContents(count);
    expect(await statsOf('crawl_content')).toMatchObject({ total_entries: String(count), unique_tenants: '3' });
    expect(await isExact()).toBe(true);
  });

  test('estimates beyond that, and says so', async () => {
    await db.putContents(3 * MOST_ENTRIES);
    await db.client.query('analyze crawl_content_cache');
    const row = await statsOf('crawl_content');
    expect(row?.unique_tenants).toBe('3');
    expect(Number(row?.total_entries) / (3 * MOST_ENTRIES)).toBeCloseTo(1, 1);
    expect(await isExact()).toBe(false);
  });

  test('never tells less than it has counted, also before the first ANALYZE', async () => {
    await db.putContents(MOST_ENTRIES + 1);
    expect(Number((await statsOf('crawl_content'))?.total_entries)).toBeGreaterThan(MOST_ENTRIES);
    expect(await isExact()).toBe(false);
  });

  test('counts a thousand tenants, and estimates beyond', async () => {
    await db.putContents(2 * MOST_TENANTS, { tenants: MOST_TENANTS });
    expect(await statsOf('crawl_content')).toMatchObject({ total_entries: '2000', unique_tenants: '1000' });
    expect(await isExact()).toBe(true);
    await db.client.query('truncate crawl_content_cache');
    await db.putContents(3 * MOST_TENANTS, { tenants: 2 * MOST_TENANTS });
    expect(Number((await statsOf('crawl_content'))?.unique_tenants)).toBeGreaterThan(MOST_TENANTS);
    await db.client.query('analyze crawl_content_cache');
    const row = await statsOf('crawl_content');
    expect(Number(row?.unique_tenants) / (2 * MOST_TENANTS)).toBeCloseTo(1, 1);
    expect(row?.total_entries).toBe('3000');
    expect(await isExact()).toBe(false);
  });

  test('reads no more than it counts, whatever the planner believes', async () => {
    await db.putContents(3 * MOST_ENTRIES, { tenants: 1 });
    await db.client.query('analyze crawl_content_cache');
    const entries = await db.workOf('select * from cache_stats');
    expect(entries.whole).toBe(0);
    expect(entries.fetched).toBeLessThan(MOST_ENTRIES + 100);

    await db.clear();
    await db.putContents(5 * MOST_TENANTS, { tenants: 5 * MOST_TENANTS });
    await db.client.query('analyze crawl_content_cache');
    const tenants = await db.workOf('select * from cache_stats');
    expect(tenants.whole).toBe(0);
    expect(tenants.fetched).toBeLessThan(3 * MOST_TENANTS);
  });

  test('reads no more when most rows are out of reach', async () => {
    await db.putContents(3 * MOST_ENTRIES, { tenants: 1, generation: 1 });
    await db.client.query('analyze crawl_content_cache');
    await db.client.query('update cache_generations set generation = 2');
    await db.putContents(5, { generation: 2, age: '0' });
    const work = await db.workOf('select * from cache_stats');
    expect(work.rows).toContainEqual(expect.objectContaining({ cache_type: 'crawl_content', total_entries: '5' }));
    expect(work.whole).toBe(0);
    // The first one that is reachable is looked for among so many.
    expect(work.fetched).toBeLessThan(MOST_ENTRIES + 100);
  });
});

describe('get_cache_index_usage', () => {
  interface Usage {
    table_name: string;
    index_name: string;
    index_size: string;
    index_usage_count: string;
  }
  const usage = () => db.all<Usage>('select * from get_cache_index_usage()');

  test('tells of every index of our tables, and of no others [M41]', async () => {
    await db.client.query('create schema elsewhere; create table elsewhere.crawl_cache (id int primary key)');
    await db.client.query('create table crawl_cache_of_somebody (id int primary key)');
    try {
      const ours = await db.all<{ name: string }>(
        `select indexname as name from pg_indexes
         where schemaname = 'public' and tablename <> 'crawl_cache_of_somebody' and tablename not like 'bullmq%'
         order by tablename, indexname`,
      );
      const rows = await usage();
      expect(rows.map((row) => row.index_name)).toEqual(ours.map(({ name }) => name));
      expect(Object.keys(rows[0] ?? {})).toEqual(['table_name', 'index_name', 'index_size', 'index_usage_count']);
      expect(rows.map((row) => row.table_name)).toEqual(expect.arrayContaining(TABLES));
      for (const row of rows) expect(row.index_size).toMatch(/^\d+ (bytes|kB|MB)$/);
    } finally {
      await db.client.query('drop schema elsewhere cascade; drop table crawl_cache_of_somebody');
    }
  });

  test('counts scans, and not what they found', async () => {
    const count = async () => {
      const rows = await usage();
      return Number(rows.find((row) => row.index_name === 'crawl_cache_content_idx')?.index_usage_count);
    };
    await db.client.query('select pg_stat_force_next_flush()');
    const before = await count();
    for (const url of ['1', '2', '3']) await db.put('crawl_url', { url_hash: url });
    const text = `select from crawl_cache where tenant_id = 'a' and generation = 1 and content_hash = 'c'`;
    await db.client.query('set enable_seqscan = off; set enable_bitmapscan = off');
    expect(await db.all(text)).toHaveLength(3);
    await db.client.query('reset enable_seqscan; reset enable_bitmapscan; select pg_stat_force_next_flush()');
    expect(await count()).toBe(before + 1);
  });
});

describe('readStatistics', () => {
  const read = () =>
    readStatistics({ redis: null, postgres: db.client, counts: new LookupCounts() }).then(
      ({ postgresStats }) => postgresStats,
    );

  test('has a count and a size of every table, by one query [M38]', async () => {
    await db.put('face_embedding');
    await db.put('crawl_url');
    await db.put('crawl_url', { url_hash: 'another' });
    expect(await read()).toEqual({
      faceEmbeddingsCacheCount: 1,
      faceDetectionCacheCount: 0,
      perceptualHashCacheCount: 0,
      searchResultsCacheCount: 0,
      crawlCacheCount: 2,
      crawlContentCacheCount: 0,
      rejectionCacheCount: 0,
      robotsCacheCount: 0,
      embeddingsSize: expect.stringMatching(/^\d+ kB$/),
      faceDetectionSize: expect.stringMatching(/^\d+ kB$/),
      phashSize: expect.stringMatching(/^\d+ kB$/),
      searchResultsSize: expect.stringMatching(/^\d+ kB$/),
      crawlSize: expect.stringMatching(/^\d+ kB$/),
      crawlContentSize: expect.stringMatching(/^\d+ kB$/),
      rejectionSize: expect.stringMatching(/^\d+ kB$/),
      robotsSize: expect.stringMatching(/^\d+ kB$/),
      estimated: [],
    });
  });

  test('names the tables whose count is an estimate', async () => {
    await db.putContents(MOST_ENTRIES + 1);
    expect(await read()).toMatchObject({ estimated: ['crawl_content_cache'] });
  });
});
