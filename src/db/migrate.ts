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

/** SQLSTATE: the table that lists the applied migrations is not there. */
const UNDEFINED_TABLE = '42P01';

interface MigrateOptions {
  readonly queueOnPostgres: boolean;
  /** Renames what the Python service left under our names to `python_<name>`; without it, `migrate` refuses. */
  readonly renamePythonTables?: boolean;
}

/**
 * Safe when several processes start at once: one migrates, the others wait for it and find nothing to do.
 * Throws `ForeignTablesError`, with nothing changed, where our names stand for what somebody else made.
 * @returns what was renamed, as `old to new`
 */
export async function migrate(postgres: PostgresConfig, options: MigrateOptions): Promise<string[]> {
  const client = new Client({ ...postgres, application_name: 'hybrid-cache-service migrate' });
  client.on('error', () => undefined); // the query under way rejects with the same error
  await reached(client, postgres);
  try {
    await client.query('select pg_advisory_lock($1)', [MIGRATION_LOCK]);
    await client.query('set client_min_messages = warning');
    const apply = () => applyMigrations(drizzle(client), { migrationsFolder: migrationsFolder() });
    let renamed: string[] = [];
    if ((await appliedMigrations(client)) > 0) await apply();
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
    return applied >= readMigrationFiles({ migrationsFolder: migrationsFolder() }).length;
  } catch (error) {
    if (error instanceof SchemaMigrationRequiredError) return false;
    throw error;
  } finally {
    await client.end().catch(() => undefined);
  }
}

async function appliedMigrations(client: Client): Promise<number> {
  try {
    const { rows } = await client.query<{ applied: number }>(
      'select count(*)::int as applied from drizzle.__drizzle_migrations',
    );
    return rows[0]?.applied ?? 0;
  } catch (error) {
    if ((error as { code?: unknown }).code === UNDEFINED_TABLE) return 0;
    throw error;
  }
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
