/**
 * The permanent tier and source of truth. Any batch of look-ups or entries, whatever its kinds and tenants, is one
 * statement and so one round trip and one transaction.
 */
import type { DatabaseError, Pool } from 'pg';
import { ServerClock } from '../server-clock.js';
import { type Known, selection } from './postgres-read.js';
import { insertion, restoration } from './postgres-write.js';
import { cellsOf, grouped, type Statement } from './statement.js';
import {
  ABSENT,
  type Entry,
  type Found,
  isOurs,
  type Lookup,
  type Overtaken,
  type Stamp,
  type Stored,
  type Tier,
  type Verdict,
} from './tier.js';
import { YoungTables } from './young-tables.js';

type Row = [part: number, slot: number, generation: string, version: string, ...rest: unknown[]];
type WrittenRow = [part: number, slot: number, generation: string, version: string | null, ...rest: unknown[]];

/** Two writers of the same rows in opposite orders: PostgreSQL ends one of them, which may simply try again. */
const DEADLOCK = '40P01';
const TRIES = 5;

/**
 * A write that its caller has given up on may still lie in the connection of a server that is frozen. Woken up, the
 * server must not carry it out any more: its caller may have written something else since, elsewhere.
 */
const LATEST_SECONDS = 3;
/**
 * A worker's clock that differs by less from the server's is taken at its word: the way of an answer is as long. One that
 * is slow by more would put what it fetches behind what others fetched before.
 */
const CLOCK_TOLERANCE_MS = 5_000;
const CLOCK = { name: 'clock', text: 'select extract(epoch from clock_timestamp())::float8' };

class LateStatementError extends Error {
  override readonly name = 'LateStatementError';
  constructor() {
    super('the statement reached the server too late, or the clock of the server was set');
  }
}

export class PostgresTier implements Tier {
  readonly name = 'postgres';

  readonly #clock = new ServerClock(async () => {
    const { rows } = await this.probes.query<[number]>({ ...CLOCK, rowMode: 'array' });
    return rows[0]?.[0] ?? 0;
  });

  readonly #young: YoungTables;

  constructor(
    private readonly pool: Pool,
    /** For pings alone, so that a busy pool is not taken for a dead server. */
    private readonly probes: Pool = pool,
  ) {
    this.#young = new YoungTables(probes);
  }

  /** Answers in the order of the look-ups, with what is reachable in their tenants' generations. */
  async read(lookups: readonly Lookup[], known: Known = () => null): Promise<Found[]> {
    const found: Found[] = lookups.map(() => ABSENT);
    const groups = grouped(lookups);
    for (const [part, slot, generation, version, ...rest] of await this.#ask(selection(groups, known))) {
      const group = groups[part];
      const place = group?.items[slot];
      if (!group || !place) continue;
      found[place.index] = opened(group.kind, stamp(generation, version), rest, groups.length > 1);
    }
    return found;
  }

  /**
   * Writes all or nothing. Resolves with the entries as they stand afterwards, in the order given: for a kind that keeps
   * its first value, that may be an older one; for a kind with versions, a later one; of a key that stands several
   * times, the last. What was read in a generation that is over by now is not written, and told as such.
   */
  async write(entries: readonly Entry[]): Promise<(Stored | Overtaken)[]> {
    const unique = withoutRepeats(entries);
    const groups = grouped(unique);
    const now = await this.#clock.now();
    const aheadMs = now * 1000 - Date.now();
    const statement = insertion(groups, now + LATEST_SECONDS, Math.abs(aheadMs) < CLOCK_TOLERANCE_MS ? 0 : aheadMs);
    const standing = new Map<string, Stored | Overtaken>();
    for (const [part, slot, generation, version, overwrote, cells] of await this.#query<WrittenRow>(statement)) {
      const item = groups[part]?.items[slot]?.item;
      if (!item) continue;
      if (version !== null)
        standing.set(item.id, storedAs(item, stamp(generation, version), overwrote as boolean, cells));
      else if (!standing.has(item.id)) standing.set(item.id, { ...item, overtakenBy: Number(generation) });
    }
    if (unique.some(({ id }) => !standing.has(id))) {
      this.#clock.forget();
      throw new LateStatementError();
    }
    for (const { kind, items } of groups) this.#young.wrote(kind.table.name, items.length);
    return entries.map(({ id }) => standing.get(id) as Stored | Overtaken);
  }

  /** Writes entries that have their stamps, see `restoration`. @returns those that were written. */
  async restore(entries: readonly (Entry & Stamp)[]): Promise<Stored[]> {
    const restored: Stored[] = [];
    for (const group of grouped(withoutRepeats(entries, ({ version }) => version))) {
      for (const [, slot, generation, version] of await this.#query(restoration(group))) {
        const item = group.items[slot]?.item;
        if (item) restored.push({ ...item, ...stamp(generation, version), overwrote: true });
      }
    }
    return restored;
  }

  async ping(): Promise<void> {
    await this.#clock.read();
  }

  /**
   * Without a SQLSTATE, the connection failed. Class 08 is the connection, 57P a server that stops or starts, 53300 one
   * that is full, 28 and 3D one that does not let us in. It is there but cannot do this now: 25006 read-only,
   * 25P03 a transaction that we left alone for too long, 42P01, 42703 and 42883 (no such table, column, function) not
   * migrated yet, 53 no disk or memory left, 55P03 and 57014 a lock that was waited for too long, 40 a conflict with others
   * that trying again did not end.
   */
  judge(error: unknown): Verdict {
    const { code } = error as Partial<DatabaseError>;
    if (error instanceof LateStatementError) return 'unserved';
    if (typeof code !== 'string' || !/^[0-9A-Z]{5}$/.test(code)) return isOurs(error) ? 'wrong' : 'away';
    if (/^(08|57P|53300|28|3D)/.test(code)) return 'away';
    return /^(25006|25P03|42P01|42703|42883|53|55P03|57014|40)/.test(code) ? 'unserved' : 'wrong';
  }

  async close(): Promise<void> {
    await this.pool.end();
    if (this.probes !== this.pool) await this.probes.end();
  }

  /** Where its connection was lost, once more on another: a server may end one of many. */
  #ask(question: Statement): Promise<Row[]> {
    return this.#query(question).catch((error: unknown) => {
      if (this.judge(error) !== 'away') throw error;
      return this.#query(question);
    });
  }

  async #query<Answer extends unknown[] = Row>(statement: Statement): Promise<Answer[]> {
    for (let tries = 1; ; tries++) {
      try {
        const { rows } = await this.pool.query<Answer>({ ...statement, rowMode: 'array' });
        return rows;
      } catch (error) {
        if ((error as Partial<DatabaseError>).code !== DEADLOCK || tries === TRIES) throw error;
      }
    }
  }
}

