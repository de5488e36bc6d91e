/**
 * What the permanent tier's statements are made of. For one combination of kinds the text is always the same, however many
 * rows a batch has: columns go as arrays, and all bytes in one piece, cut up by the server. So every statement is named,
 * and planned once per connection.
 */
import { sha256 } from '../kinds/identity.js';
import type { AnyKind, Cell, Column } from '../kinds/kind.js';
import type { Lookup } from './tier.js';

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
export const CURRENT = (tenant: string) =>
  `(select max(generation) from cache_generations where tenant_id in (${tenant}, '*'))`;
/** Microseconds since the epoch, when the server began with the statement: what it was late with is no newer for that. */
export const NOW = '(extract(epoch from statement_timestamp()) * 1000000)::bigint';

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

const texts = new Map<string, string>();

/** The text of the statement of this name: it is the same whatever the values are. */
export function once(name: string, build: () => string): string {
  let text = texts.get(name);
  if (text === undefined) {
    text = build();
    texts.set(name, text);
  }
  return text;
}

export function onlyItem<T>(groups: readonly Group<T>[]): T | undefined {
  const [first] = groups;
  return groups.length === 1 && first?.items.length === 1 ? first.items[0]?.item : undefined;
}

/** One thing of each item, as a column of them. */
export function column<T, Cell>(items: Group<T>['items'], cell: (item: T) => Cell): Cell[] {
  return items.map(({ item }) => cell(item));
}

/** The cells of a kind out of a row: of several kinds, they come as one JSON array. */
export function cellsOf({ table }: AnyKind, row: readonly unknown[], several: boolean): Cell[] {
  if (!several) return row as Cell[];
  return (row[0] as Cell[]).map((cell, i) =>
    table.columns[i]?.type === 'bytea' && typeof cell === 'string' ? Buffer.from(cell, 'base64') : cell,
  );
}

/** Columns as parameters, an array each; a row of theirs has a `slot`, counted from 1. */
export class Arrays {
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

export function addKey(asked: Arrays, kind: AnyKind, items: Group<Lookup>['items']): void {
  kind.table.key.forEach(({ name, type }, i) => {
    asked.add(
      name,
      type,
      column(items, (item) => item.parts[i]),
    );
  });
}

export function keyNames({ table }: AnyKind): string[] {
  return table.key.map(({ name }) => name);
}

/** Rows of the kind's table, or what was written to it, that are what `a` asks for. */
export function matching(kind: AnyKind, generation: string): string {
  const keys = keyNames(kind).map((name) => `t.${name} = a.${name}`);
  return ['t.tenant_id = a.tenant_id', `t.generation = ${generation}`, ...keys].join(' and ');
}

/** PostgreSQL cuts names of statements off at 63 bytes. */
export function names(groups: readonly Group<Lookup>[]): string {
  const all = groups.map(({ kind }) => kind.name).join('+');
  return all.length <= 50 ? all : sha256(all).slice(0, 50);
}

function readable({ name, type }: Column): string {
  // A double counts milliseconds exactly and, unlike a bigint, reaches us as a number.
  if (type === 'timestamp') return `round(extract(epoch from t.${name}) * 1000)::float8`;
  return type === 'json' ? `t.${name}::text` : `t.${name}`;
}

export function plainCells({ table }: AnyKind): string {
  return table.columns.map(readable).join(', ');
}

export function jsonCells({ table }: AnyKind): string {
  return `json_build_array(${table.columns.map(jsonReadable).join(', ')})`;
}

/** JSON has no bytes; base64 costs a third more, where PostgreSQL's own hex would double them. */
function jsonReadable(column: Column): string {
  return column.type === 'bytea' ? `encode(${readable(column)}, 'base64')` : readable(column);
}
