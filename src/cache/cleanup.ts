/** Retention, where it is asked for: deletes rows that are older than some days, a batch to a transaction. */
import { setTimeout as pause } from 'node:timers/promises';
import { ArgumentError } from '../errors.js';
import { KINDS } from '../kinds/index.js';
import { POLL_MS } from './coherence.js';
import type { Query } from './query.js';

export interface CleanedTable {
  readonly tableName: string;
  readonly deletedCount: number;
}

/**
 * What is deleted has to be dropped from Redis too, and where more than ten thousand of such repairs are pending,
 * `coherence.ts` stops believing Redis. With a pause of one of its rounds after each batch, two can be pending at once.
 */
const BATCH = 4_000;
/** More days than anything can be old, and as many as PostgreSQL's integer holds. */
const MOST_DAYS = 2_147_483_647;

const NEXT = {
  name: 'cleanup',
  text: `select deleted::float8 as deleted, reached::text as reached
    from cleanup_cache_batch($1, $2, ${BATCH}, $3::timestamptz)`,
};

interface Batch {
  readonly deleted: number;
  /** Where the next one goes on, as PostgreSQL writes it: a Date would cut the microseconds off. `null` at the end. */
  readonly reached: string | null;
}

/**
 * Deletes what was first written more than `days` days ago (of a crawl: four times as long, at least 30 days; of a
 * refusal: after it ended), until `signal` fires.
 *
 * @returns what was deleted of each table; what is deleted stays deleted when it throws
 * @throws {ArgumentError} unless `days` is a whole number from 1 on
 * @throws {TierUnavailableError}
 */
export async function cleanup(query: Query, days: number, signal?: AbortSignal): Promise<CleanedTable[]> {
  if (!Number.isInteger(days) || days < 1) throw new ArgumentError('days', 'expected a whole number from 1 on');
  const cleaned: CleanedTable[] = [];
  // In their order: a content goes only after the URLs that refer to it.
  for (const { name, table } of KINDS) {
    const deletedCount = await cleanTable(query, name, Math.min(days, MOST_DAYS), signal);
    cleaned.push({ tableName: table.name, deletedCount });
  }
  return cleaned;
}

async function cleanTable(query: Query, kind: string, days: number, signal?: AbortSignal): Promise<number> {
  let count = 0;
  let reached: string | null = '-infinity';
  while (reached !== null && !signal?.aborted) {
    const values = [kind, days, reached];
    const { rows } = await query<Batch>({ ...NEXT, values });
    const [batch] = rows as [Batch];
    count += batch.deleted;
    reached = batch.reached;
    // Whoever ends the pause ends the loop.
    if (batch.deleted > 0) await pause(POLL_MS, undefined, { signal }).catch(() => undefined);
  }
  return count;
}
