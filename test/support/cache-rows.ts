/** Rows of every kind, put into PostgreSQL behind the cache's back, and looks at what became of them. */
import { Client } from 'pg';
import { KINDS } from '../../src/kinds/index.js';
import type { KindName } from '../../src/metrics.js';
import { createWorld, type World } from './world.js';

export const TABLES = KINDS.map(({ table }) => table.name);

export type Columns = Record<string, unknown>;

/** What a row of each kind cannot do without. */
const COLUMNS: Record<KindName, Columns> = {
  face_embedding: { content_hash: 'c', model: 'm@1', faces: 0, payload: '' },
  face_detection: { content_hash: 'c', model: 'm@1', faces: 0, payload: '' },
  perceptual_hash: { content_hash: 'c', phash: 'f0f0f0f0f0f0f0f0' },
  search_results: { content_hash: 'c', top_k: 10, results: '[]' },
  crawl_url: { url_hash: 'u', content_hash: 'c', url: 'https://a.example/', raw_key: 'r', fetched_at: new Date() },
  crawl_content: { content_hash: 'c', raw_key: 'r', stored_at: new Date() },
  rejection: { subject_hash: 's', reason: 'gone', detail: '404', rejected_at: new Date(), expires_at: new Date() },
  robots: { origin_hash: 'o', origin: 'https://a.example', rules: '', fetched_at: new Date(), expires_at: new Date() },
};

const tableOf = (kind: KindName) => KINDS.find(({ name }) => name === kind)?.table.name as string;
export const daysAgo = (days: number) => new Date(Date.now() - days * 86_400_000);

/** The tables of a world of its own. */
export class Rows implements AsyncDisposable {
  private constructor(
    readonly world: World,
    readonly client: Client,
  ) {}

  static async open(): Promise<Rows> {
    const world = await createWorld();
    const client = new Client({ connectionString: world.databaseUrl });
    await client.connect();
    return new Rows(world, client);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.end();
    await this.world[Symbol.asyncDispose]();
  }

  /** No rows of any kind, and nothing was ever invalidated. */
  async clear(): Promise<void> {
    await this.client.query(`truncate redis_repairs, perceptual_hash_bands, ${TABLES.join(', ')};
      delete from cache_generations where tenant_id <> '*'; update cache_generations set generation = 1`);
  }

  async all<Row>(text: string, values: unknown[] = []): Promise<Row[]> {
    return (await this.client.query(text, values)).rows as Row[];
  }

  async put(kind: KindName, columns: Columns = {}): Promise<void> {
    const row = { tenant_id: 'a', generation: 1, version: 1_000, ...COLUMNS[kind], ...columns };
    const parameters = Object.keys(row).map((_, i) => `$${i + 1}`);
    const text = `insert into ${tableOf(kind)} (${Object.keys(row).join(', ')}) values (${parameters.join(', ')})`;
    await this.client.query(text, Object.values(row));
  }

  /** Contents `hash 1` to `hash <count>` of so many tenants, a millisecond apart, the first of them as old as `age`. */
  async putContents(count: number, { tenants = 3, generation = 1, age = '1 hour' } = {}): Promise<void> {
    await this.client.query(
      `insert into crawl_content_cache (tenant_id, generation, content_hash, raw_key, stored_at, version, created_at)
       select 'tenant-' || n % $2, $3, 'hash ' || n, 'raw', now(), n, now() - $4::interval + n * interval '1 ms'
       from generate_series(1, $1) as n`,
      [count, tenants, generation, age],
    );
  }

  /** What is left of a kind, by a column that tells its rows apart. */
  async left(kind: KindName, column = 'content_hash'): Promise<string[]> {
    const rows = await this.all<{ name: string }>(`select ${column} as name from ${tableOf(kind)} order by 1`);
    return rows.map(({ name }) => name);
  }

  /** What the statistics function tells of a kind's table. */
  async statistics(kind: KindName): Promise<Columns | undefined> {
    return (await this.all<Columns>('select * from cache_table_statistics($1)', [tableOf(kind)]))[0];
  }

  /** Runs a statement, and tells how often tables of kinds were read as a whole, and how many rows came by an index. */
  async workOf(text: string): Promise<{ rows: Columns[]; whole: number; fetched: number }> {
    // Within a transaction, since PostgreSQL puts these figures back between two of them.
    await this.client.query('begin');
    try {
      const before = await this.#workSoFar();
      const rows = await this.all<Columns>(text);
      const after = await this.#workSoFar();
      return { rows, whole: after.whole - before.whole, fetched: after.fetched - before.fetched };
    } finally {
      await this.client.query('rollback');
    }
  }

  async #workSoFar(): Promise<{ whole: number; fetched: number }> {
    const rows = await this.all<{ whole: number; fetched: number }>(
      `select sum(seq_scan)::float8 as whole, sum(idx_tup_fetch)::float8 as fetched
       from pg_stat_xact_user_tables where relname = any($1)`,
      [TABLES],
    );
    return rows[0] as { whole: number; fetched: number };
  }
}
