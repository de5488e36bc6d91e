/** The metrics this service exposes. Label values come from closed sets; only `events.ts` counts. */

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import { DurationHistogram } from './duration-histogram.js';
import { packageVersion } from './package.js';

/** The kinds of `kinds/`, as the values of the `kind` label. */
export const KIND_NAMES = [
  'face_embedding',
  'face_detection',
  'perceptual_hash',
  'search_results',
  'crawl_url',
  'crawl_content',
  'rejection',
  'robots',
] as const;
/** What a cached fact is about, as metrics and statistics name it. */
export type KindName = (typeof KIND_NAMES)[number];

export type LookupResult = 'redis_hit' | 'postgres_hit' | 'miss' | 'error';
export type Stage = 'lookup' | 'fetch' | 'process' | 'store' | 'record';
export type EmbeddingStage = 'lookup' | 'load' | 'detect' | 'embed' | 'record';
/** How a run of a job ended, seen by the queue. `stalled`: with its worker, which died or froze. */
export type RunResult = 'completed' | 'retried' | 'failed' | 'deferred' | 'handed_back' | 'stalled';

/** From half a millisecond to half a minute. */
const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
/** From a millisecond to an hour: waiting is longer than working. */
const LONG_SECONDS = [0.001, 0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600];

/** What a process counts, with the registry that tells it to Prometheus. */
export type Metrics = ReturnType<typeof createMetrics>;

export function createMetrics(registry: Registry = new Registry()) {
  const registers = [registry];
  const counter = <L extends string>(name: string, help: string, ...labelNames: L[]) =>
    new Counter<L>({ name, help, labelNames, registers });
  const gauge = <L extends string>(name: string, help: string, ...labelNames: L[]) =>
    new Gauge<L>({ name, help, labelNames, registers });
  const histogram = <L extends string>(name: string, help: string, buckets: number[], ...labelNames: L[]) =>
    new Histogram<L>({ name, help, buckets, labelNames, registers });

  collectDefaultMetrics({ register: registry });
  gauge('build_info', 'Always 1; the labels say what runs.', 'version', 'node').set(
    { version: packageVersion(), node: process.version },
    1,
  );

  const lookups = byKind();
  return {
    registry,
    /** Look-ups are many: they are counted here, and become `cacheRequests` at each scrape. */
    lookups,
    cacheRequests: new Counter({
      name: 'hybrid_cache_requests_total',
      help: 'Look-ups by kind and answer.',
      labelNames: ['kind', 'result'],
      registers,
      collect() {
        this.reset();
        for (const kind of KIND_NAMES) {
          for (const [result, count] of Object.entries(lookups[kind])) if (count > 0) this.inc({ kind, result }, count);
        }
      },
    }),
    cacheBackfills: counter('hybrid_cache_backfills_total', 'Entries copied from PostgreSQL to Redis.', 'kind'),
    cacheOperation: new DurationHistogram(
      'hybrid_cache_operation_duration_seconds',
      'Time of one tier operation.',
      SECONDS,
      ['tier', 'operation'],
      registry,
    ),
    tierUp: gauge('hybrid_cache_tier_up', 'Whether the tier answers, 1 or 0.', 'tier'),
    tierErrors: counter(
      'hybrid_cache_tier_errors_total',
      'Tier operations that failed.',
      'tier',
      'operation',
      'reason',
    ),
    crawlImages: counter('crawl_images_total', 'Crawl jobs that ended, by outcome.', 'outcome', 'reason'),
    crawlFetch: histogram('crawl_fetch_duration_seconds', 'Time to fetch an image from its origin.', SECONDS),
    crawlBytes: counter('crawl_fetched_bytes_total', 'Bytes of images fetched from their origins.'),
    crawlStage: histogram('crawl_stage_duration_seconds', 'Time of a stage of the crawl job.', SECONDS, 'stage'),
    embeddingImages: counter('embedding_images_total', 'Embedding jobs that ended, by outcome.', 'outcome'),
    embeddingFaces: counter('embedding_faces_total', 'Faces embedded.'),
    embeddingStage: histogram(
      'embedding_stage_duration_seconds',
      'Time of a stage of the embedding job.',
      SECONDS,
      'stage',
    ),
    jobWait: histogram('job_wait_seconds', 'Time from enqueuing to the first run of a job.', LONG_SECONDS, 'queue'),
    jobDuration: histogram('job_duration_seconds', 'Time of one run of a job.', LONG_SECONDS, 'queue', 'outcome'),
    jobAttempts: counter('job_attempts_total', 'Runs of jobs, by how they ended.', 'queue', 'result'),
  };
}

function byKind(): Record<KindName, Record<LookupResult, number>> {
  const none = () => ({ redis_hit: 0, postgres_hit: 0, miss: 0, error: 0 });
  return Object.fromEntries(KIND_NAMES.map((kind) => [kind, none()])) as Record<KindName, Record<LookupResult, number>>;
}
