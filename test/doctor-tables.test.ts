/** What `hybrid-cache doctor` says of the tables: their indexes, and, of those with many rows, how they are kept [M45]. */
import { expect, test } from 'vitest';
import { findingsOf } from '../src/doctor/check.js';
import { postgresCheck } from '../src/doctor/postgres.js';
import { expectedIndexes, tableStateFindings } from '../src/doctor/tables.js';
import { onDatabase } from './support/on-database.js';
import { until } from './support/until.js';
import { createWorld, type World } from './support/world.js';

async function databaseFindings(own: World): Promise<string[]> {
  const findings = await findingsOf(postgresCheck(own.config()));
  return findings.flatMap(({ check, verdict, says }) => (check === 'database' ? `${verdict}: ${says}` : []));
}

test('every index of the schema is looked for, and those that are missing or invalid are named', async () => {
  await using own = await createWorld();
  expect(expectedIndexes().length).toBeGreaterThan(20);
  await onDatabase(
    own.databaseUrl,
    'drop index crawl_cache_content_idx',
    'drop index queue_state.host_waiting_line_idx',
    "update pg_index set indisvalid = false where indexrelid = 'redis_repairs_written_at_idx'::regclass",
  );
  expect(await databaseFindings(own)).toContainEqual(
    expect.stringMatching(
      /^problem: crawl_cache_content_idx \(missing\), host_waiting_line_idx \(missing\), redis_repairs_written_at_idx \(invalid\): /,
    ),
  );
});

const many = (column: string) => `select ${column} from generate_series(1, 20000) as n`;

test('dead rows, missing analyses and unused indexes are told, and gone once they are seen to', async () => {
  await using own = await createWorld();
  await onDatabase(
    own.databaseUrl,
    'alter table cache_generations set (autovacuum_enabled = false)',
    'create index not_ours on cache_generations (generation)',
    `insert into cache_generations (tenant_id, generation) ${many("'t' || n, 1")}`,
    "delete from cache_generations where tenant_id like 't1%'",
  );
  const dead = /warning: cache_generations has 5\d % dead rows, last vacuumed never: run vacuum/;
  await until('the counts to be told', async () => (await databaseFindings(own)).some((line) => dead.test(line)));
  expect(await databaseFindings(own)).toContainEqual(
    expect.stringMatching(/^warning: cache_generations was never analysed, .*: run vacuum \(analyze\)/),
  );
  await onDatabase(own.databaseUrl, 'vacuum (analyze) cache_generations');
  await onDatabase(
    own.databaseUrl,
    `insert into cache_generations (tenant_id, generation) ${many("'u' || n, 1")}`,
    'analyze',
  );
  const seen = await until('the counts to be told', async () => {
    const lines = await databaseFindings(own);
    return lines.some((line) => dead.test(line)) ? null : lines;
  });
  expect(seen).toContainEqual(expect.stringMatching(/^ok: no table is full of dead rows, and large ones were/));
  expect(seen).toContainEqual(expect.stringMatching(/^warning: .*\bnot_ours\b.* not ours: drop it$/));
  await onDatabase(own.databaseUrl, 'drop index not_ours');
  expect((await databaseFindings(own)).filter((line) => !line.startsWith('ok'))).toEqual([]);
});

test('few rows are left alone', () => {
  const state = { name: 'crawl_cache', vacuumed: null, analysed: null };
  expect(tableStateFindings([{ ...state, rows: 100, dead: 9_000 }])).toEqual([
    { check: 'database', verdict: 'ok', says: 'no table is full of dead rows, and none is large yet' },
  ]);
});
