/** The statements that write, made from the kinds' declarations. */
import type { AnyKind, Column } from '../kinds/kind.js';
import {
  Arrays,
  addKey,
  CURRENT,
  column,
  type Group,
  jsonCells,
  keyNames,
  matching,
  NOW,
  names,
  once,
  onlyItem,
  type Statement,
} from './statement.js';
import type { Entry, Stamp } from './tier.js';

/**
 * One insert per kind, all in one statement, which does nothing after `latest`, by the server's clock. Rows of `part, slot,
 * generation, version, overwrote`, and the cells of what stands where that may be something else than what was written;
 * without a version where the entry was not to be written in this generation.
 *
 * @param aheadMs what to add to our clock for the server's
 */
export function insertion(groups: readonly Group<Entry>[], latest: number, aheadMs = 0): Statement {
  const isConditional = groups.some(({ items }) => items.some(({ item }) => item.onlyIn !== undefined));
  const only = onlyItem(groups);
  if (only && !isConditional && !mayStandOtherwise(only.kind)) return insertionOfOne(only, latest);
  const values: unknown[] = [latest];
  const asked = groups.map((group) => rowsOf(group, values, aheadMs));
  if (isConditional) asked.forEach((arrays, part) => addCondition(arrays, groups[part] as Group<Entry>));
  const name = `${isConditional ? 'rewrite' : 'write'} ${names(groups)}`;
  return { name, text: once(name, () => insertionText(groups, asked, isConditional)), values };
}

function addCondition(arrays: Arrays, { items }: Group<Entry>): void {
  arrays.add(
    'only_in',
    'bigint',
    column(items, (item) => item.onlyIn ?? null),
  );
}

function insertionText(groups: readonly Group<Entry>[], asked: readonly Arrays[], isConditional: boolean): string {
  const tables = groups.flatMap(({ kind }, part) => [
    ...rowsToWrite(part, asked[part] as Arrays, isConditional),
    `w${part} as (${upsert(kind, `a${part}`)})`,
    `r${part} as (${standing(kind, part)})`,
    `p${part} as (${repairs(`r${part}`)})`,
  ]);
  const answers = groups.map(
    (_, part) => `select ${part}::int, slot::int - 1, generation, version, overwrote, cells from r${part}`,
  );
  const overtaken = groups.map(
    (_, part) => `select ${part}::int, slot::int - 1, generation, null, false, null from c${part} where ${OVERTAKEN}`,
  );
  return `with ${tables.join(', ')} ${[...answers, ...(isConditional ? overtaken : [])].join(' union all ')}`;
}

const OVERTAKEN = 'only_in <> generation';

function rowsToWrite(part: number, asked: Arrays, isConditional: boolean): string[] {
  const rows = `select a.*, ${CURRENT('a.tenant_id')} as generation from ${asked.from('a')} where ${inTime(1)}`;
  if (!isConditional) return [`a${part} as materialized (${rows})`];
  return [
    `c${part} as materialized (${rows})`,
    `a${part} as materialized (select * from c${part} where (${OVERTAKEN}) is not true)`,
  ];
}

/** Whether the moment that is given, in seconds since the epoch by the server's clock, is yet to come. */
function inTime(parameter: number): string {
  return `statement_timestamp() < to_timestamp($${parameter}::float8)`;
}

/** What is written most, without the arrays: PostgreSQL sets up a small plan in half the time of a large one. */
function insertionOfOne({ kind, tenantId, id, parts, value, bytes }: Entry, latest: number): Statement {
  const name = `write one ${kind.name}`;
  const text = once(name, () => {
    const types = [...kind.table.key, ...kind.table.columns];
    const cells = types.map((type, i) => `${written(type, `$${i + 4}`)} as ${type.name}`);
    const row = `(select 1 as slot, $1::text as tenant_id, ${CURRENT('$1::text')} as generation, ${cells.join(', ')} where ${inTime(3)}) one`;
    return (
      `with w as (${upsert(kind, row)}), ` +
      `r as (select $1::text as tenant_id, $2::text as entry, generation, version, updated as overwrote from w), ` +
      `p as (${repairs('r')}) select 0, 0, generation, version, overwrote, null from r`
    );
  });
  return { name, text, values: [tenantId, id, latest, ...parts, ...kind.toRow(value, bytes)] };
}

