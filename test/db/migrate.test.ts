/** Migrating: by many at once, twice, and what it leaves behind. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { is } from 'drizzle-orm';
import { getTableConfig, PgTable } from 'drizzle-orm/pg-core';
import { Client } from 'pg';
import { afterAll, beforeEach, expect, inject, test } from 'vitest';
import { isMigrated, migrate } from '../../src/db/migrate.js';
import * as schema from '../../src/db/schema.js';
import { until } from '../support/until.js';

const made: string[] = [];
let url: string;

beforeEach(async () => {
  const name = `m${randomBytes(5).toString('hex')}`;
  made.push(name);
  await query(serverUrl('postgres'), `create database ${name} template template0`);
  url = serverUrl(name);
});

afterAll(async () => {
  for (const name of made) await query(serverUrl('postgres'), `drop database if exists ${name} with (force)`);
});

function serverUrl(database: string): string {
  const server = new URL(inject('databaseUrl'));
  server.pathname = `/${database}`;
  return server.href;
}

async function query<Row>(connectionString: string, text: string): Promise<Row[]> {
  const client = new Client({ connectionString });
  await client.connect();
  try {
    return (await client.query(text)).rows as Row[];
  } finally {
    await client.end();
  }
}

const tables = () =>
  query<{ name: string }>(
    url,
    "select table_name as name from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE' order by 1",
  ).then((rows) => rows.map(({ name }) => name));
const applied = () => query<{ hash: string }>(url, 'select hash from drizzle.hybrid_cache_migrations order by id');

test('an empty database has every table of the schema afterwards, with tenant_id leading every primary key', async () => {
  expect(await isMigrated({ connectionString: url }, { queueOnPostgres: false })).toBe(false);
  await migrate({ connectionString: url }, { queueOnPostgres: false });
  expect(await isMigrated({ connectionString: url }, { queueOnPostgres: false })).toBe(true);
  const all = Object.values(schema).flatMap((one) => (is(one, PgTable) ? [getTableConfig(one)] : []));
  // Beside the facts there is what the queues need to know, in a schema of its own.
  const declared = all.filter((table) => !table.schema).map(({ name }) => name);
  expect(await tables()).toEqual(declared.sort());
  const leading = await query<{ name: string; first: string }>(
    url,
    `select conrelid::regclass::text as name, attname as first from pg_constraint
     join pg_attribute on attrelid = conrelid and attnum = conkey[1]
     where contype = 'p' and connamespace = 'public'::regnamespace order by 1`,
  );
  expect(leading).toEqual(declared.map((name) => ({ name, first: 'tenant_id' })));
});

test('a second run finds nothing to do [M14]', async () => {
  await migrate({ connectionString: url }, { queueOnPostgres: false });
  const before = await applied();
  await migrate({ connectionString: url }, { queueOnPostgres: false });
  expect(await applied()).toEqual(before);
  expect(before.length).toBeGreaterThan(0);
});

test('eight that migrate at once, with the queue’s own tables, all succeed, and each migration ran once [M12]', async () => {
  await Promise.all(Array.from({ length: 8 }, () => migrate({ connectionString: url }, { queueOnPostgres: true })));
  const hashes = (await applied()).map(({ hash }) => hash);
  expect(new Set(hashes).size).toBe(hashes.length);
  expect(await isMigrated({ connectionString: url }, { queueOnPostgres: false })).toBe(true);
});

test('so do processes of their own', async () => {
  const script = `
    import { migrate } from './src/db/migrate.ts';
    await migrate({ connectionString: process.env.DATABASE_URL }, { queueOnPostgres: false });
  `;
  const cwd = fileURLToPath(new URL('../..', import.meta.url));
  const env = { PATH: process.env.PATH, DATABASE_URL: url };
  const args = ['--import', 'tsx', '--input-type=module', '-e', script];
  await Promise.all(Array.from({ length: 3 }, () => promisify(execFile)(process.execPath, args, { cwd, env })));
  const hashes = (await applied()).map(({ hash }) => hash);
  expect(new Set(hashes).size).toBe(hashes.length);
});

test('a migration waits for the one under way, and goes on when that is killed', async () => {
  const locks = (granted: boolean) =>
    query<{ pid: number }>(
      url,
      `select pid from pg_locks join pg_database on pg_database.oid = database
       where locktype = 'advisory' and granted = ${granted} and datname = current_database()`,
    );
  const other = new Client({ connectionString: url });
  other.on('error', () => undefined); // it is killed below
  await other.connect();
  await other.query('select pg_advisory_lock($1)', [0x686373_01]);
  const waiting = migrate({ connectionString: url }, { queueOnPostgres: false });
  await until('a migration that waits', async () => (await locks(false)).length > 0);
  expect(await tables()).toEqual([]);
  const [holder] = await locks(true);
  await query(serverUrl('postgres'), `select pg_terminate_backend(${holder?.pid})`);
  await waiting;
  expect(await isMigrated({ connectionString: url }, { queueOnPostgres: false })).toBe(true);
  await other.end().catch(() => undefined);
});

test('another program of the same database that uses drizzle is left alone, and takes nothing for its own', async () => {
  const theirs = "('theirs', extract(epoch from now()) * 1000)";
  await query(
    url,
    `create schema drizzle; create table drizzle.__drizzle_migrations (id serial, hash text, created_at bigint);
     insert into drizzle.__drizzle_migrations (hash, created_at) values ${theirs}`,
  );
  await migrate({ connectionString: url }, { queueOnPostgres: false });
  expect(await isMigrated({ connectionString: url }, { queueOnPostgres: false })).toBe(true);
  expect(await query(url, 'select hash from drizzle.__drizzle_migrations')).toEqual([{ hash: 'theirs' }]);
});

test('what was applied before the list had a name of its own is not applied again', async () => {
  await migrate({ connectionString: url }, { queueOnPostgres: false });
  const before = await applied();
  await query(
    url,
    `alter table drizzle.hybrid_cache_migrations rename to __drizzle_migrations;
     insert into drizzle.__drizzle_migrations (hash, created_at) values ('theirs', 1)`,
  );
  expect(await isMigrated({ connectionString: url }, { queueOnPostgres: false })).toBe(false);
  await migrate({ connectionString: url }, { queueOnPostgres: false });
  expect(await applied()).toEqual(before);
  expect(await query(url, 'select hash from drizzle.__drizzle_migrations')).toEqual([{ hash: 'theirs' }]);
});

test('a database that is newer than this program, or was migrated in another form, is refused', async () => {
  await migrate({ connectionString: url }, { queueOnPostgres: false });
  const again = () => migrate({ connectionString: url }, { queueOnPostgres: false });
  const list = 'drizzle.hybrid_cache_migrations';
  await query(url, `insert into ${list} (hash, created_at) select 'newer', max(created_at) + 1000 from ${list}`);
  await expect(again()).rejects.toThrow(/is newer than this program.*Run the version that made it/);
  // Its older processes go on while it is rolled out.
  expect(await isMigrated({ connectionString: url }, { queueOnPostgres: false })).toBe(true);
  await query(url, `delete from ${list} where hash = 'newer'; update ${list} set hash = 'other' where id = 2`);
  await expect(again()).rejects.toThrow(/in another form/);
});

test('a database that cannot be reached rejects', async () => {
  const nowhere = { connectionString: serverUrl('no_such_database') };
  await expect(migrate(nowhere, { queueOnPostgres: false })).rejects.toThrow(/does not exist/);
  await expect(isMigrated(nowhere, { queueOnPostgres: false })).rejects.toThrow(/does not exist/);
});
