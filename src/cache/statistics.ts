/** What `getCacheStats` tells: what both servers say of themselves, and beside it what this service counted. */
import { reasonOf } from '../errors.js';
import { withoutSecrets } from '../logger.js';
import type { KindName } from '../metrics.js';
import { parseInfo } from '../redis-info.js';
import { type LookupCounts, percentage, type ServiceStatistics } from './lookup-counts.js';

/** Figures of the whole server, whoever uses it. `null` is what the server does not tell. */
export interface RedisStatistics {
  /** Bytes. */
  readonly usedMemory: number | null;
  /** The same as Redis writes it, such as `12.34M`. */
  readonly usedMemoryHuman: string | null;
  /** Bytes; 0 is no limit. */
  readonly maxmemory: number | null;
  /** What Redis does at its limit, such as `noeviction`. */
  readonly maxmemoryPolicy: string | null;
  /** Connections that are open now. */
  readonly connectedClients: number | null;
  /** Since the server started, as all counts that follow. */
  readonly totalCommandsProcessed: number | null;
  /** Look-ups of keys that were there. */
  readonly keyspaceHits: number | null;
  /** Look-ups of keys that were not. */
  readonly keyspaceMisses: number | null;
  /** Keys that Redis gave up for want of memory. */
  readonly evictedKeys: number | null;
  /** Hits among the look-ups of all its users, in percent; `null` where there were none. */
  readonly hitRate: number | null;
}

/** What the tables are called here: the first names of both columns are those of the Python service. */
const NAMES = {
  face_embedding: { count: 'faceEmbeddingsCacheCount', size: 'embeddingsSize' },
  face_detection: { count: 'faceDetectionCacheCount', size: 'faceDetectionSize' },
  perceptual_hash: { count: 'perceptualHashCacheCount', size: 'phashSize' },
  search_results: { count: 'searchResultsCacheCount', size: 'searchResultsSize' },
  crawl_url: { count: 'crawlCacheCount', size: 'crawlSize' },
  crawl_content: { count: 'crawlContentCacheCount', size: 'crawlContentSize' },
  rejection: { count: 'rejectionCacheCount', size: 'rejectionSize' },
  robots: { count: 'robotsCacheCount', size: 'robotsSize' },
} as const satisfies Record<KindName, { count: string; size: string }>;

type Names = (typeof NAMES)[KindName];

/**
 * By kind: in `…Count` the rows that can be reached, in `…Size` the space that its table takes with its indexes, such as
 * `12 MB`.
 */
export type PostgresStatistics = Readonly<Record<Names['count'], number> & Record<Names['size'], string>> & {
  /** The tables with too many rows to count, such as `crawl_cache`: theirs is an estimate. */
  readonly estimated: readonly string[];
};

/** In place of a tier's statistics, when it is away or turned off. */
export interface NoStatistics {
  /** Why there are none, in one line without passwords; `turned off` where the tier is not configured. */
  readonly error: string;
}

/** What `getCacheStats` answers. */
export interface CacheStatistics {
  /** What the Redis server says of itself. */
  readonly redisStats: RedisStatistics | NoStatistics;
  /** What PostgreSQL holds of this service. */
  readonly postgresStats: PostgresStatistics | NoStatistics;
  /** Whether the tier is configured, be it up or not. */
  readonly redisEnabled: boolean;
  /** Likewise; PostgreSQL always is. */
  readonly postgresEnabled: boolean;
  /** The look-ups of this process. */
  readonly service: ServiceStatistics;
}

interface TableRow {
  readonly kind: KindName;
  readonly table: string;
  readonly entries: number;
  readonly exact: boolean;
  readonly size: string;
}

/** The tiers to ask. */
export interface StatisticsSources {
  /** Resolves with the text of `INFO`; `null` where it is turned off. */
  readonly redis: { info(): Promise<string> } | null;
  readonly postgres: { query(text: string): Promise<{ rows: unknown[] }> };
  readonly counts: LookupCounts;
}

// A double holds a count exactly up to 2^53 and, unlike a bigint, reaches us as a number.
const TABLES = `select kind, table_name as "table", total_entries::float8 as entries, is_exact as exact,
    pg_size_pretty(table_bytes) as size
  from cache_kinds() cross join lateral cache_table_statistics(table_name)`;

/** One round trip to each tier. Never rejects: a tier that cannot answer says why in the place of its figures. */
export async function readStatistics({ redis, postgres, counts }: StatisticsSources): Promise<CacheStatistics> {
  const [redisStats, postgresStats] = await Promise.all([
    told(redis, async (tier) => redisStatistics(await tier.info())),
    told(postgres, async (tier) => postgresStatistics((await tier.query(TABLES)).rows as TableRow[])),
  ]);
  return {
    redisStats,
    postgresStats,
    redisEnabled: redis !== null,
    postgresEnabled: true,
    service: counts.snapshot(),
  };
}

/** From the text of `INFO`: https://redis.io/docs/latest/commands/info/ */
export function redisStatistics(text: string): RedisStatistics {
  const info = parseInfo(text);
  const number = (name: string) => (info[name] ? Number(info[name]) : null);
  const keyspaceHits = number('keyspace_hits');
  const keyspaceMisses = number('keyspace_misses');
  return {
    usedMemory: number('used_memory'),
    usedMemoryHuman: info.used_memory_human ?? null,
    maxmemory: number('maxmemory'),
    maxmemoryPolicy: info.maxmemory_policy ?? null,
    connectedClients: number('connected_clients'),
    totalCommandsProcessed: number('total_commands_processed'),
    keyspaceHits,
    keyspaceMisses,
    evictedKeys: number('evicted_keys'),
    hitRate: percentage(keyspaceHits ?? 0, (keyspaceHits ?? 0) + (keyspaceMisses ?? 0)),
  };
}

function postgresStatistics(rows: readonly TableRow[]): PostgresStatistics {
  const figures = rows.flatMap(({ kind, entries, size }) => [
    [NAMES[kind].count, entries],
    [NAMES[kind].size, size],
  ]);
  return { ...Object.fromEntries(figures), estimated: rows.filter(({ exact }) => !exact).map(({ table }) => table) };
}

async function told<Tier, T>(tier: Tier | null, ask: (tier: Tier) => Promise<T>): Promise<T | NoStatistics> {
  if (tier === null) return { error: 'turned off' };
  try {
    return await ask(tier);
  } catch (error) {
    return { error: withoutSecrets(reasonOf(error)) };
  }
}
