/** Retention: what is deleted, what stays, and that neither takes long or gets into anybody's way. */
import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { cleanup } from '../../src/cache/cleanup.js';
import { ArgumentError, TierUnavailableError } from '../../src/errors.js';
import { KINDS } from '../../src/kinds/index.js';
import { type OpenCache, openCache } from '../cache/support.js';
import { daysAgo, Rows, TABLES } from '../support/cache-rows.js';

let db: Rows;
let cache: OpenCache;

beforeAll(async () => {
  db = await Rows.open();
  cache = openCache(db.world.config({ REDIS_URL: 'none' }), db.world.namespace);
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await db[Symbol.asyncDispose]();
});

beforeEach(() => db.clear());

describe('cleanup_old_cache_entries', () => {
  const cleaned = async (argument = '') => {
    const rows = await db.all<{ table_name: string; deleted_count: string }>(
      `select * from cleanup_old_cache_entries(${argument})`,
    );
    return Object.fromEntries(rows.map((row) => [row.table_name, Number(row.deleted_count)]));
  };
  const nothing = Object.fromEntries(TABLES.map((table) => [table, 0]));

  test.each(['null', '0', '-1', '-2147483648'])('refuses %s days, and deletes nothing', async (days) => {
    await db.put('face_embedding', { created_at: daysAgo(1_000) });
    await expect(cleaned(days)).rejects.toMatchObject({
      code: '22023',
      message: `retention_days: expected a whole number of days from 1 on, not ${days}`,
      hint: expect.stringContaining('clear_all_cache()'),
    });
    expect(await db.left('face_embedding')).toEqual(['c']);
  });

  test('tells of every table, also where there was nothing to delete', async () => {
    expect(await cleaned()).toEqual(nothing);
  });

  test('deletes what is older than seven days unless told otherwise [M40]', async () => {
    for (const kind of ['face_embedding', 'face_detection', 'perceptual_hash', 'search_results'] as const) {
      await db.put(kind, { content_hash: 'old', created_at: daysAgo(7.1) });
      await db.put(kind, { content_hash: 'young', created_at: daysAgo(6.9) });
    }
    const one = {
      face_embeddings_cache: 1,
      face_detection_cache: 1,
      perceptual_hash_cache: 1,
      search_results_cache: 1,
    };
    expect(await cleaned()).toEqual({ ...nothing, ...one });
    expect(await db.left('perceptual_hash')).toEqual(['young']);
    expect(await cleaned('6')).toEqual({ ...nothing, ...one });
  });

  test('deletes what is out of reach by the same age', async () => {
    await db.put('search_results', { generation: 0, created_at: daysAgo(8) });
    await db.put('search_results', { generation: 0, content_hash: 'young', created_at: daysAgo(1) });
    expect(await cleaned()).toEqual({ ...nothing, search_results_cache: 1 });
  });

  test.each([
    [1, 29.9, 30.1],
    [7, 29.9, 30.1],
    [8, 31.9, 32.1],
    [100, 399.9, 400.1],
  ])('keeps crawl rows max(4 × %d, 30) days', async (days, young, old) => {
    await db.put('crawl_url', { url_hash: 'old', content_hash: 'old', created_at: daysAgo(old) });
    await db.put('crawl_content', { content_hash: 'old', created_at: daysAgo(old) });
    await db.put('crawl_url', { url_hash: 'young', content_hash: 'young', created_at: daysAgo(young) });
    await db.put('crawl_content', { content_hash: 'young', created_at: daysAgo(young) });
    expect(await cleaned(String(days))).toEqual({ ...nothing, crawl_cache: 1, crawl_content_cache: 1 });
    expect(await db.left('crawl_url', 'url_hash')).toEqual(['young']);
    expect(await db.left('crawl_content')).toEqual(['young']);
  });

  test('deletes nothing for more days than there ever were', async () => {
    for (const { name } of KINDS) await db.put(name, { created_at: new Date(0) });
    await db.client.query(`update rejection_cache set expires_at = 'epoch'`);
    expect(await cleaned('2147483647')).toEqual(nothing);
    expect(await cleaned('1000000')).toEqual(nothing);
  });

  test('counts the days of a refusal from its end', async () => {
    await db.put('rejection', { subject_hash: 'counts', created_at: daysAgo(400), expires_at: daysAgo(-1) });
    await db.put('rejection', { subject_hash: 'ended lately', created_at: daysAgo(400), expires_at: daysAgo(6) });
    await db.put('rejection', { subject_hash: 'ended', created_at: daysAgo(9), expires_at: daysAgo(8) });
    expect(await cleaned()).toEqual({ ...nothing, rejection_cache: 1 });
    expect(await db.left('rejection', 'subject_hash')).toEqual(['counts', 'ended lately']);
  });

  test('keeps an old content as long as a younger URL refers to it', async () => {
    await db.put('crawl_content', { created_at: daysAgo(90) });
    await db.put('crawl_url', { url_hash: 'old', created_at: daysAgo(90) });
    await db.put('crawl_url', { url_hash: 'young', created_at: daysAgo(1) });
    expect(await cleaned()).toEqual({ ...nothing, crawl_cache: 1 });
    expect(await db.left('crawl_content')).toEqual(['c']);
    await db.client.query(`update crawl_cache set created_at = now() - interval '31 days'`);
    expect(await cleaned()).toEqual({ ...nothing, crawl_cache: 1, crawl_content_cache: 1 });
  });

  test('a URL of another tenant holds on to nothing', async () => {
    await db.put('crawl_content', { tenant_id: 'a', created_at: daysAgo(90) });
    await db.put('crawl_url', { tenant_id: 'b', created_at: daysAgo(1) });
    expect(await cleaned()).toEqual({ ...nothing, crawl_content_cache: 1 });
  });

  test('a URL never goes back to what it was before', async () => {
    // It served A, then B, then A again: A's row is the older one, and the newer version.
    await db.put('crawl_url', { content_hash: 'A', version: 3, created_at: daysAgo(40) });
    await db.put('crawl_url', { content_hash: 'B', version: 2, created_at: daysAgo(20) });
    expect(await cleaned()).toEqual(nothing);
    await db.client.query(`update crawl_cache set created_at = created_at - interval '15 days'`);
    expect(await cleaned()).toEqual({ ...nothing, crawl_cache: 1 });
    expect(await db.left('crawl_url')).toEqual(['A']);
    expect(await cleaned()).toEqual({ ...nothing, crawl_cache: 1 });
  });

  test('versions of a URL that follow each other go together', async () => {
    for (const [version, content] of ['A', 'B', 'C'].entries()) {
      await db.put('crawl_url', { content_hash: content, version, created_at: daysAgo(60 - version) });
    }
    expect(await cleaned()).toEqual({ ...nothing, crawl_cache: 3 });
  });

  test('what finds near-duplicates goes with the hash', async () => {
    await db.put('perceptual_hash', { created_at: daysAgo(8) });
    expect(await db.all('select from perceptual_hash_bands')).toHaveLength(4);
    await cleaned();
    expect(await db.all('select from perceptual_hash_bands')).toEqual([]);
  });

  test('asks that Redis drops what it deletes', async () => {
    await db.put('face_embedding', { tenant_id: 't-1', model: 'm@2', version: 41, created_at: daysAgo(50) });
    await db.put('search_results', { top_k: 5, version: 42, created_at: daysAgo(50) });
    await db.put('search_results', { top_k: 6, version: 43 });
    await db.put('rejection', { version: 44, created_at: daysAgo(50), expires_at: daysAgo(50) });
    await db.put('crawl_url', { content_hash: 'A', version: 45, created_at: daysAgo(50) });
    await db.put('crawl_url', { content_hash: 'B', version: 46, created_at: daysAgo(49) });
    await db.client.query(
      `insert into redis_repairs values ('a', 'rejection:a:s', 99), ('a', 'search_results:a:c:5', 7)`,
    );
    await cleaned();
    expect(await db.all('select tenant_id, entry, version from redis_repairs order by entry')).toEqual([
      { tenant_id: 'a', entry: 'crawl_url:a:u', version: '47' },
      { tenant_id: 't-1', entry: 'face_embedding:t-1:c:m@2', version: '42' },
      { tenant_id: 'a', entry: 'rejection:a:s', version: '99' },
      { tenant_id: 'a', entry: 'search_results:a:c:5', version: '43' },
    ]);
  });

  test('deletes more than a batch', async () => {
    await db.putContents(3_456, { age: '40 days' });
    await db.putContents(10, { tenants: 1, generation: 2 });
    expect(await cleaned()).toEqual({ ...nothing, crawl_content_cache: 3_456 });
  });
});

