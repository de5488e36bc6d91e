/** One function per thing that happens: its metric and its log line together. URLs, keys and ids go to the log only. */
import { failureReasonOf, type RejectReason, RetryableError, type TierName } from './errors.js';
import { causeOf, type Logger, withoutSecrets } from './logger.js';
import type { EmbeddingStage, KindName, LookupResult, Metrics, RunResult, Stage } from './metrics.js';

export type TierOperation = 'read' | 'write' | 'ping' | 'claim' | 'query';
/**
 * `refused`: by our own breaker, while the tier is down. `unserved`: by the server, which answers but could not do it.
 * `full`: not tried, to leave memory to others. `wrong`: the operation was at fault, which is a bug of ours.
 */
export type TierErrorReason = 'timeout' | 'connection' | 'refused' | 'unserved' | 'full' | 'corrupt' | 'wrong';

export interface JobFields {
  readonly queue: string;
  readonly jobId: string;
  readonly tenantId: string;
}

/** Of a job that completed: what of its outcome is counted and told. */
export interface JobEnd {
  readonly outcome: string;
  readonly reason?: 'url' | 'content' | RejectReason;
  readonly faces?: number;
}

const QUIET_MS = 10_000;

export class Events {
  readonly #lastSaid = new Map<string, number>();

  constructor(
    private readonly metrics: Metrics,
    private readonly log: Logger,
  ) {}

  lookup(kind: KindName, result: LookupResult): void {
    this.metrics.lookups[kind][result] += 1;
  }

  backfilled(kind: KindName): void {
    this.metrics.cacheBackfills.inc({ kind });
  }

  /** Redis keeps nothing older than what PostgreSQL has of these entries. */
  repaired(entries: number): void {
    this.log.debug({ entries }, 'dropped outdated entries from Redis');
  }

  /** The cache leaves the rest of a Redis that evicts nothing to the queue. */
  redisFull(entries: number): void {
    this.metrics.tierErrors.inc({ tier: 'redis', operation: 'write', reason: 'full' }, entries);
    if (this.#due('redis full')) {
      this.log.warn(
        'Redis is short of memory: the cache stopped writing to it. Raise maxmemory, or lower the lifetimes.',
      );
    }
  }

  /** Writes that were made while PostgreSQL was away. Of `entries`, those not `stored` were outdated by then. */
  replayed(entries: number, stored: number): void {
    this.log.info({ entries, stored }, 'replayed writes to PostgreSQL');
  }

  replayRefused(id: string, stream: string, error: unknown): void {
    this.log.error({ id, stream, err: error }, 'a write could not be replayed; it is kept aside in Redis');
  }

  tierAnswered(tier: TierName, operation: TierOperation, seconds: number): void {
    this.metrics.cacheOperation.observe(seconds, tier, operation);
  }

  /** One failed operation. An outage is logged once, by `tierDown`; a server that is up and unable, every ten seconds. */
  tierFailed(tier: TierName, operation: TierOperation, reason: TierErrorReason, error?: unknown): void {
    this.metrics.tierErrors.inc({ tier, operation, reason });
    if (reason === 'wrong') this.log.error({ tier, operation, err: error }, 'tier operation failed');
    if (reason === 'unserved' && this.#due(`${tier} ${reason}`)) {
      this.log.warn({ tier, operation, err: error }, 'tier could not serve an operation');
    }
  }

  corruptEntry(tier: TierName, kind: KindName, key: string, error: unknown): void {
    this.metrics.tierErrors.inc({ tier, operation: 'read', reason: 'corrupt' });
    this.log.warn({ tier, kind, key, err: error }, 'corrupt cache entry, read as a miss');
  }

  tierDown(tier: TierName, reason: string): void {
    this.metrics.tierUp.set({ tier }, 0);
    const words = withoutSecrets(reason);
    if (tier === 'redis') {
      this.log.warn({ tier }, `Redis cache unavailable: ${words}. Falling back to PostgreSQL only.`);
    } else {
      this.log.warn({ tier }, `PostgreSQL cache unavailable: ${words}. Using Redis only.`);
    }
  }

  /** `afterMs` is the length of the outage; `null` when the tier is up for the first time. */
  tierUp(tier: TierName, afterMs: number | null): void {
    this.metrics.tierUp.set({ tier }, 1);
    if (afterMs === null) return;
    const name = tier === 'redis' ? 'Redis' : 'PostgreSQL';
    this.log.info({ tier, outageMs: Math.round(afterMs) }, `${name} cache available again.`);
  }

  /** A backup was restored, or the database is another one. */
  setBack(): void {
    this.log.warn('PostgreSQL was set back: nothing that Redis has from before is believed.');
  }

