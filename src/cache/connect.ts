/** Opens both tiers behind their guards. Nothing connects before the first use. */
import type { Pool } from 'pg';
import type { Config } from '../config.js';
import { createPool, POOL_SIZES } from '../db/client.js';
import type { Events } from '../events.js';
import { checkKinds } from '../kinds/index.js';
import { Closer } from '../lifecycle.js';
import type { Logger } from '../logger.js';
import { type CleanedTable, cleanup } from './cleanup.js';
import { Coherence } from './coherence.js';
import { Guard } from './guard.js';
import { HybridCache, type Tiers } from './hybrid.js';
import { Invalidation } from './invalidation.js';
import { Journal } from './journal.js';
import { LookupCounts } from './lookup-counts.js';
import { PostgresTier } from './postgres-tier.js';
import { type Query, queryThrough } from './query.js';
import { RedisTier } from './redis-tier.js';

/** Longest wait for one operation, in milliseconds: a healthy Redis answers in under one, PostgreSQL in a few. */
const REDIS_DEADLINE_MS = 250;
export const POSTGRES_DEADLINE_MS = 3_000;
const DEFAULT_PREFIX = 'hc';

/** Both tiers, opened, and what works on them. */
export interface CacheConnection {
  /** Each behind its guard; `redis` is `null` where there is to be none. */
  readonly tiers: Tiers;
  /** Reads and writes through both tiers. */
  readonly hybrid: HybridCache;
  /** Makes what a tenant has invisible, and deletes it. */
  readonly invalidation: Invalidation;
  /** Where writes wait for PostgreSQL; `null` without a queue on Redis. */
  readonly journal: Journal | null;
  /** The look-ups of this process, by kind and answer. */
  readonly counts: LookupCounts;
  /** For what needs a connection of its own. */
  readonly pool: Pool;
  /** What is no look-up of an entry. */
  readonly query: Query;
  /** Asks PostgreSQL which of Redis' entries count: for whoever looks at a tier by itself, past `hybrid`. */
  begin(): Promise<void>;
  /** See `cleanup`. */
  cleanup(days: number, signal?: AbortSignal): Promise<CleanedTable[]>;
  /** Ends what is open. What was written waits to be stored first. */
  close(): Promise<void>;
}

/** What of the configuration a cache needs. Without `queue`, nothing is journaled. */
export type CacheConfig = Pick<Config, 'redisUrl' | 'postgres' | 'ttl'> & Partial<Pick<Config, 'queue'>>;

export interface CacheConnectOptions {
  /** First part of every Redis key. */
  readonly prefix?: string | undefined;
}

export function connectCache(
  config: CacheConfig,
  log: Logger,
  events: Events,
  { prefix = DEFAULT_PREFIX }: CacheConnectOptions = {},
): CacheConnection {
  checkKinds();
  const closer = new Closer();
  // The server gives up before we do, and says why: a lock that is waited for is told from a server that is away.
  const timeoutMs = POSTGRES_DEADLINE_MS - 500;
  const pool = createPool(config.postgres, log, { timeoutMs, max: POOL_SIZES.cache });
  // For pings and for what coherence asks: a busy pool must hold up neither.
  const probes = createPool(config.postgres, log, { timeoutMs, max: POOL_SIZES.probes });
  const postgres = closer.add('PostgreSQL', new PostgresTier(pool, probes), (tier) => tier.close());
  const postgresGuard = closer.add('guard', new Guard(postgres, POSTGRES_DEADLINE_MS, events), (guard) =>
    guard.close(),
  );
  let redis: Tiers['redis'] = null;
  if (config.redisUrl) {
    const tier = new RedisTier({ url: config.redisUrl, ttl: config.ttl, prefix }, log);
    closer.add('Redis', tier, () => tier.close());
    const guard = closer.add('guard', new Guard(tier, REDIS_DEADLINE_MS, events), (one) => one.close());
    redis = { tier, guard };
  }
  const tiers: Tiers = { redis, postgres: { tier: postgres, guard: postgresGuard } };
  const longest = 2 * Math.max(...Object.values(config.ttl));
  const coherence = closer.add(
    'coherence',
    new Coherence({ query: queryThrough(probes, postgresGuard), guard: postgresGuard }, redis, events, longest),
    (one) => one.close(),
  );
  const query = queryThrough(pool, postgresGuard);
  const counts = new LookupCounts();
  let journal: Journal | null = null;
  if (config.queue?.backend === 'redis') {
    const options = { url: config.queue.url, prefix };
    journal = new Journal(options, tiers.postgres, (entries) => hybrid.toRedis(entries), events, log);
    closer.add('journal', journal, (one) => one.close());
  }
  const hybrid = closer.add('hybrid cache', new HybridCache(tiers, coherence, journal, counts, events), (cache) =>
    cache.close(),
  );
  const invalidation = closer.add('invalidation', new Invalidation(tiers, pool, query, coherence, events), (one) =>
    one.close(),
  );
  return {
    tiers,
    hybrid,
    invalidation,
    journal,
    counts,
    pool,
    query,
    begin: async () => coherence.begin(),
    cleanup: (days, signal) => cleanup(query, days, signal),
    close: () => closer.close(),
  };
}
