/**
 * Tables that fill up in the minute before autovacuum has seen them. PostgreSQL plans for what it last heard of a table:
 * of one that was empty, it thinks reading it whole the best plan, and goes on to while the table grows. So the first
 * process that has written some rows has the table analysed.
 */
import type { Pool } from 'pg';

/** Rows of a table that this process writes before it looks: by then an index is the better plan. */
const ENOUGH = 500;
/** Fewer rows than this is what PostgreSQL knows of a table that it has not looked at. */
const YOUNG = 100;

export class YoungTables {
  readonly #written = new Map<string, number>();

  constructor(private readonly pool: Pool) {}

  /** In the background; where the table is not ours to analyse, autovacuum does it later. */
  wrote(table: string, rows: number): void {
    const before = this.#written.get(table) ?? 0;
    if (before >= ENOUGH) return;
    this.#written.set(table, before + rows);
    if (before + rows >= ENOUGH) this.#analyse(table).catch(() => undefined);
  }

  async #analyse(table: string): Promise<void> {
    const text = 'select from pg_class where oid = to_regclass($1) and reltuples < $2';
    const { rows } = await this.pool.query(text, [table, YOUNG]);
    if (rows.length > 0) await this.pool.query(`analyze ${table}`);
  }
}