describe('cleanup_cache_batch', () => {
  interface Batch {
    deleted: string;
    reached: string | null;
  }
  const batch = async (kind: string, days: number, size: number | null, reached = '-infinity') => {
    const text = 'select deleted, reached::text as reached from cleanup_cache_batch($1, $2, $3, $4)';
    return (await db.all<Batch>(text, [kind, days, size, reached]))[0] as Batch;
  };

  test('deletes so many at most, the oldest first, and tells where to go on', async () => {
    for (const n of [1, 2, 3, 4, 5])
      await db.put('face_detection', { content_hash: String(n), created_at: daysAgo(50 - n) });
    const first = await batch('face_detection', 7, 2);
    expect(first.deleted).toBe('2');
    expect(await db.left('face_detection')).toEqual(['3', '4', '5']);
    const second = await batch('face_detection', 7, 2, first.reached as string);
    expect(await db.left('face_detection')).toEqual(['5']);
    expect(await batch('face_detection', 7, 2, second.reached as string)).toEqual({ deleted: '1', reached: null });
  });

  test('goes through rows of one moment, whether they stay or not', async () => {
    const moment = daysAgo(50);
    for (const n of [1, 2, 3, 4, 5]) {
      await db.put('crawl_content', { content_hash: `kept ${n}`, created_at: moment });
      await db.put('crawl_url', { url_hash: String(n), content_hash: `kept ${n}` });
    }
    await db.put('crawl_content', { content_hash: 'later', created_at: daysAgo(49) });
    let reached: string | null = '-infinity';
    for (let rounds = 0; reached !== null; rounds++) {
      expect(rounds).toBeLessThan(10);
      ({ reached } = await batch('crawl_content', 7, 2, reached));
    }
    expect(await db.left('crawl_content')).toEqual(['kept 1', 'kept 2', 'kept 3', 'kept 4', 'kept 5']);
  });

  test.each([
    ['nonsense', 7, 10, 'kind: nonsense is none'],
    ['rejection', 7, 0, 'batch: expected a number of rows from 1 on, not 0'],
    ['rejection', 7, null, 'batch: expected a number of rows from 1 on, not null'],
    ['rejection', 0, 10, 'retention_days: expected a whole number of days from 1 on, not 0'],
  ])('refuses kind %s, %s days, %s rows', async (kind, days, size, message) => {
    await expect(batch(kind, days, size)).rejects.toMatchObject({ message, code: '22023' });
  });

  test('passes over a row that somebody is writing, and does not wait for it', async () => {
    await db.put('search_results', { content_hash: 'written', created_at: daysAgo(9) });
    await db.put('search_results', { content_hash: 'free', created_at: daysAgo(8) });
    const writer = new Client({ connectionString: db.world.databaseUrl });
    await writer.connect();
    try {
      await writer.query('begin');
      await writer.query(`update search_results_cache set version = 2000 where content_hash = 'written'`);
      await db.client.query(`set lock_timeout = '1s'`);
      expect((await batch('search_results', 7, 10)).deleted).toBe('1');
      await writer.query('commit');
      expect(await db.left('search_results')).toEqual(['written']);
    } finally {
      await db.client.query('reset lock_timeout');
      await writer.end();
    }
  });

  test.each(['crawl_content', 'crawl_url'] as const)(
    'finds old rows of %s, and what keeps them, by index',
    async (kind) => {
      await db.putContents(20_000, { age: '50 days' });
      await db.client.query(
        `insert into crawl_cache (tenant_id, generation, url_hash, content_hash, url, raw_key, fetched_at, version, created_at)
       select tenant_id, generation, 'url of ' || content_hash, content_hash, 'https://a.example/', 'raw', now(), version,
         created_at from crawl_content_cache`,
      );
      await db.client.query('analyze crawl_cache; analyze crawl_content_cache');
      const work = await db.workOf(`select * from cleanup_cache_batch('${kind}', 7, 100)`);
      expect(work.rows[0]?.deleted).toBe(kind === 'crawl_url' ? '100' : '0');
      expect(work.whole).toBe(0);
      expect(work.fetched).toBeLessThan(1_000);
    },
  );

  test('finds ended refusals by index', async () => {
    await db.client.query(
      `insert into rejection_cache (tenant_id, generation, subject_hash, reason, detail, rejected_at, expires_at, version, created_at)
       select 'a', 1, 'subject ' || n, 'gone', '404', now(), now() - interval '25 days' + n % 50 * interval '1 day', 1,
         now() - interval '50 days' from generate_series(1, 20000) as n`,
    );
    await db.client.query('analyze rejection_cache');
    const work = await db.workOf(`select * from cleanup_cache_batch('rejection', 7, 100)`);
    expect(work.rows[0]?.deleted).toBe('100');
    expect(work.whole).toBe(0);
    expect(work.fetched).toBeLessThan(1_000);
  });
});

