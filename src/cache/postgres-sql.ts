/**
 * The SQL of the permanent tier, made from the kinds' declarations. For one combination of kinds the text is always the
 * same, however many rows a batch has: columns go as arrays, and all bytes in one piece, cut up by the server. So every
 * statement is named, and planned once per connection.
 */

import { sha256 } from '../kinds/identity.js';
import type { AnyKind, Cell, Column } from '../kinds/kind.js';
import type { Entry, Lookup, Stamp } from './tier.js';

export interface Group<T> {
  readonly kind: AnyKind;
  /** With their places in the batch. */
  readonly items: readonly { readonly index: number; readonly item: T }[];
}

export interface Statement {
  readonly name: string;
  readonly text: string;
  readonly values: unknown[];
}

/** The generation that counts for a tenant. */
const CURRENT = (tenant: string) =>
  `(select max(generation) from cache_generations where tenant_id in (${tenant}, '*'))`;
/** Microseconds since the epoch. */
const NOW = '(extract(epoch from clock_timestamp()) * 1000000)::bigint';

/** The items by kind, in the order of the kinds' names: statements that lock rows do so in one order. */
export function grouped<T extends Lookup>(items: readonly T[]): Group<T>[] {
  const groups = new Map<AnyKind, { index: number; item: T }[]>();
  items.forEach((item, index) => {
    const group = groups.get(item.kind);
    if (group) group.push({ index, item });
    else groups.set(item.kind, [{ index, item }]);
  });
  const all = [...groups].map(([kind, entries]) => ({ kind, items: entries }));
  return all.length > 1 ? all.sort((a, b) => (a.kind.name < b.kind.name ? -1 : 1)) : all;
}

/** Rows of `part, slot, generation, version`, then the cells: of several kinds, in one JSON array. */
export function selection(groups: readonly Group<Lookup>[]): Statement {
  const [group] = groups;
  const only = groups.length === 1 && group?.items.length === 1 ? group.items[0]?.item : undefined;
  if (only) return selectionOfOne(only);
  const values: unknown[] = [];
  const parts = groups.map(({ kind, items }, part) => {
    const asked = new Arrays(values);
    asked.add(
      'tenant_id',
      'text',
      items.map(({ item }) => item.tenantId),
    );
    addKey(asked, kind, items);
    const cells = groups.length > 1 ? jsonCells(kind) : kind.table.columns.map(readable).join(', ');
    const found = `select t.generation, t.version, ${cells} from ${kind.table.name} t where ${matching(kind, CURRENT('a.tenant_id'))}${latest(kind)}`;
    return `select ${part}::int, a.slot::int - 1, found.* from ${asked.from('a')} cross join lateral (${found}) found`;
  });
  return { name: `read ${names(groups)}`, text: parts.join(' union all '), values };
}

function selectionOfOne({ kind, tenantId, parts }: Lookup): Statement {
  const where = ['t.tenant_id = $1', `t.generation = ${CURRENT('$1')}`];
  kind.table.key.forEach((column, i) => {
    where.push(`t.${column.name} = $${i + 2}::${column.type}`);
  });
  const cells = kind.table.columns.map(readable).join(', ');
  const text = `select 0, 0, t.generation, t.version, ${cells} from ${kind.table.name} t where ${where.join(' and ')}${latest(kind)}`;
  return { name: `read one ${kind.name}`, text, values: [tenantId, ...parts] };
}

/**
 * One insert per kind, all in one statement. Rows of `part, slot, generation, version, overwrote`, and the cells of what
 * stands where that may be something else than what was written.
 */
