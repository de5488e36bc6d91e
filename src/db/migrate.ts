/** Brings a database up to date: our tables, and the queue's own where the queue is on PostgreSQL. */
import { join } from 'node:path';
import { assertSchemaCompatibility, runMigrations, SchemaMigrationRequiredError } from 'bullmq';
import { readMigrationFiles } from 'drizzle-orm/migrator';
import { drizzle } from 'drizzle-orm/node-postgres';
import { migrate as applyMigrations } from 'drizzle-orm/node-postgres/migrator';
import { Client } from 'pg';
import type { PostgresConfig } from '../config.js';
import { reasonOf } from '../errors.js';
import { packageFolder } from '../package.js';
import { makeWay } from './python-tables.js';

/** Any number that every process of this service agrees on: "hcs" and a version. */
const MIGRATION_LOCK = 0x686373_01;

/** Drizzle's own name for it would be shared with every other program of that database that uses drizzle. */
const APPLIED = { migrationsSchema: 'drizzle', migrationsTable: 'hybrid_cache_migrations' };
const APPLIED_TABLE = `${APPLIED.migrationsSchema}.${APPLIED.migrationsTable}`;
/** Where they were listed before the first release. */
const FORMER_TABLE = 'drizzle.__drizzle_migrations';

/** SQLSTATE: the table that lists the applied migrations is not there. */
const UNDEFINED_TABLE = '42P01';

interface Applied {
  readonly hash: string;
  /** What drizzle knows a migration by: when it was generated. */
  readonly at: string;
}

interface MigrateOptions {
  readonly queueOnPostgres: boolean;
  /** Renames what the Python service left under our names to `python_<name>`; without it, `migrate` refuses. */
  readonly renamePythonTables?: boolean;
}

/**
 * Safe when several processes start at once: one migrates, the others wait for it and find nothing to do.
 * Throws `ForeignTablesError`, with nothing changed, where our names stand for what somebody else made; likewise an error
 * that says what to do where the database is newer than this program, or was migrated by others than ours.
 * @returns what was renamed, as `old to new`
 */
export async function migrate(postgres: PostgresConfig, options: MigrateOptions): Promise<string[]> {
  const client = new Client({ ...postgres, application_name: 'hybrid-cache-service migrate' });
  client.on('error', () => undefined); // the query under way rejects with the same error
  await reached(client, postgres);
  try {
    await client.query('select pg_advisory_lock($1)', [MIGRATION_LOCK]);
    await client.query('set client_min_messages = warning');
    const apply = () => applyMigrations(drizzle(client), { migrationsFolder: migrationsFolder(), ...APPLIED });
    let renamed: string[] = [];
    await takeOver(client);
    const applied = await appliedMigrations(client);
    refuseOthers(applied);
    if (applied.length > 0) await apply();
    else renamed = await makeWay(client, options.renamePythonTables ?? false, apply);
    if (options.queueOnPostgres) await runMigrations(client);
    return renamed;
  } finally {
    await client.end();
  }
}

/** Whether every migration is applied, ours and the queue's. Rejects where the database cannot be asked. */
export async function isMigrated(postgres: PostgresConfig, options: { queueOnPostgres: boolean }): Promise<boolean> {
  const client = new Client({ ...postgres, connectionTimeoutMillis: 3_000 });
  client.on('error', () => undefined);
  try {
    await client.connect();
    const applied = await appliedMigrations(client);
    if (options.queueOnPostgres) await assertSchemaCompatibility(client);
    return applied.length >= ourMigrations().length;
  } catch (error) {
    if (error instanceof SchemaMigrationRequiredError) return false;
    throw error;
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Moves the list of what was applied to where it is kept now, from among what other programs have there. */
async function takeOver(client: Client): Promise<void> {
  const { rows } = await client.query<{ due: boolean }>(
    'select to_regclass($1) is null and to_regclass($2) is not null as due',
    [APPLIED_TABLE, FORMER_TABLE],
  );
  const [first] = ourMigrations();
  if (!rows[0]?.due || !first) return;
  const moved = ourMigrations().map(({ folderMillis }) => folderMillis);
  await client.query('begin');
  await client.query(`create table ${APPLIED_TABLE} (id serial primary key, hash text not null, created_at bigint)`);
  await client.query(
    `insert into ${APPLIED_TABLE} (hash, created_at) select hash, created_at from ${FORMER_TABLE}
       where created_at = any($1) and exists (select from ${FORMER_TABLE} where hash = $2) order by id`,
    [moved, first.hash],
  );
  await client.query(
    `delete from ${FORMER_TABLE} where (hash, created_at) in (select hash, created_at from ${APPLIED_TABLE})`,
  );
  await client.query('commit');
}

async function appliedMigrations(client: Client): Promise<Applied[]> {
  try {
    return (await client.query<Applied>(`select hash, created_at as at from ${APPLIED_TABLE} order by created_at`))
      .rows;
  } catch (error) {
    if ((error as { code?: unknown }).code === UNDEFINED_TABLE) return [];
    throw error;
  }
}

/** @throws where something was applied that is not among our migrations */
function refuseOthers(applied: readonly Applied[]): void {
  const ours = ourMigrations();
  const stranger = applied.find(({ hash }) => !ours.some((one) => one.hash === hash));
  if (!stranger) return;
  const made = new Date(Number(stranger.at)).toISOString();
  if (Number(stranger.at) > Math.max(...ours.map(({ folderMillis }) => folderMillis))) {
    throw new Error(
      `The database is newer than this program: it has a migration of ${made}. ` +
        'Run the version that made it, or restore a backup of before.',
    );
  }
  throw new Error(
    `The database has a migration of ${made} in another form than this program: its tables may differ. ` +
      'Run the version that made it, or begin with an empty database.',
  );
}

function ourMigrations() {
  return readMigrationFiles({ migrationsFolder: migrationsFolder() });
}

function migrationsFolder(): string {
  return join(packageFolder(), 'drizzle');
}

async function reached(client: Client, postgres: PostgresConfig): Promise<void> {
  try {
    await client.connect();
  } catch (error) {
    const how = 'connectionString' in postgres ? 'DATABASE_URL' : 'POSTGRES_HOST, POSTGRES_PORT and their like';
    throw new Error(`PostgreSQL cannot be reached (see ${how}): ${reasonOf(error)}`, { cause: error });
  }
}
