/** Coming from the Python service: its tables under our names are refused, or moved aside whole, and never touched else. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import { is } from 'drizzle-orm';
import { getTableConfig, PgTable } from 'drizzle-orm/pg-core';
import { Client } from 'pg';
import { afterAll, beforeEach, expect, inject, test } from 'vitest';
import { isMigrated, migrate } from '../../src/db/migrate.js';
import * as schema from '../../src/db/schema.js';

const CLI = resolve('dist/src/cli.js');

/** As the Python service's own migrations leave it, with one row a table. */
const PYTHON_SERVICE = `
  create table face_embeddings_cache (
    id serial primary key, content_hash varchar(64) unique, tenant_id varchar(64) default 'default', embeddings jsonb,
    created_at timestamptz default now(), updated_at timestamptz default now());
  create index idx_face_embeddings_cache_tenant_id on face_embeddings_cache (tenant_id);
  create index face_embeddings_cache_created_at_idx on face_embeddings_cache (created_at);
  create table perceptual_hash_cache (id serial primary key, content_hash varchar(64), phash varchar(32));
  create index idx_perceptual_hash_cache_phash on perceptual_hash_cache (phash);
  create table crawl_cache (
    id serial primary key, url_hash varchar(64) not null unique, phash varchar(32), raw_image_key varchar(255),
    processed_at timestamp default current_timestamp, face_detected boolean default false);
  create index idx_crawl_cache_processed on crawl_cache (processed_at) where phash is not null;
  create view cache_stats as
    select 'face_embeddings_cache' as cache_type, count(*)::int as total_entries from face_embeddings_cache
    union all select 'crawl_cache', count(*)::int from crawl_cache;
  create function cleanup_old_cache_entries(retention_days integer default 7)
  returns table (table_name text, deleted_count bigint) language plpgsql as $$
  begin
    delete from face_embeddings_cache where created_at < now() - (retention_days || ' days')::interval;
    get diagnostics deleted_count = row_count;
    table_name := 'face_embeddings_cache';
    return next;
  end $$;
  create function get_cache_index_usage() returns bigint language sql as 'select count(*) from pg_stat_user_indexes';
  insert into face_embeddings_cache (content_hash, embeddings) values ('aa', '[]');
  insert into perceptual_hash_cache (content_hash, phash) values ('aa', '8f3c');
  insert into crawl_cache (url_hash, phash) values ('bb', '8f3c');
`;
const NAMES = [
  'cache_stats',
  'crawl_cache',
  'face_embeddings_cache',
  'perceptual_hash_cache',
  'cleanup_old_cache_entries(integer)',
  'get_cache_index_usage()',
];

const made: string[] = [];
let url: string;

beforeEach(async () => {
  const name = `p${randomBytes(5).toString('hex')}`;
  made.push(name);
  await query(`create database ${name} template template0`, serverUrl('postgres'));
  url = serverUrl(name);
});

afterAll(async () => {
  for (const name of made) await query(`drop database if exists ${name} with (force)`, serverUrl('postgres'));
});

function serverUrl(database: string): string {
  const server = new URL(inject('databaseUrl'));
  server.pathname = `/${database}`;
  return server.href;
}

async function query<Row>(text: string, connectionString = url): Promise<Row[]> {
  const client = new Client({ connectionString });
  await client.connect();
  try {
    return (await client.query(text)).rows as Row[];
  } finally {
    await client.end();
  }
}

const run = (renamePythonTables = false) =>
  migrate({ connectionString: url }, { queueOnPostgres: false, renamePythonTables });
const migrated = () => isMigrated({ connectionString: url }, { queueOnPostgres: false });

/** Every schema, relation, routine with its settings, and constraint that is not PostgreSQL's own. */
const catalog = () =>
  query<{ kind: string; name: string }>(
    `with own as (select oid, nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema')
     select 'schema' as kind, oid, nspname as name from own
     union all select 'relation', pg_class.oid, relname from pg_class join own on own.oid = relnamespace
     union all select 'routine', pg_proc.oid, proname from pg_proc join own on own.oid = pronamespace
     union all select 'settings', pg_proc.oid, proconfig::text from pg_proc join own on own.oid = pronamespace
     union all select 'constraint', pg_constraint.oid, conname from pg_constraint join own on own.oid = connamespace
     order by 1, 2, 3`,
  );
const relations = async () => (await catalog()).filter(({ kind }) => kind === 'relation').map(({ name }) => name);