export function insertion(groups: readonly Group<Entry>[]): Statement {
  const values: unknown[] = [];
  const tables: string[] = [];
  const answers = groups.map((group, part) => {
    const asked = rowsOf(group, values);
    tables.push(
      `a${part} as materialized (select a.*, ${CURRENT('a.tenant_id')} as generation from ${asked.from('a')})`,
    );
    tables.push(`w${part} as (${upsert(group.kind, `a${part}`)})`, `r${part} as (${standing(group.kind, part)})`);
    tables.push(`p${part} as (${repairs(`r${part}`)})`);
    return `select ${part}::int, slot::int - 1, generation, version, overwrote, cells from r${part}`;
  });
  return { name: `write ${names(groups)}`, text: `with ${tables.join(', ')} ${answers.join(' union all ')}`, values };
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
    items.map(({ item }) => item.generation),
  );
  asked.add(
    'written_at',
    'bigint',
    items.map(({ item }) => item.version),
  );
  const since = `(select max(extract(epoch from changed_at) * 1000000)::bigint from cache_generations where tenant_id in (a.tenant_id, '*'))`;
  const current = `select a.*, ${CURRENT('a.tenant_id')} as generation, ${since} as since from ${asked.from('a')}`;
  const columns = columnsOf(kind);
  const text =
    `with a0 as materialized (select * from (${current}) as a where written_in = generation or (written_in = 0 and written_at > since)), ` +
    `w0 as (insert into ${kind.table.name} as t (tenant_id, generation, ${columns.join(', ')}, version) ` +
    `select tenant_id, generation, ${columns.join(', ')}, written_at from a0 order by slot ` +
    `on conflict (tenant_id, generation, ${primaryKey(kind).join(', ')}) do update set ${replaced(kind)}, version = excluded.version ` +
    `where t.version < excluded.version returning tenant_id, generation, version, ${keyNames(kind).join(', ')}), ` +
    `r0 as (select a.slot, a.tenant_id, a.entry, w.generation, w.version, true as overwrote from a0 a join w0 w on ${joined(kind)}), ` +
    `p0 as (${repairs('r0')}) select 0, slot::int - 1, generation, version, overwrote, null from r0`;
  return { name: `restore ${kind.name}`, text, values };
}

/** The cells of a kind out of a row that begins with `from` other columns. */
export function cellsOf({ table }: AnyKind, row: readonly unknown[], several: boolean): Cell[] {
  if (!several) return row as Cell[];
  return (row[0] as Cell[]).map((cell, i) =>
    table.columns[i]?.type === 'bytea' && typeof cell === 'string' ? Buffer.from(cell, 'base64') : cell,
  );
}

/** Whether what stands after a write may be something else than what was written. */
function mayStandOtherwise({ onConflict, versions }: AnyKind): boolean {
  return onConflict === 'keep' || versions !== undefined;
}

/** Columns as parameters, an array each; a row of theirs has a `slot`, counted from 1. */
class Arrays {
  readonly #columns: { name: string; expression: string }[] = [];
  readonly #arrays: string[] = [];
  readonly #names: string[] = [];

  constructor(private readonly values: unknown[]) {}

  add(name: string, type: string, cells: readonly unknown[], expression = (raw: string) => raw): void {
    this.#arrays.push(`$${this.values.push(cells)}::${type}[]`);
    this.#names.push(name);
    this.#columns.push({ name, expression: expression(`u.${name}`) });
  }

  /** All bytes in one parameter, which goes as it is; what an array would have to spell out as text. */
  addBytes(name: string, cells: readonly (Buffer | null)[]): void {
    const lengths = cells.map((cell) => cell?.length ?? null);
    let end = 1;
    const starts = lengths.map((length) => {
      const start = end;
      end += length ?? 0;
      return start;
    });
    const all = cells.length === 1 ? cells[0] : Buffer.concat(cells.filter((cell) => cell !== null));
    const blob = `$${this.values.push(all)}::bytea`;
    this.#arrays.push(`$${this.values.push(starts)}::int[]`, `$${this.values.push(lengths)}::int[]`);
    this.#names.push(`${name}_start`, `${name}_length`);
    this.#columns.push({ name, expression: `substring(${blob} from u.${name}_start for u.${name}_length)` });
  }

  from(alias: string): string {
    const columns = this.#columns.map(({ name, expression }) => `${expression} as ${name}`);
    return (
      `(select u.slot, ${columns.join(', ')} from unnest(${this.#arrays.join(', ')}) ` +
      `with ordinality as u(${this.#names.join(', ')}, slot)) as ${alias}`
    );
  }
}