  fetched(seconds: number, bytes: number): void {
    this.metrics.crawlFetch.observe(seconds);
    this.metrics.crawlBytes.inc(bytes);
  }

  crawlStage(stage: Stage, seconds: number): void {
    this.metrics.crawlStage.observe({ stage }, seconds);
  }

  embeddingStage(stage: EmbeddingStage, seconds: number): void {
    this.metrics.embeddingStage.observe({ stage }, seconds);
  }

  jobStarted(queue: string, waitSeconds: number): void {
    this.metrics.jobWait.observe({ queue }, waitSeconds);
  }

  jobRan(queue: string, outcome: string, result: RunResult, seconds: number): void {
    this.metrics.jobDuration.observe({ queue, outcome }, seconds);
    this.metrics.jobAttempts.inc({ queue, result });
  }

  /** A job is counted once, when the queue has its outcome. */
  jobCompleted(job: JobFields, image: { url?: string; contentHash?: string }, end: JobEnd): void {
    const { url, contentHash } = image;
    const { outcome, reason, faces } = end;
    if (job.queue === 'crawl') {
      this.metrics.crawlImages.inc({ outcome, reason: reason ?? '' });
      this.log.info({ ...job, url, outcome, reason }, 'image crawled');
    } else {
      this.metrics.embeddingImages.inc({ outcome });
      if (outcome === 'embedded') this.metrics.embeddingFaces.inc(faces ?? 0);
      this.log.info({ ...job, contentHash, outcome, faces }, 'image embedded');
    }
  }

  /** Told by whoever found it, and put the job back to run again: a worker that died tells nothing. */
  jobStalled(queue: string, jobId: string): void {
    this.metrics.jobAttempts.inc({ queue, result: 'stalled' satisfies RunResult });
    this.log.warn({ queue, jobId }, 'job lost its worker and runs again');
  }

  /** A job is counted once, when it fails for good: by the words that the queue keeps, as `hybrid-cache failed` reads them. */
  jobFailed(job: JobFields, error: unknown, willRetry: boolean): void {
    const reason = failureReasonOf(error instanceof Error ? error.message : String(error));
    // What the web does to us needs no stack. What our store says stays in the log: tenants see the failed set.
    const what = error instanceof RetryableError ? { error: error.message, ...causeOf(error) } : { err: error };
    this.log.warn({ ...job, willRetry, reason, ...what }, 'job failed');
    if (willRetry) return;
    if (job.queue === 'crawl') this.metrics.crawlImages.inc({ outcome: 'failed', reason });
    if (job.queue === 'embedding') this.metrics.embeddingImages.inc({ outcome: 'failed' });
  }

  jobHandedBack(job: JobFields, why: string, delayMs: number): void {
    this.log.debug({ ...job, why, delayMs }, 'job handed back');
  }

  /** A queue's client reconnects many times a second: one line says it, and every ten seconds that it goes on. */
  queueError(queue: string, error: unknown): void {
    if (this.#due(`queue ${queue}`)) this.log.warn({ queue, err: error }, 'queue connection error');
  }

  cleaned(tables: readonly { tableName: string; deletedCount: number }[]): void {
    const deleted = Object.fromEntries(tables.map(({ tableName, deletedCount }) => [tableName, deletedCount]));
    this.log.info({ deleted }, 'deleted what was too old');
  }

  /** Whoever uses the library alone is told by nobody else. */
  notJournaled(policy: string, appendOnly: boolean): void {
    this.log.warn(
      { policy, appendOnly },
      "writes made while PostgreSQL is away are not kept: the queue's Redis wants maxmemory-policy noeviction and appendonly yes",
    );
  }

  journalFull(usedMemory: number, memoryLimit: number): void {
    this.log.warn(
      { usedMemory, memoryLimit },
      "writes made while PostgreSQL is away are not kept any more: the queue's Redis is almost full, and jobs come first",
    );
  }

  /** A queue's Redis that evicts loses jobs without an error. */
  queueAtRisk(policy: string, limited: boolean): void {
    this.log[limited ? 'error' : 'warn'](
      { policy },
      "the queue's Redis may evict jobs: set its maxmemory-policy to noeviction, or name another Redis in QUEUE_REDIS_URL",
    );
  }

  swept(enqueued: number): void {
    if (enqueued > 0) this.log.info({ enqueued }, 'enqueued embeddings that were missing');
  }

  /** Something beside the work went wrong and the service goes on: closing, sweeping, answering a probe. */
  troubled(what: string, error: unknown): void {
    this.log.warn({ what, err: error }, 'went on after an error');
  }

  /** Whether what comes in floods may be said again. */
  #due(what: string): boolean {
    if (Date.now() - (this.#lastSaid.get(what) ?? 0) < QUIET_MS) return false;
    this.#lastSaid.set(what, Date.now());
    return true;
  }
}