/**
 * Writes entries that have their stamps already, made while PostgreSQL was away: none over a newer value, none into a
 * later generation. A generation that its writer could not know (0) is the present one, unless that began afterwards.
 */
export function restoration(group: Group<Entry & Stamp>): Statement {
  const values: unknown[] = [];
  const { kind, items } = group;
  const asked = rowsOf(group, values);
  asked.add(
    'written_in',
    'bigint',
    column(items, (item) => item.generation),
  );
  asked.add(
    'written_at',
    'bigint',
    column(items, (item) => item.version),
  );
  const since = `(select max(extract(epoch from changed_at) * 1000000)::bigint from cache_generations where tenant_id in (a.tenant_id, '*'))`;
  const current = `select a.*, ${CURRENT('a.tenant_id')} as generation, ${since} as since from ${asked.from('a')}`;
  const columns = columnsOf(kind);
  const name = `restore ${kind.name}`;
  const text = once(
    name,
    () =>
      `with c0 as materialized (${current}), ` +
      // Only after PostgreSQL was set back is it told of generations that it has not reached.
      `a0 as materialized (select * from c0 where written_in >= generation or (written_in = 0 and written_at > since)), ` +
      `w0 as (insert into ${kind.table.name} as t (tenant_id, generation, ${columns.join(', ')}, version) ` +
      `select tenant_id, generation, ${columns.join(', ')}, written_at from a0 order by slot ` +
      `on conflict (tenant_id, generation, ${primaryKey(kind).join(', ')}) do update set ${replaced(kind)}, version = excluded.version ` +
      `where t.version < excluded.version returning tenant_id, generation, version, ${keyNames(kind).join(', ')}), ` +
      `r0 as (select a.slot, a.tenant_id, a.entry, w.generation, w.version, true as overwrote from a0 a join w0 w on ${joined(kind)}), ` +
      // Redis may still have what is not restored, since something newer stands, or nothing may: that must go.
      `s0 as (select a.tenant_id, a.entry, coalesce(w.version, (select max(t.version) from ${kind.table.name} t ` +
      `where ${matching(kind, 'a.generation')}), a.written_at + 1) as version, true as overwrote ` +
      `from c0 a left join w0 w on ${joined(kind)}), ` +
      `p0 as (${repairs('s0')}) select 0, slot::int - 1, generation, version, overwrote, null from r0`,
  );
  return { name, text, values };
}

/** Whether what stands after a write may be something else than what was written. */
function mayStandOtherwise({ onConflict, versions }: AnyKind): boolean {
  return onConflict === 'keep' || versions !== undefined;
}

function rowsOf({ kind, items }: Group<Entry>, values: unknown[], aheadMs = 0): Arrays {
  const asked = new Arrays(values);
  asked.add(
    'tenant_id',
    'text',
    column(items, (item) => item.tenantId),
  );
  asked.add(
    'entry',
    'text',
    column(items, (item) => item.id),
  );
  addKey(asked, kind, items);
  if (kind.versions) {
    const at = kind.versions.at;
    asked.add(
      'came_to_be',
      'float8',
      column(items, (item) => at(item.value) + aheadMs),
    );
  }
  const rows = column(items, (item) => kind.toRow(item.value, item.bytes));
  kind.table.columns.forEach((target, i) => {
    const cells = rows.map((row) => row[i] ?? null);
    if (target.type === 'bytea') asked.addBytes(target.name, cells as (Buffer | null)[]);
    else asked.add(target.name, TRANSPORT[target.type] ?? target.type, cells, (raw) => written(target, raw));
  });
  return asked;
}

/** The types in which cells travel, where they are not the column's own. */
const TRANSPORT: Partial<Record<Column['type'], string>> = { timestamp: 'float8', json: 'text' };

/** A cell as the column wants it. */
function written({ type }: Column, raw: string): string {
  return type === 'timestamp' ? `to_timestamp(${raw}::float8 / 1000)` : `${raw}::${type}`;
}