describe('cleanup', () => {
  const deletions = async (days: number, signal?: AbortSignal) => {
    const tables = await cleanup(cache.connection.query, days, signal);
    return tables.filter(({ deletedCount }) => deletedCount > 0);
  };

  test('deletes all that is old, a batch to a transaction, and tells how many of each table', async () => {
    await db.putContents(9_000, { age: '40 days' });
    await db.put('crawl_content', { content_hash: 'young' });
    await db.put('face_embedding', { created_at: daysAgo(9) });
    const tables = await cleanup(cache.connection.query, 7);
    expect(tables.map(({ tableName }) => tableName)).toEqual(TABLES);
    expect(tables.filter(({ deletedCount }) => deletedCount > 0)).toEqual([
      { tableName: 'face_embeddings_cache', deletedCount: 1 },
      { tableName: 'crawl_content_cache', deletedCount: 9_000 },
    ]);
    expect(await db.left('crawl_content')).toEqual(['young']);
    const moments = await db.all('select distinct xmin::text from redis_repairs');
    expect(moments).toHaveLength(4); // of 1, 4,000, 4,000 and 1,000
  });

  test('ends between two batches when it is told to', async () => {
    await db.putContents(9_000, { age: '40 days' });
    const stop = new AbortController();
    const ended = deletions(7, stop.signal);
    while ((await db.left('crawl_content')).length === 9_000) continue;
    stop.abort();
    const [table] = await ended;
    expect(table?.deletedCount).toBeLessThan(9_000);
    expect(await db.left('crawl_content')).toHaveLength(9_000 - (table?.deletedCount ?? 0));
    expect(await deletions(7, AbortSignal.abort())).toEqual([]);
  });

  test.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, '7', null, undefined])(
    'refuses %s days',
    async (days) => {
      await db.put('face_embedding', { created_at: daysAgo(9) });
      await expect(cleanup(cache.connection.query, days as number)).rejects.toBeInstanceOf(ArgumentError);
      expect(await db.left('face_embedding')).toEqual(['c']);
    },
  );

  test('takes more days than PostgreSQL can count for what they are', async () => {
    await db.put('face_embedding', { created_at: new Date(0) });
    expect(await deletions(Number.MAX_SAFE_INTEGER)).toEqual([]);
  });

  test('without PostgreSQL it says so', async () => {
    const nowhere = new URL(db.world.databaseUrl);
    nowhere.pathname = '/no_such_database';
    await using lost = openCache(
      db.world.config({ REDIS_URL: 'none', DATABASE_URL: nowhere.href }),
      db.world.namespace,
    );
    await expect(cleanup(lost.connection.query, 7)).rejects.toBeInstanceOf(TierUnavailableError);
  });
});
