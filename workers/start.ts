/** The workers of a process: built from the app, held back while PostgreSQL is away, stopped within a deadline. */
import type { Worker } from 'bullmq';
import type { App } from '../src/app.js';
import { searchNearDuplicates } from '../src/cache/near-duplicates.js';
import { AddressPolicy } from '../src/crawl/address.js';
import { Fetcher } from '../src/crawl/fetch.js';
import { createBuiltInEngine } from '../src/faces/builtin.js';
import type { FaceEngine } from '../src/faces/engine.js';
import { Closer, within } from '../src/lifecycle.js';
import type { QueueName } from '../src/queues/contract.js';
import { crawlQueue } from '../src/queues/crawl.js';
import { embeddingQueue } from '../src/queues/embedding.js';
import { HostSchedule } from '../src/queues/host-schedule.js';
import { type CrawlTools, crawl } from './crawl.js';
import { type EmbeddingTools, embed } from './embedding.js';
import { Politeness } from './politeness.js';
import { processorOf } from './run.js';
import { startSweep } from './sweep.js';

/** Beyond the fetch's own deadline: decoding, storing and recording one image. */
const LEASE_BEYOND_FETCH_MS = 60_000;
/** A request that was given up on is closed by then. */
const LEASE_BEYOND_REQUEST_MS = 5_000;
/** An embedding of one image on a busy machine. */
const EMBEDDING_LEASE_MS = 120_000;
/** How long jobs get to hand themselves back once they are told to stop. */
const HAND_BACK_MS = 2_000;

export interface Workers {
  /** Takes no more jobs, lets running ones finish for `deadlineMs`, has the rest handed back. Safe twice. */
  stop(deadlineMs: number): Promise<void>;
}

export function startWorkers(app: App, names: readonly QueueName[]): Workers {
  const closer = new Closer();
  const shutdown = new AbortController();
  const makers: Record<QueueName, () => Worker> = {
    crawl: () => crawlWorker(app, closer, shutdown.signal),
    embedding: () => embeddingWorker(app, closer, shutdown.signal),
  };
  const workers = names.map((name) => makers[name]());
  closer.add('hold', holdDuringOutage(app, workers), (release) => release());
  for (const worker of workers) worker.run().catch((error: unknown) => app.events.queueError(worker.name, error));
  let stopping: Promise<void> | undefined;
  return {
    stop: (deadlineMs) => {
      stopping ??= stop(workers, shutdown, closer, deadlineMs);
      return stopping;
    },
  };
}

function crawlWorker(app: App, closer: Closer, shutdown: AbortSignal): Worker {
  const { config, connection, events } = app;
  const policy = new AddressPolicy({ allow: config.fetch.allow, deny: config.fetch.deny });
  const { maxBytes, timeoutMs, userAgent, hostConcurrency, hostGapMs, crawler } = config.fetch;
  const fetcher = closer.add('fetcher', new Fetcher({ maxBytes, timeoutMs, userAgent, policy }), (one) => one.close());
  const schedule = new HostSchedule(app.backend.state, app.queues.get('crawl'));
  const leaseMs = timeoutMs + LEASE_BEYOND_REQUEST_MS;
  const politeness = new Politeness(schedule, connection.hybrid, fetcher, {
    hostConcurrency,
    hostGapMs,
    leaseMs,
    coolMs: app.backend.retryBaseMs,
    crawler,
  });
  const tools: CrawlTools = {
    records: app.records,
    claims: app.claims,
    objects: app.objects,
    events,
    fetcher,
    politeness,
    revalidateAfterMs: config.fetch.revalidateAfterMs,
    maxPixels: config.images.maxPixels,
    leaseMs: timeoutMs + LEASE_BEYOND_FETCH_MS,
    nearDuplicates: (tenantId, phash, options) => searchNearDuplicates(connection.query, tenantId, phash, options),
    enqueueEmbedding: async (tenantId, contentHash) => {
      await app.queues.enqueue(embeddingQueue, [{ v: 1, tenantId, contentHash }]);
    },
  };
  const perform = processorOf(crawlQueue, (job, run) => crawl(job, run, tools), events, shutdown);
  return app.backend.worker('crawl', perform, config.crawl.concurrency);
}

function embeddingWorker(app: App, closer: Closer, shutdown: AbortSignal): Worker {
  const { config, connection, events } = app;
  const engine = app.engine ?? ownEngine(config.embedding.threads, closer);
  const sweep = startSweep(app, engine.models.embedding);
  closer.add('sweep', sweep, (one) => one.stop());
  const tools: EmbeddingTools = {
    hybrid: connection.hybrid,
    records: app.records,
    claims: app.claims,
    objects: app.objects,
    engine,
    events,
    maxPixels: config.images.maxPixels,
    leaseMs: EMBEDDING_LEASE_MS,
  };
  const perform = processorOf(embeddingQueue, (job, run) => embed(job, run, tools), events, shutdown);
  return app.backend.worker('embedding', perform, config.embedding.threads);
}

function ownEngine(threads: number, closer: Closer): FaceEngine {
  return closer.add('face engine', createBuiltInEngine({ threads }), (engine) => engine.close());
}

/** Without PostgreSQL no result can be kept: no job is taken until it is back. */
function holdDuringOutage(app: App, workers: readonly Worker[]): () => void {
  const { guard } = app.connection.tiers.postgres;
  const apply = (up: boolean) => {
    for (const worker of workers) {
      if (up) worker.resume();
      else worker.pause(true).catch((error: unknown) => app.events.queueError(worker.name, error));
    }
  };
  if (!guard.isUp) apply(false);
  return guard.onChange(apply);
}

async function stop(
  workers: readonly Worker[],
  shutdown: AbortController,
  closer: Closer,
  deadlineMs: number,
): Promise<void> {
  const closing = Promise.all(workers.map((worker) => worker.close()));
  const LATE = Symbol('late');
  if ((await within(deadlineMs, closing, LATE)) === LATE) {
    shutdown.abort(new Error('the process shuts down'));
    // Work that is deaf to its signal ends with the process; its lock ends soon after, and it runs again elsewhere.
    await within(HAND_BACK_MS, closing, undefined);
  }
  await closer.close();
}
