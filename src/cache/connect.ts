/** Opens both tiers behind their guards. Nothing connects before the first use. */
import type { Pool } from 'pg';
import type { Config } from '../config.js';
import { createPool } from '../db/client.js';
import type { Events } from '../events.js';
import { checkKinds } from '../kinds/index.js';
import { Closer } from '../lifecycle.js';
import type { Logger } from '../logger.js';
import { Guard } from './guard.js';
import { HybridCache, type Tiers } from './hybrid.js';
import { PostgresTier } from './postgres-tier.js';
import { RedisTier } from './redis-tier.js';

/** Longest wait for one operation, in milliseconds: a healthy Redis answers in under one, PostgreSQL in a few. */
const REDIS_DEADLINE_MS = 250;
const POSTGRES_DEADLINE_MS = 3_000;

export interface CacheConnection {
  readonly tiers: Tiers;
  readonly hybrid: HybridCache;
  readonly pool: Pool;
  close(): Promise<void>;
}

export interface CacheConnectOptions {
  /** First part of every Redis key. */
  readonly prefix?: string | undefined;
}

export function connectCache(
  config: Pick<Config, 'redisUrl' | 'postgres' | 'ttl'>,
  log: Logger,
  events: Events,
  options: CacheConnectOptions = {},
): CacheConnection {
  checkKinds();
  const closer = new Closer();
  // The server gives up before we do, and says why: a lock that is waited for is told from a server that is away.
  const timeoutMs = POSTGRES_DEADLINE_MS - 500;
  const pool = createPool(config.postgres, log, { timeoutMs });
  const probes = createPool(config.postgres, log, { timeoutMs, max: 1 });
  const postgres = closer.add('PostgreSQL', new PostgresTier(pool, probes), (tier) => tier.close());
  const postgresGuard = closer.add('guard', new Guard(postgres, POSTGRES_DEADLINE_MS, events), (guard) =>
    guard.close(),
  );
  let redis: Tiers['redis'] = null;
  if (config.redisUrl) {
    const tier = new RedisTier({ url: config.redisUrl, ttl: config.ttl, prefix: options.prefix }, log);
    closer.add('Redis', tier, () => tier.close());
    const guard = closer.add('guard', new Guard(tier, REDIS_DEADLINE_MS, events), (one) => one.close());
    redis = { tier, guard };
  }
  const tiers: Tiers = { redis, postgres: { tier: postgres, guard: postgresGuard } };
  const hybrid = closer.add('hybrid cache', new HybridCache(tiers, events), (cache) => cache.close());
  return { tiers, hybrid, pool, close: () => closer.close() };
}
