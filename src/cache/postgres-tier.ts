/**
 * The permanent tier and source of truth. Works from the tables that the kinds declare: any batch of look-ups or
 * entries, whatever its kinds, is one statement and so one round trip and one transaction.
 */
import type { DatabaseError, Pool } from 'pg';
import type { AnyKind, Cell, Column } from '../kinds/kind.js';
import { ABSENT, attempt, type Entry, type Found, isOurs, type Lookup, type Tier, type Verdict } from './tier.js';

interface Group<T> {
  readonly kind: AnyKind;
  readonly items: { readonly index: number; readonly item: T }[];
}

interface Statement {
  readonly text: string;
  readonly values: unknown[];
  /** Set where the text is one of few, so that PostgreSQL keeps its plan. */
  readonly name?: string;
}

export class PostgresTier implements Tier {
  readonly name = 'postgres';

  constructor(
    private readonly pool: Pool,
    /** For pings alone, so that a busy pool is not taken for a dead server. */
    private readonly probes: Pool = pool,
  ) {}

  async read(tenantId: string, lookups: readonly Lookup[]): Promise<Found[]> {
    const found: Found[] = lookups.map(() => ABSENT);
    const groups = grouped(lookups);
    const { rows } = await this.pool.query<unknown[]>({ ...selection(tenantId, groups), rowMode: 'array' });
    for (const [slot, ...rest] of rows as [number, ...unknown[]][]) {
      const kind = lookups[slot]?.kind;
      if (!kind) continue;
      const cells = groups.length > 1 ? fromJson(kind, rest[0] as Cell[]) : (rest as Cell[]);
      found[slot] = attempt(() => kind.fromRow(cells));
    }
    return found;
  }

  async write(tenantId: string, entries: readonly Entry[]): Promise<Entry[]> {
    const groups = grouped(withoutRepeats(entries));
    const { rows } = await this.pool.query<[number, Cell[]]>({ ...insertion(tenantId, groups), rowMode: 'array' });
    const standing = groups.flatMap((group) => group.items.map(({ item }) => item));
    const told = groups.filter(({ kind }) => mayStandOtherwise(kind)).flatMap(({ items }) => items);
    for (const [position, cells] of rows) {
      const old = told[position]?.item;
      if (old) standing[standing.indexOf(old)] = { ...old, value: old.kind.fromRow(fromJson(old.kind, cells)) };
    }
    return standing;
  }

  async ping(): Promise<void> {
    await this.probes.query('select 1');
  }

  /**
   * Without a SQLSTATE, the connection failed. Class 08 is the connection, 57P a server that stops or starts, 53300 one
   * that is full, 28 and 3D one that does not let us in. It is there but cannot do this now: 25006 read-only, 42P01 not
   * migrated yet, 53 no disk or memory left, 55P03 and 57014 a lock that was waited for too long.
   */
  judge(error: unknown): Verdict {
    const { code } = error as Partial<DatabaseError>;
    if (typeof code !== 'string' || !/^[0-9A-Z]{5}$/.test(code)) return isOurs(error) ? 'wrong' : 'away';
    if (/^(08|57P|53300|28|3D)/.test(code)) return 'away';
    return /^(25006|42P01|53|55P03|57014)/.test(code) ? 'unserved' : 'wrong';
  }

  async close(): Promise<void> {
    await this.pool.end();
    if (this.probes !== this.pool) await this.probes.end();
  }
}

function grouped<T extends Lookup>(items: readonly T[]): Group<T>[] {
  const groups = new Map<AnyKind, Group<T>>();
  items.forEach((item, index) => {
    const group = groups.get(item.kind) ?? { kind: item.kind, items: [] };
    group.items.push({ index, item });
    groups.set(item.kind, group);
  });
  return [...groups.values()];
}

/**
 * The last entry of each key, since a statement may touch a row once; in the order of the keys, since writers that lock
 * rows in different orders end in a deadlock.
 */
function withoutRepeats(entries: readonly Entry[]): Entry[] {
  const last = new Map(entries.map((one) => [JSON.stringify([one.kind.name, ...one.kind.key(one.key)]), one]));
  return [...last.keys()].sort().map((key) => last.get(key) as Entry);
}

/** Rows of `slot, cells…` for one kind; for several, `slot, [cells…]` as JSON, since their columns differ. */
function selection(tenantId: string, groups: readonly Group<Lookup>[]): Statement {
  const values: unknown[] = [tenantId];
  const parts = groups.map(({ kind, items }) => {
    const { columns } = kind.table;
    const cells =
      groups.length > 1
        ? `json_build_array(${columns.map(jsonReadable).join(', ')})`
        : columns.map(readable).join(', ');
    const keys = items.map(({ index, item }) => {
      const parameters = kind.key(item.key).map((part) => `$${values.push(part)}`);
      return `(${index}::int, ${parameters.map((parameter) => `${parameter}::text`).join(', ')})`;
    });
    return selectNewest(kind, cells, keys);
  });
  const only = groups.length === 1 && groups[0]?.items.length === 1 ? groups[0].kind : undefined;
  const text = parts.join(' union all ');
  return only ? { name: `read_${only.name}`, text, values } : { text, values };
}