async function expectOurTables(): Promise<void> {
  expect(await migrated()).toBe(true);
  const declared = (Object.values(schema) as unknown[])
    .filter((one) => is(one, PgTable))
    .map((one) => getTableConfig(one));
  for (const { name, schema: place = 'public', columns } of declared) {
    const rows = await query<{ attname: string }>(
      `select attname from pg_attribute where attrelid = '${place}.${name}'::regclass and attnum > 0 and not attisdropped`,
    );
    expect(rows.map(({ attname }) => attname).sort()).toEqual(columns.map((column) => column.name).sort());
  }
  await query(`insert into claims values ('acme', 'url:aa', 'job', now(), now())`);
}

test('names that our migrations need and did not make are refused, all of them, and nothing is changed', async () => {
  await query(PYTHON_SERVICE);
  const before = await catalog();
  const refusal = await run().catch((error: unknown) => error);
  expect(refusal).toMatchObject({ name: 'ForeignTablesError', schema: 'public', names: NAMES });
  for (const name of [...NAMES, 'schema public', 'hybrid-cache migrate --rename-python-tables']) {
    expect(String(refusal)).toContain(name);
  }
  expect(await catalog()).toEqual(before);
  expect(await migrated()).toBe(false);
});

test('a single one of them is enough, whatever sort of relation has the name, and any sort can be renamed', async () => {
  const inTheWay = [
    [
      'create table face_embeddings_cache (id int generated always as identity primary key)',
      'drop table face_embeddings_cache',
    ],
    ['create materialized view cache_stats as select 1 as one', 'drop materialized view cache_stats'],
    ['create table crawl_cache (at int) partition by range (at)', 'drop table crawl_cache'],
    ['create sequence perceptual_hash_cache', 'drop sequence perceptual_hash_cache'],
    ['create procedure get_cache_index_usage(text) language sql as $$$$', 'drop procedure get_cache_index_usage'],
  ] as const;
  for (const [create, drop] of inTheWay) {
    await query(create);
    await expect(run()).rejects.toMatchObject({ name: 'ForeignTablesError', names: [expect.any(String)] });
    await query(drop);
  }
  for (const [create] of inTheWay) await query(create);
  await run(true);
  await expectOurTables();
});

test.each([
  ['claims', 'create table claims (id int)'],
  ['rejection_cache', 'create materialized view rejection_cache as select 1 as one'],
  ['claims_expires_at_idx', 'create table other (at int); create index claims_expires_at_idx on other (at)'],
])('what is not the Python service’s is not renamed, with the option or without: %s', async (name, create) => {
  await query(create);
  for (const rename of [false, true]) {
    await expect(run(rename)).rejects.toMatchObject({
      names: [name],
      message: expect.stringContaining('Give this service a database or a schema of its own'),
    });
  }
  expect(await query(`select 1 from pg_class where relname = '${name}'`)).toHaveLength(1);
});

test('renamed, they keep their rows under python_*, and ours stand beside them [M48]', async () => {
  await query(PYTHON_SERVICE);
  await run(true);
  await expectOurTables();
  expect(await query('select content_hash, tenant_id, embeddings from python_face_embeddings_cache')).toEqual([
    { content_hash: 'aa', tenant_id: 'default', embeddings: [] },
  ]);
  expect(await query('select phash from python_perceptual_hash_cache')).toEqual([{ phash: '8f3c' }]);
  expect(await query("insert into python_crawl_cache (url_hash) values ('cc') returning id")).toEqual([{ id: 2 }]);
  expect(await query('select * from python_cache_stats order by 1')).toEqual([
    { cache_type: 'crawl_cache', total_entries: 2 },
    { cache_type: 'face_embeddings_cache', total_entries: 1 },
  ]);
  expect(await query('select python_get_cache_index_usage() > 0 as works')).toEqual([{ works: true }]);
  expect(await relations()).toEqual(
    expect.arrayContaining([
      'python_crawl_cache_pkey',
      'python_crawl_cache_id_seq',
      'python_crawl_cache_url_hash_key',
      'python_face_embeddings_cache_created_at_idx',
    ]),
  );
  expect(await query('select from face_embeddings_cache')).toEqual([]);
});

test('the old clean-up finds no table any more, rather than ours', async () => {
  await query(PYTHON_SERVICE);
  await run(true);
  await expect(query('select * from python_cleanup_old_cache_entries(0)')).rejects.toThrow(
    'relation "face_embeddings_cache" does not exist',
  );
});

test('once renamed there is nothing more to do, with the option and without', async () => {
  await query(PYTHON_SERVICE);
  await run(true);
  const after = await catalog();
  await run(true);
  await run();
  expect(await catalog()).toEqual(after);
});