/**
 * One entry of each row, since a statement may touch a row once: the last, unless its kind has versions, or `order` says
 * otherwise: then the greatest. One that may be overtaken gives way to one that may not. In the order of the keys, since
 * writers that lock rows in different orders end in a deadlock.
 */
function withoutRepeats<T extends Entry>(entries: readonly T[], order?: (one: T) => number): readonly T[] {
  if (entries.length === 1) return entries;
  const rows = new Map<string, T>();
  for (const one of entries) {
    const { versions } = one.kind;
    const row = versions ? `${one.id}:${versions.of(one.value)}` : one.id;
    const rank = order ?? ((entry: T) => versions?.at(entry.value) ?? 0);
    const other = rows.get(row);
    const isWeaker = other && (firmness(one) - firmness(other) || rank(one) - rank(other)) < 0;
    if (!isWeaker) rows.set(row, one);
  }
  return [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, one]) => one);
}

function firmness({ onlyIn }: Entry): number {
  return onlyIn === undefined ? 1 : 0;
}

function storedAs(item: Entry, at: Stamp, overwrote: boolean, cells: unknown): Stored {
  return { ...(cells === null ? item : revalued(item, cells)), ...at, overwrote };
}

function stamp(generation: string, version: string): Stamp {
  return { generation: Number(generation), version: Number(version) };
}

function opened(kind: Lookup['kind'], at: Stamp, row: readonly unknown[], several: boolean): Found {
  try {
    const cells = cellsOf(kind, row, several);
    return { state: 'value', value: kind.fromRow(cells), ...at, bytes: kind.encodedIn?.(cells) };
  } catch (error) {
    return { state: 'corrupt', error, version: at.version };
  }
}

function revalued(item: Entry, cells: unknown): Entry {
  const value = item.kind.fromRow(cellsOf(item.kind, [cells], true));
  return { ...item, value, bytes: item.kind.encode(value) };
}
