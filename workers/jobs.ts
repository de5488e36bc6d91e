/** What each queue's jobs do: its contract, and its work over tools that are made from the app. */
import type { App } from '../src/app.js';
import { searchNearDuplicates } from '../src/cache/near-duplicates.js';
import { AddressPolicy } from '../src/crawl/address.js';
import { Fetcher } from '../src/crawl/fetch.js';
import type { Events } from '../src/events.js';
import type { FaceEngine } from '../src/faces/engine.js';
import type { Closer } from '../src/lifecycle.js';
import type { QueueContract, QueueName } from '../src/queues/contract.js';
import { type CrawlPayload, crawlQueue } from '../src/queues/crawl.js';
import { type EmbeddingPayload, embeddingQueue } from '../src/queues/embedding.js';
import { HostSchedule } from '../src/queues/host-schedule.js';
import { crawl } from './crawl.js';
import { embed } from './embedding.js';
import { Politeness } from './politeness.js';
import type { Perform, Run } from './run.js';

/** Beyond the fetch's own deadline: decoding, storing and recording one image. */
const LEASE_BEYOND_FETCH_MS = 60_000;
/** A request that was given up on is closed by then. */
const LEASE_BEYOND_REQUEST_MS = 5_000;
/** To an origin; those of requests that were given up on take a moment to close. */
const LEAST_CONNECTIONS = 16;
/** An embedding of one image on a busy machine. */
const EMBEDDING_LEASE_MS = 120_000;

/** What work is done with, beside the app. */
export interface Means {
  readonly events: Events;
  readonly engine: FaceEngine;
  /** Closes what the work needs for itself. */
  readonly closer: Closer;
}

export interface Work {
  readonly contract: QueueContract<unknown>;
  readonly perform: Perform<unknown, { readonly outcome: string }>;
  /** What a process that takes such jobs does now and then, beside them. */
  readonly tend?: (signal: AbortSignal) => Promise<void>;
}

export function workOf(name: QueueName, app: App, means: Means): Work {
  // A contract checks what its own work is given; outside of the two, the payload is nobody's business.
  return (name === 'crawl' ? crawlWork(app, means) : embeddingWork(app, means)) as Work;
}

function crawlWork(app: App, { events, closer }: Means) {
  const { config, connection } = app;
  const policy = new AddressPolicy({ allow: config.fetch.allow, deny: config.fetch.deny });
  const { maxBytes, timeoutMs, userAgent, hostConcurrency, hostGapMs, crawler } = config.fetch;
  // Who has a host's permit is not to wait for a connection to it.
  const connectionsPerOrigin = Math.max(hostConcurrency, LEAST_CONNECTIONS);
  const options = { maxBytes, timeoutMs, userAgent, policy, connectionsPerOrigin };
  const fetcher = closer.add('fetcher', new Fetcher(options), (one) => one.close());
  const politeness = new Politeness(
    new HostSchedule(app.backend.state, app.queues.get('crawl')),
    connection.hybrid,
    fetcher,
    {
      hostConcurrency,
      hostGapMs,
      leaseMs: timeoutMs + LEASE_BEYOND_REQUEST_MS,
      coolMs: app.backend.retryBaseMs,
      crawler,
    },
  );
  const tools = {
    records: app.records,
    claims: app.claims,
    objects: app.objects,
    events,
    fetcher,
    politeness,
    revalidateAfterMs: config.fetch.revalidateAfterMs,
    maxPixels: config.images.maxPixels,
    leaseMs: timeoutMs + LEASE_BEYOND_FETCH_MS,
    nearDuplicates: searchNearDuplicates.bind(null, connection.query),
    enqueueEmbedding: async (tenantId: string, contentHash: string) => {
      await app.queues.enqueue(embeddingQueue, [{ v: 1, tenantId, contentHash }]);
    },
  };
  return {
    contract: crawlQueue,
    perform: (job: CrawlPayload, run: Run) => crawl(job, run, tools),
    tend: (signal: AbortSignal) => politeness.tend(signal),
  };
}

function embeddingWork(app: App, { events, engine }: Means) {
  const tools = {
    hybrid: app.connection.hybrid,
    records: app.records,
    claims: app.claims,
    objects: app.objects,
    engine,
    events,
    maxPixels: app.config.images.maxPixels,
    leaseMs: EMBEDDING_LEASE_MS,
  };
  return { contract: embeddingQueue, perform: (job: EmbeddingPayload, run: Run) => embed(job, run, tools) };
}