test('a python_* name that is taken stops it before anything is changed', async () => {
  await query(`${PYTHON_SERVICE}; create table python_crawl_cache (); create function python_get_cache_index_usage(text)
    returns text language sql as 'select $1'`);
  const before = await catalog();
  const taken = ['python_crawl_cache', 'python_get_cache_index_usage'];
  await expect(run(true)).rejects.toMatchObject({ name: 'ForeignTablesError', schema: 'public', names: taken });
  await expect(run(true)).rejects.toThrow(/python_crawl_cache, python_get_cache_index_usage/);
  expect(await catalog()).toEqual(before);
});

test('an index whose new name is too long or taken gets another', async () => {
  const long = `idx_${'x'.repeat(59)}`;
  await query(`${PYTHON_SERVICE}; create index ${long} on crawl_cache (phash); create index "Odd ""name" on crawl_cache (id);
    create index ${long.slice(0, -1)}y on crawl_cache (phash); create table python_idx_crawl_cache_processed ()`);
  await run(true);
  const indexes = await query<{ name: string }>(
    "select indexname as name from pg_indexes where tablename = 'python_crawl_cache' order by 1",
  );
  expect(indexes.map(({ name }) => name.replace(/\d+$/, '<oid>'))).toEqual([
    'python_Odd "name',
    'python_crawl_cache_pkey',
    'python_crawl_cache_url_hash_key',
    'python_idx_crawl_cache_processed_<oid>',
    `python_${long.slice(0, 45)}_<oid>`,
    `python_${long.slice(0, 45)}_<oid>`,
  ]);
});

test('a migration that fails takes the renaming back', async () => {
  await query(`${PYTHON_SERVICE}; create function perceptual_hash_number(phash text) returns text return phash`);
  const before = await catalog();
  await expect(run(true)).rejects.toThrow();
  expect(await catalog()).toEqual(before);
});

test('eight that rename at once: one does it, the others find nothing to do', async () => {
  await query(PYTHON_SERVICE);
  await Promise.all(Array.from({ length: 8 }, () => run(true)));
  await expectOurTables();
  expect(await query('select url_hash from python_crawl_cache')).toEqual([{ url_hash: 'bb' }]);
  expect((await relations()).filter((name) => name.startsWith('python_python_'))).toEqual([]);
});

test('an empty database and one of ours know no difference', async () => {
  await run(true);
  await expectOurTables();
  const before = await catalog();
  await run(true);
  await run();
  expect(await catalog()).toEqual(before);
});

test('only the schema where our tables go counts', async () => {
  const asOld = `${url}?options=${encodeURIComponent('-c search_path="The\\ old\\ one",public')}`;
  await query('create schema "The old one"');
  await query(PYTHON_SERVICE, asOld);
  await expect(migrate({ connectionString: asOld }, { queueOnPostgres: false })).rejects.toMatchObject({
    schema: 'The old one',
    names: NAMES,
  });
  await run();
  await expectOurTables();
  expect(await query('select url_hash from "The old one".crawl_cache')).toEqual([{ url_hash: 'bb' }]);
});

test('a schema of any name can be moved aside', async () => {
  const asOld = `${url}?options=${encodeURIComponent('-c search_path="The\\ old\\ one",public')}`;
  await query('create schema "The old one"');
  await query(PYTHON_SERVICE, asOld);
  await migrate({ connectionString: asOld }, { queueOnPostgres: false, renamePythonTables: true });
  expect(await query('select url_hash from "The old one".python_crawl_cache')).toEqual([{ url_hash: 'bb' }]);
  expect(await query('select from "The old one".crawl_cache')).toEqual([]);
});

test('the command line refuses with 1 and says what to run, which then works', async () => {
  await query(PYTHON_SERVICE);
  const env = { PATH: process.env.PATH, DATABASE_URL: url, REDIS_URL: 'none', QUEUE_BACKEND: 'postgres' };
  const hybridCache = (...args: string[]) => promisify(execFile)(process.execPath, [CLI, ...args], { env });
  await expect(hybridCache('migrate')).rejects.toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/^hybrid-cache: the schema public holds cache_stats, .* --rename-python-tables/),
  });
  await expect(hybridCache('serve')).rejects.toMatchObject({ code: 1, stderr: expect.stringContaining('db:migrate') });
  const { stderr } = await hybridCache('migrate', '--rename-python-tables');
  expect(stderr).toContain('Renamed crawl_cache to python_crawl_cache.\n');
  expect(stderr.endsWith('The database is up to date.\n')).toBe(true);
  await expectOurTables();
});
