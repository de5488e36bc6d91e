/** Our tables: migrated, with every index that our queries rely on, vacuumed and analysed. */
import { is } from 'drizzle-orm';
import { getTableConfig, PgTable } from 'drizzle-orm/pg-core';
import type { Client } from 'pg';
import * as schema from '../db/schema.js';
import { type Check, type Finding, ok, problem, warning } from './check.js';

const DEADLINE_MS = 12_000;
/** Of fewer, nothing of this matters. */
const MANY_ROWS = 10_000;
/** Autovacuum begins at a fifth (`autovacuum_vacuum_scale_factor`). */
const MOST_DEAD = 0.4;
const VACUUM = 'run vacuum (analyze) on it, and see that autovacuum is on and keeps up';

export function tablesCheck(client: Client, migrated: () => Promise<boolean>): Check {
  return {
    name: 'database',
    deadlineMs: DEADLINE_MS,
    remedy: 'see that the configured user may read the tables and the catalogue',
    run: async () => {
      if (!(await migrated())) return [problem('database', 'is not up to date: run hybrid-cache migrate')];
      const findings = [await indexFinding(client), await useFinding(client), ...(await tableFindings(client))];
      return [ok('database', 'every migration is applied'), ...findings];
    },
  };
}

async function indexFinding(client: Client): Promise<Finding> {
  const wanted = expectedIndexes();
  const { rows } = await client.query<{ index: string; there: boolean }>(
    `select wanted.index, i.indexrelid is not null as there
     from unnest($1::text[], $2::text[]) as wanted(relation, index)
     left join (pg_index i join pg_class c on c.oid = i.indexrelid)
       on i.indrelid = to_regclass(wanted.relation) and c.relname = wanted.index
     where i.indexrelid is null or not i.indisvalid or not i.indisready
     order by wanted.index`,
    [wanted.map(({ table }) => table), wanted.map(({ index }) => index)],
  );
  if (rows.length === 0) return ok('database', `all ${wanted.length} indexes are there and valid`);
  const names = rows.map(({ index, there }) => `${index} (${there ? 'invalid' : 'missing'})`).join(', ');
  return problem('database', `${names}: reindex what is invalid, and create what is missing as drizzle/ does`);
}

/** What PostgreSQL itself counts of the indexes on our tables. One of ours may wait for what is seldom asked. */
async function useFinding(client: Client): Promise<Finding> {
  const { rows } = await client.query<{ index: string; since: Date | null }>(
    `select u.indexrelname as index, (select stats_reset from pg_stat_database where datname = current_database()) as since
     from pg_stat_user_indexes u join pg_index i using (indexrelid) join pg_class c on c.oid = u.relid
     where u.relid in (select to_regclass(name) from unnest($1::text[]) as name)
       and u.idx_scan = 0 and not i.indisunique and c.reltuples >= $2
     order by u.indexrelname`,
    [ourTables(), MANY_ROWS],
  );
  if (rows.length === 0) return ok('database', 'every index on a large table is in use');
  const ours = new Set(expectedIndexes().map(({ index }) => index));
  const since = rows[0]?.since ? `since ${rows[0].since.toISOString()}` : 'since this server began to count';
  const others = rows.filter(({ index }) => !ours.has(index)).map(({ index }) => index);
  if (others.length > 0) return warning('database', `${others.join(', ')} not used ${since}, and not ours: drop it`);
  return ok('database', `not used ${since}: ${rows.map(({ index }) => index).join(', ')}`);
}

interface TableState {
  readonly name: string;
  readonly rows: number;
  readonly dead: number;
  readonly vacuumed: Date | null;
  readonly analysed: Date | null;
}

/** Autovacuum sees to both: where it does not, tables grow and plans guess. */
async function tableFindings(client: Client): Promise<Finding[]> {
  const { rows: tables } = await client.query<TableState>(
    `select wanted.name, n_live_tup::float8 as rows, n_dead_tup::float8 as dead,
       greatest(last_vacuum, last_autovacuum) as vacuumed, greatest(last_analyze, last_autoanalyze) as analysed
     from unnest($1::text[]) as wanted(name) join pg_stat_user_tables on relid = to_regclass(wanted.name)
     order by wanted.name`,
    [ourTables()],
  );
  return tableStateFindings(tables);
}

export function tableStateFindings(tables: readonly TableState[]): Finding[] {
  const large = tables.filter(({ rows, dead }) => rows + dead >= MANY_ROWS);
  const bloated = large.filter(({ rows, dead }) => dead > MOST_DEAD * (rows + dead));
  const unknown = large.filter(({ analysed }) => analysed === null);
  const when = (at: Date | null) => at?.toISOString() ?? 'never';
  if (bloated.length === 0 && unknown.length === 0) {
    const [oldest] = large.flatMap(({ analysed }) => analysed ?? []).sort((a, b) => a.getTime() - b.getTime());
    const told = oldest ? `large ones were analysed at ${when(oldest)} or later` : 'none is large yet';
    return [ok('database', `no table is full of dead rows, and ${told}`)];
  }
  return [
    ...bloated.map(({ name, rows, dead, vacuumed }) => {
      const percent = Math.round((100 * dead) / (rows + dead));
      return warning('database', `${name} has ${percent} % dead rows, last vacuumed ${when(vacuumed)}: ${VACUUM}`);
    }),
    ...unknown.map(({ name }) =>
      warning('database', `${name} was never analysed, so its plans are guesses: ${VACUUM}`),
    ),
  ];
}

function ourTables(): string[] {
  return [...new Set(expectedIndexes().map(({ table }) => table))];
}

/** Each index of `schema.ts` as PostgreSQL names it, those of primary keys included. */
export function expectedIndexes(): { table: string; index: string }[] {
  const tables = Object.values(schema).flatMap((one): PgTable[] => (is(one, PgTable) ? [one] : []));
  return tables.flatMap((one) => {
    const { name, schema: namespace, indexes, primaryKeys, columns } = getTableConfig(one);
    const table = namespace ? `${namespace}.${name}` : name;
    const names = [
      ...indexes.map(({ config }) => config.name ?? ''),
      ...primaryKeys.map((key) => key.getName()),
      ...(columns.some(({ primary }) => primary) ? [`${name}_pkey`] : []),
    ];
    return names.map((index) => ({ table, index }));
  });
}