function selectNewest({ table }: AnyKind, cells: string, keys: readonly string[]): string {
  const names = table.key.map((_, i) => `k${i}`);
  const match = table.key.map((column, i) => `t.${column} = asked.k${i}`).join(' and ');
  const newest = table.versions ? ` order by t.${table.versions.newestBy} desc limit 1` : '';
  return (
    `select asked.slot, found.* from (values ${keys.join(', ')}) as asked(slot, ${names.join(', ')}) ` +
    `cross join lateral (select ${cells} from ${table.name} t where t.tenant_id = $1 and ${match}${newest}) found`
  );
}

/** Whether what stands after a write may be something else than what was written. */
function mayStandOtherwise({ onConflict, table }: AnyKind): boolean {
  return onConflict === 'keep' || table.versions !== undefined;
}

/** One insert per kind, all in one statement; rows of `position, [cells…]` for the kinds that may stand otherwise. */
function insertion(tenantId: string, groups: readonly Group<Entry>[]): Statement {
  const values: unknown[] = [tenantId];
  const inserts = groups.map(({ kind, items }, i) => {
    const rows = items.map(({ item }) => insertRow(kind, item, values));
    return `w${i} as (${upsert(kind, rows)})`;
  });
  const told = groups.flatMap(({ kind, items }, i) =>
    mayStandOtherwise(kind) ? [{ kind, items, name: `w${i}` }] : [],
  );
  let offset = 0;
  const answers = told.map(({ kind, items, name }) => {
    const keys = items.map(({ item }, i) => {
      const parameters = kind.key(item.key).map((part) => `$${values.push(part)}::text`);
      return `(${offset + i}::int, ${parameters.join(', ')})`;
    });
    offset += items.length;
    return selectStanding(kind, name, keys);
  });
  const text = `with ${inserts.join(', ')} ${answers.join(' union all ') || 'select 1 where false'}`;
  const only = groups.length === 1 && groups[0]?.items.length === 1 ? groups[0].kind : undefined;
  return only ? { name: `write_${only.name}`, text, values } : { text, values };
}

function insertRow(kind: AnyKind, item: Entry, values: unknown[]): string {
  const key = kind.key(item.key).map((part) => `$${values.push(part)}::text`);
  const cells = kind.toRow(item.value);
  const row = kind.table.columns.map((column, i) => writable(column, `$${values.push(cells[i] ?? null)}`));
  return `($1::text, ${[...key, ...row].join(', ')})`;
}

function upsert(kind: AnyKind, rows: readonly string[]): string {
  const { table, onConflict } = kind;
  const names = table.columns.map(({ name }) => name);
  const primaryKey = table.versions?.primaryKey ?? table.key;
  // Updating a row to itself is what makes `returning` answer with the row that stays.
  const update =
    onConflict === 'keep'
      ? `tenant_id = ${table.name}.tenant_id`
      : [
          ...names.filter((name) => !primaryKey.includes(name)).map((name) => `${name} = excluded.${name}`),
          'updated_at = now()',
        ].join(', ');
  const newest = table.versions?.newestBy;
  const unlessOlder = newest ? ` where ${table.name}.${newest} <= excluded.${newest}` : '';
  const returning = mayStandOtherwise(kind) ? ` returning ${[...table.key, ...names].join(', ')}` : '';
  return (
    `insert into ${table.name} (tenant_id, ${[...table.key, ...names].join(', ')}) values ${rows.join(', ')} ` +
    `on conflict (tenant_id, ${primaryKey.join(', ')}) do update set ${update}${unlessOlder}${returning}`
  );
}

function selectStanding({ table }: AnyKind, written: string, keys: readonly string[]): string {
  const names = table.key.map((_, i) => `k${i}`);
  const match = table.key.map((column, i) => `${column} = asked.k${i}`).join(' and ');
  const columns = [...table.key, ...table.columns.map(({ name }) => name)].join(', ');
  const rows = `select ${columns}, true as fresh from ${written} where ${match}`;
  // The statement sees the table as it was before, so what it wrote itself has to be put beside that.
  const newest = table.versions
    ? `select * from (${rows} union all select ${columns}, false from ${table.name} where tenant_id = $1 and ${match}) ` +
      `as versions order by ${table.versions.newestBy} desc, fresh desc limit 1`
    : rows;
  return (
    `select asked.slot, json_build_array(${table.columns.map(jsonReadable).join(', ')}) ` +
    `from (values ${keys.join(', ')}) as asked(slot, ${names.join(', ')}) cross join lateral (${newest}) as t`
  );
}

function readable({ name, type }: Column): string {
  // A double counts milliseconds exactly and, unlike a bigint, reaches us as a number.
  return type === 'timestamp' ? `round(extract(epoch from t.${name}) * 1000)::float8` : `t.${name}`;
}

/** JSON has no bytes; base64 costs a third more, where PostgreSQL's own hex would double them. */
function jsonReadable(column: Column): string {
  return column.type === 'bytea' ? `encode(${readable(column)}, 'base64')` : readable(column);
}

function fromJson({ table }: AnyKind, cells: readonly Cell[]): Cell[] {
  return cells.map((cell, i) =>
    table.columns[i]?.type === 'bytea' && typeof cell === 'string' ? Buffer.from(cell, 'base64') : cell,
  );
}

function writable({ type }: Column, parameter: string): string {
  return type === 'timestamp' ? `to_timestamp(${parameter}::float8 / 1000)` : `${parameter}::${type}`;
}
