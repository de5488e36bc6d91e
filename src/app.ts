/** Composition by hand: what the service is made of, in the order it is built, closed in the opposite order. */
import { Claims } from './cache/claims.js';
import { type CacheConnection, connectCache } from './cache/connect.js';
import { CrawlRecords } from './cache/crawl-records.js';
import { HybridCacheService } from './cache/service.js';
import type { Config } from './config.js';
import { Events } from './events.js';
import type { FaceEngine } from './faces/engine.js';
import { BUILT_IN_MODELS, type FaceModels } from './kinds/models.js';
import { Closer, within } from './lifecycle.js';
import { createLogger, type Logger } from './logger.js';
import { createMetrics, type Metrics } from './metrics.js';
import { createQueueBackend, type QueueBackend } from './queues/backend.js';
import { Queues } from './queues/index.js';
import type { ObjectStore } from './storage/object-store.js';
import { openObjectStore } from './storage/open.js';

/** What a test or an embedding program may bring along. */
export interface Overrides {
  readonly logger?: Logger;
  readonly objects?: ObjectStore;
  /** The face engine of the workers; the default is the built-in one, made when a worker starts. */
  readonly engine?: FaceEngine;
  /** First part of the cache's Redis keys. */
  readonly cachePrefix?: string;
  /** Namespace of the queues: key prefix in Redis, schema in PostgreSQL. */
  readonly queueNamespace?: string;
  readonly retryBaseMs?: number;
  /** The compiled module that a job runs in when it runs alone, where it is not the service's own `workers/alone-child.js`. */
  readonly aloneIn?: URL;
}

export interface App {
  readonly config: Config;
  /** What was brought along. */
  readonly overrides: Overrides;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly events: Events;
  readonly connection: CacheConnection;
  readonly cache: HybridCacheService;
  readonly records: CrawlRecords;
  readonly claims: Claims;
  readonly objects: ObjectStore;
  readonly backend: QueueBackend;
  readonly queues: Queues;
  /** Brought along, or made when a worker starts. */
  readonly engine: FaceEngine | undefined;
  readonly models: FaceModels;
  readonly closer: Closer;
  close(): Promise<void>;
}

/** Builds everything; connects nothing before its first use. */
export function connect(config: Config, overrides: Overrides = {}): App {
  const closer = new Closer();
  const log = overrides.logger ?? createLogger(config.logLevel);
  const metrics = createMetrics();
  const events = new Events(metrics, log);
  const connection = connectCache(config, log, events, { prefix: overrides.cachePrefix });
  closer.add('cache', connection, () => connection.close());
  const models = overrides.engine?.models ?? BUILT_IN_MODELS;
  const cache = new HybridCacheService({ connection, models });
  const { queueNamespace: namespace, retryBaseMs } = overrides;
  const backend = createQueueBackend(config, log, events, { namespace, retryBaseMs });
  const objects = overrides.objects ?? closer.add('objects', openObjectStore(config.storage), (one) => one.close());
  closer.add('queue state', backend.state, (state) => state.close());
  const queues = closer.add('queues', new Queues(backend), (all) => all.close());
  return {
    config,
    overrides,
    log,
    metrics,
    events,
    connection,
    cache,
    records: new CrawlRecords(connection.hybrid),
    claims: new Claims(connection.query),
    objects,
    backend,
    queues,
    engine: overrides.engine,
    models,
    closer,
    close: () => closer.close(),
  };
}

export interface Readiness {
  /** Whether work can be done: the queue's store answers, and PostgreSQL or Redis does. */
  readonly ready: boolean;
  /** What is away, in the words of the log. */
  readonly degraded: string[];
}

/** A probe is not kept waiting for a tier's own deadline. */
const READY_MS = 1_000;

/** Asks everything at once; none takes longer than its deadline. */
export async function readiness({ connection, queues }: App): Promise<Readiness> {
  const { redis, postgres } = connection.tiers;
  const [queueUp, redisUp, postgresUp] = await Promise.all([
    queues.isUp(),
    redis ? within(READY_MS, redis.guard.check(), false) : false,
    within(READY_MS, postgres.guard.check(), false),
  ]);
  const degraded = [
    ...(queueUp ? [] : ['queue store unavailable']),
    ...(redis && !redisUp ? ['Redis cache unavailable'] : []),
    ...(postgresUp ? [] : ['PostgreSQL cache unavailable']),
  ];
  return { ready: queueUp && (redisUp || postgresUp), degraded };
}