function upsert(kind: AnyKind, rows: string): string {
  const { table, onConflict, versions } = kind;
  const columns = columnsOf(kind);
  // A clock of a worker that is ahead must not put a value out of the reach of later ones.
  const version = versions ? `least((came_to_be * 1000)::bigint, ${NOW})` : NOW;
  const conflict = `on conflict (tenant_id, generation, ${primaryKey(kind).join(', ')}) do update set`;
  // Updating a row to itself is what makes `returning` answer with the row that stays.
  const update =
    onConflict === 'keep'
      ? 'tenant_id = t.tenant_id'
      : versions
        ? latestOf(kind)
        : `${replaced(kind)}, version = greatest(t.version + 1, excluded.version)`;
  const told = mayStandOtherwise(kind) ? columns : keyNames(kind);
  return (
    `insert into ${table.name} as t (tenant_id, generation, ${columns.join(', ')}, version) ` +
    `select tenant_id, generation, ${columns.join(', ')}, ${version} from ${rows} order by slot ` +
    `${conflict} ${update} returning tenant_id, generation, version, xmax <> 0 as updated, ${told.join(', ')}`
  );
}

/** What stands of each entry, with its stamp. */
function standing(kind: AnyKind, part: number): string {
  const told = mayStandOtherwise(kind);
  const cells = told ? jsonCells(kind) : 'null::json';
  const row = 'select a.slot, a.tenant_id, a.entry, t.generation, t.version';
  if (!kind.versions) {
    // A value that is kept was never another one.
    const overwrote = kind.onConflict === 'keep' ? 'false' : 't.updated';
    return `${row}, ${overwrote} as overwrote, ${cells} as cells from a${part} a join w${part} t on ${joined(kind, 't')}`;
  }
  // The statement sees the table as it was before, so what it wrote itself has to be put beside that.
  const columns = ['generation', 'version', ...columnsOf(kind)].join(', ');
  const before = `select ${columns}, false as fresh from ${kind.table.name} t where ${matching(kind, 'a.generation')}`;
  const written = `select ${columns}, true as fresh from w${part} t where ${matching(kind, 'a.generation')}`;
  return (
    // Not by `exists`, for which a plan made while the table was small reads all of it.
    `${row}, t.overwrote, ${cells} as cells from a${part} a cross join lateral ` +
    `(select *, bool_or(not fresh) over () as overwrote from (${before} union all ${written}) versions order by version desc, ${kind.versions.column} desc, fresh desc limit 1) t`
  );
}

/** In the same transaction as the overwriting: Redis has not confirmed the new value yet. */
function repairs(standingRows: string): string {
  return (
    `insert into redis_repairs as r (tenant_id, entry, version) ` +
    `select distinct on (tenant_id, entry) tenant_id, entry, version from ${standingRows} where overwrote order by tenant_id, entry, version desc ` +
    `on conflict (tenant_id, entry) do update set version = greatest(r.version, excluded.version), written_at = clock_timestamp()`
  );
}

function columnsOf(kind: AnyKind): string[] {
  return [...keyNames(kind), ...kind.table.columns.map(({ name }) => name)];
}

function primaryKey(kind: AnyKind): readonly string[] {
  return kind.versions ? [...keyNames(kind), kind.versions.column] : keyNames(kind);
}

function replaced(kind: AnyKind): string {
  const key = primaryKey(kind);
  const columns = kind.table.columns.filter(({ name }) => !key.includes(name));
  return [...columns.map(({ name }) => `${name} = excluded.${name}`), 'updated_at = now()'].join(', ');
}

function joined(kind: AnyKind, alias = 'w'): string {
  return ['tenant_id', ...keyNames(kind)].map((name) => `a.${name} = ${alias}.${name}`).join(' and ');
}

/** The row as it stands, whichever is newer: a condition would leave it out of what `returning` answers with. */
function latestOf(kind: AnyKind): string {
  const key = primaryKey(kind);
  const columns = [...kind.table.columns.map(({ name }) => name).filter((name) => !key.includes(name)), 'version'];
  const newer = 't.version <= excluded.version';
  return [
    ...columns.map((name) => `${name} = case when ${newer} then excluded.${name} else t.${name} end`),
    `updated_at = case when ${newer} then now() else t.updated_at end`,
  ].join(', ');
}
