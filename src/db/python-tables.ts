/**
 * The Python service kept other tables under our names, in the same place. Their rows are never read: they have no
 * tenant or no model that could be trusted. They are refused, or moved aside to `python_<name>` where that is asked for.
 */
import { is } from 'drizzle-orm';
import { getTableConfig, isPgSequence, PgTable } from 'drizzle-orm/pg-core';
import { type Client, escapeIdentifier } from 'pg';
import { ForeignTablesError } from '../errors.js';
import * as schema from './schema.js';

/** What the hand-written migrations alone create, under names that the Python service has too. */
const SQL_RELATIONS = ['cache_stats'];
const SQL_ROUTINES = ['cleanup_old_cache_entries', 'get_cache_index_usage'];

/** What the Python service has of our names. Whatever else stands in our way is somebody else's, and none of our business. */
const PYTHON_RELATIONS = ['face_embeddings_cache', 'perceptual_hash_cache', 'crawl_cache', ...SQL_RELATIONS];

const PREFIX = 'python_';
/** PostgreSQL cuts longer identifiers without asking. */
const NAME_BYTES = 63;
const COMMAND = 'hybrid-cache migrate --rename-python-tables';

interface Foreign {
  /** As errors name it. */
  readonly label: string;
  /** The index or sequence of a table that is listed by itself. */
  readonly owned: boolean;
  /** By its name, the Python service's. */
  readonly python: boolean;
  readonly newName: string;
  /** Something else has the new name. */
  readonly taken: boolean;
  readonly rename: string;
}

/**
 * Does `work`, the first migration of a database, with our names free. Where they are not, it throws before anything is
 * changed, or renames what has them in one transaction with `work`. @returns what was renamed, as `old to new`.
 */
export async function makeWay(client: Client, rename: boolean, work: () => Promise<void>): Promise<string[]> {
  const { rows } = await client.query<{ schema: string | null }>('select current_schema() as schema');
  const place = rows[0]?.schema;
  const found = place ? [...(await relations(client, place)), ...(await routines(client, place))] : [];
  if (!place || found.length === 0) {
    await work(); // without a schema to create in, PostgreSQL says so itself
    return [];
  }
  refuse(place, found, rename);
  await client.query('begin');
  for (const one of found) await client.query(one.rename);
  // The `begin` of drizzle's migrator joins the transaction that is under way, and its `commit` ends it. Ours is for the
  // day it stops doing so. Where `work` fails, all is taken back, at the latest when the connection ends.
  await work();
  await client.query('commit');
  return found.map(({ label, newName }) => `${label} to ${newName}`);
}

function refuse(place: string, found: readonly Foreign[], rename: boolean): void {
  const strangers = found.filter(({ python }) => !python).map(({ label }) => label);
  if (strangers.length > 0) {
    throw new ForeignTablesError(
      place,
      strangers,
      'names that this service needs, made by somebody else. Give this service a database or a schema of its own',
    );
  }
  const listed = found.filter(({ owned }) => !owned).map(({ label }) => label);
  if (!rename) {
    throw new ForeignTablesError(
      place,
      listed,
      `not made by our migrations. Stop the Python service and run \`${COMMAND}\`: it renames them to ${PREFIX}<name>`,
    );
  }
  const taken = [...new Set(found.filter((one) => one.taken).map(({ newName }) => newName))];
  if (taken.length > 0) {
    throw new ForeignTablesError(
      place,
      taken,
      `the names to rename to are taken. Rename or drop these, then run again`,
    );
  }
}

/** Tables, indexes and sequences share one namespace with views: any of them can stand where ours is to be. */
function relationNames(): string[] {
  const declared: readonly unknown[] = Object.values(schema);
  const all = declared.filter((one) => is(one, PgTable)).map((table) => getTableConfig(table));
  // What lies in a schema of its own is in nobody's way.
  const tables = all.filter((table) => !table.schema);
  return [
    ...tables.map(({ name }) => name),
    ...tables.flatMap(({ indexes }) => indexes.flatMap(({ config }) => config.name ?? [])),
    ...tables.flatMap(({ primaryKeys }) => primaryKeys.map((key) => key.getName())),
    ...declared.filter(isPgSequence).flatMap(({ seqName }) => seqName ?? []),
    ...SQL_RELATIONS,
  ];
}

interface RelationRow {
  readonly oid: number;
  readonly identity: string;
  readonly name: string;
  readonly kind: string;
  readonly owned: boolean;
  readonly taken: boolean;
}

/** What has our names, with all indexes and sequences of it: those could have a name that a later migration creates. */
async function relations(client: Client, place: string): Promise<Foreign[]> {
  const { rows } = await client.query<RelationRow>(
    `with named as (
       select oid from pg_class
       where relnamespace = (select oid from pg_namespace where nspname = $1) and relname = any($2) and relkind <> 'c'
     ), owned as (
       select indexrelid as oid from pg_index where indrelid in (select oid from named)
       union
       select objid from pg_depend join pg_class on pg_class.oid = objid and relkind = 'S'
       where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass
         and deptype in ('a', 'i') and refobjid in (select oid from named)
     )
     select oid, oid::regclass::text as identity, relname as name, relkind as kind, oid in (select oid from owned) as owned,
       exists (
         select from pg_class as other
         where other.relnamespace = relation.relnamespace and other.relname = $3 || relation.relname
       ) as taken
     from pg_class as relation
     where oid in (select oid from named union select oid from owned)
     order by relname`,
    [place, relationNames(), PREFIX],
  );
  return rows.map(asForeignRelation);
}

function asForeignRelation(row: RelationRow): Foreign {
  // Nobody asks for an index or a sequence by name: they take the next best one, where a table stops the migration.
  const byTheWay = ['i', 'I', 'S'].includes(row.kind);
  const plain = PREFIX + row.name;
  const fits = Buffer.byteLength(plain) <= NAME_BYTES && !row.taken;
  const newName = byTheWay && !fits ? `${PREFIX}${row.name.slice(0, 45)}_${row.oid}` : plain;
  return {
    label: row.name,
    owned: row.owned,
    python: row.owned || PYTHON_RELATIONS.includes(row.name),
    newName,
    taken: row.taken && !byTheWay,
    rename: `alter table ${row.identity} rename to ${escapeIdentifier(newName)}`,
  };
}

async function routines(client: Client, place: string): Promise<Foreign[]> {
  const { rows } = await client.query<{ identity: string; name: string; taken: boolean }>(
    `select oid::regprocedure::text as identity, proname as name,
       exists (
         select from pg_proc as other
         where other.pronamespace = routine.pronamespace and other.proname = $3 || routine.proname
       ) as taken
     from pg_proc as routine
     where pronamespace = (select oid from pg_namespace where nspname = $1) and proname = any($2)
     order by identity`,
    [place, SQL_ROUTINES, PREFIX],
  );
  return rows.map(({ identity, name, taken }) => ({
    label: identity,
    owned: false,
    python: true,
    newName: PREFIX + name,
    taken,
    // Its body finds tables by name when it runs: without a path, the old clean-up fails instead of emptying our tables.
    rename: `alter routine ${identity} set search_path = pg_catalog;
             alter routine ${identity} rename to ${escapeIdentifier(PREFIX + name)}`,
  }));
}