function rowsOf({ kind, items }: Group<Entry>, values: unknown[]): Arrays {
  const asked = new Arrays(values);
  asked.add(
    'tenant_id',
    'text',
    items.map(({ item }) => item.tenantId),
  );
  asked.add(
    'entry',
    'text',
    items.map(({ item }) => item.id),
  );
  addKey(asked, kind, items);
  if (kind.versions) {
    const at = kind.versions.at;
    asked.add(
      'came_to_be',
      'float8',
      items.map(({ item }) => at(item.value)),
    );
  }
  const rows = items.map(({ item }) => kind.toRow(item.value, item.bytes));
  kind.table.columns.forEach((column, i) => {
    const cells = rows.map((row) => row[i] ?? null);
    if (column.type === 'bytea') asked.addBytes(column.name, cells as (Buffer | null)[]);
    else if (column.type === 'timestamp') asked.add(column.name, 'float8', cells, (ms) => `to_timestamp(${ms} / 1000)`);
    else
      asked.add(column.name, column.type === 'json' ? 'text' : column.type, cells, (raw) => `${raw}::${column.type}`);
  });
  return asked;
}

function addKey(asked: Arrays, kind: AnyKind, items: Group<Lookup>['items']): void {
  kind.table.key.forEach(({ name, type }, i) => {
    asked.add(
      name,
      type,
      items.map(({ item }) => item.parts[i]),
    );
  });
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
        ? `${replaced(kind)}, version = excluded.version where t.version <= excluded.version`
        : `${replaced(kind)}, version = greatest(t.version + 1, ${NOW})`;
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
  const cells = told ? `json_build_array(${kind.table.columns.map(jsonReadable).join(', ')})` : 'null::json';
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
    `${row}, exists (${before}) as overwrote, ${cells} as cells from a${part} a cross join lateral ` +
    `(select * from (${before} union all ${written}) versions order by version desc, fresh desc limit 1) t`
  );
}

/** In the same transaction as the overwriting: Redis has not confirmed the new value yet. */
function repairs(standingRows: string): string {
  return (
    `insert into redis_repairs as r (tenant_id, entry, version) ` +
    `select tenant_id, entry, version from ${standingRows} where overwrote order by entry ` +
    `on conflict (tenant_id, entry) do update set version = greatest(r.version, excluded.version), written_at = clock_timestamp()`
  );
}

function columnsOf(kind: AnyKind): string[] {
  return [...keyNames(kind), ...kind.table.columns.map(({ name }) => name)];
}

function keyNames({ table }: AnyKind): string[] {
  return table.key.map(({ name }) => name);
}

function primaryKey(kind: AnyKind): readonly string[] {
  return kind.versions?.key ?? keyNames(kind);
}

function replaced(kind: AnyKind): string {
  const key = primaryKey(kind);
  const columns = kind.table.columns.filter(({ name }) => !key.includes(name));
  return [...columns.map(({ name }) => `${name} = excluded.${name}`), 'updated_at = now()'].join(', ');
}

/** Rows of the kind's table, or what was written to it, that are what `a` asks for. */
function matching(kind: AnyKind, generation: string): string {
  const keys = keyNames(kind).map((name) => `t.${name} = a.${name}`);
  return ['t.tenant_id = a.tenant_id', `t.generation = ${generation}`, ...keys].join(' and ');
}

function joined(kind: AnyKind, alias = 'w'): string {
  return ['tenant_id', ...keyNames(kind)].map((name) => `a.${name} = ${alias}.${name}`).join(' and ');
}

function latest({ versions }: AnyKind): string {
  return versions ? ' order by t.version desc limit 1' : '';
}

/** PostgreSQL cuts names of statements off at 63 bytes. */
function names(groups: readonly Group<Lookup>[]): string {
  const all = groups.map(({ kind }) => kind.name).join('+');
  return all.length <= 50 ? all : sha256(all).slice(0, 50);
}

function readable({ name, type }: Column): string {
  // A double counts milliseconds exactly and, unlike a bigint, reaches us as a number.
  if (type === 'timestamp') return `round(extract(epoch from t.${name}) * 1000)::float8`;
  return type === 'json' ? `t.${name}::text` : `t.${name}`;
}

function jsonCells({ table }: AnyKind): string {
  return `json_build_array(${table.columns.map(jsonReadable).join(', ')})`;
}

/** JSON has no bytes; base64 costs a third more, where PostgreSQL's own hex would double them. */
function jsonReadable(column: Column): string {
  return column.type === 'bytea' ? `encode(${readable(column)}, 'base64')` : readable(column);
}
