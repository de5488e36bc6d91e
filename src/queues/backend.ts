/**
 * Where the queues live: Redis or PostgreSQL, both BullMQ's own. Everything the two need differently stands here; what
 * a queue promises is the same on both.
 */
import { type Processor, Queue, QueueEvents, type Worker, type WorkerOptions } from 'bullmq';
import type { Config, PostgresConfig } from '../config.js';
import { createPool, POOL_SIZES, SocketsFirstClient } from '../db/client.js';
import { RetryableError } from '../errors.js';
import type { Events } from '../events.js';
import type { Logger } from '../logger.js';
import { type QueueName, RETENTION } from './contract.js';
import { createPatientBackend } from './patient-postgres.js';
import { PatientWorker } from './patient-worker.js';
import type { QueueState } from './state.js';
import { PostgresQueueState } from './state-postgres.js';
import { RedisQueueState } from './state-redis.js';
import { createTimelyRedis } from './timely-redis.js';

export interface BackendOptions {
  /** Namespace: the key prefix in Redis, the schema in PostgreSQL. Other BullMQ clients use the same. */
  readonly namespace?: string | undefined;
  /** First wait between attempts, in milliseconds; doubled each time. */
  readonly retryBaseMs?: number | undefined;
}

export interface QueueBackend {
  /** For producers: an operation fails fast while the store is away. */
  queue(name: QueueName): Queue;
  /** For workers: waits for the store. Does not take jobs before `run()`. */
  worker(name: QueueName, processor: Processor, concurrency: number): Worker;
  events(name: QueueName): QueueEvents;
  /** First wait between attempts, in milliseconds. */
  readonly retryBaseMs: number;
  /** What is kept beside the jobs; closed by whoever made the backend. */
  readonly state: QueueState;
}

/**
 * A killed worker's job runs again after `lockDuration` and at most two checks more: 16 s. Deaths never fail a job:
 * somebody else killed the worker, and the next attempt may well succeed. The count is as large as PostgreSQL's
 * `integer` holds: with a larger one BullMQ's stalled check there fails, and no killed worker's job ever runs again.
 */
const RECOVERY = { lockDuration: 8_000, stalledInterval: 4_000, maxStalledCount: 2 ** 31 - 1 };
/** How soon a worker tries again after the store failed it, in milliseconds. */
const STORE_RETRY_MS = 1_000;
/** Longer than a worker's steps take; what takes longer (emptying a huge queue) goes on in the server. */
const QUERY_TIMEOUT_MS = 15_000;
/** For a step in what is kept beside the jobs: it takes a few milliseconds. */
const STATE_TIMEOUT_MS = 2_500;
const RETRY_BASE_MS = 10_000;
const RETRY_LIMIT_MS = 3_600_000;

export function createQueueBackend(
  config: Config,
  log: Logger,
  events: Events,
  options: BackendOptions = {},
): QueueBackend {
  const retryBaseMs = options.retryBaseMs ?? RETRY_BASE_MS;
  const workerOptions = (concurrency: number): ReturnType<WorkerSettings> => ({
    ...RECOVERY,
    // For the jobs of other clients, which would else be kept for ever; our own bring the same.
    ...RETENTION,
    concurrency,
    autorun: false,
    runRetryDelay: STORE_RETRY_MS,
    settings: {
      backoffStrategy: (attempts: number, _type?: string, error?: Error) => waitBefore(attempts, error, retryBaseMs),
    },
  });
  const store =
    config.queue.backend === 'redis'
      ? onRedis(config.queue.url, options.namespace ?? 'bull', workerOptions, events)
      : onPostgres(config.postgres, options.namespace ?? 'bullmq', workerOptions, log, events);
  const worker: QueueBackend['worker'] = (name, ...rest) =>
    store.worker(name, ...rest).on('stalled', (id) => events.jobStalled(name, id));
  return { ...store, worker, retryBaseMs };
}

type Store = Omit<QueueBackend, 'retryBaseMs'>;

type WorkerSettings = (concurrency: number) => Omit<WorkerOptions, 'connection'>;

/**
 * The wait before the next attempt: exponential, half of it left to chance, and no less than the origin asked for. One
 * that says "in a second" to everybody would else have spent all attempts within some seconds.
 */
function waitBefore(attemptsMade: number, error: Error | undefined, baseMs: number): number {
  const full = baseMs * 2 ** (attemptsMade - 1);
  const own = Math.round(full * (0.5 + Math.random() / 2));
  const asked = error instanceof RetryableError ? (error.retryAfterMs ?? 0) : 0;
  return Math.min(Math.max(own, asked), RETRY_LIMIT_MS);
}

function onRedis(url: string, prefix: string, settings: WorkerSettings, events: Events): Store {
  const waiting = { url, maxRetriesPerRequest: null, retryStrategy: (times: number) => Math.min(50 * times, 1000) };
  const failingFast = { ...waiting, maxRetriesPerRequest: 1, enableOfflineQueue: false };
  return {
    queue: (name) => heard(name, events, new Queue(name, { connection: failingFast, prefix }, createTimelyRedis)),
    worker: (name, processor, concurrency) =>
      heard(
        name,
        events,
        new PatientWorker(
          name,
          processor,
          { ...settings(concurrency), connection: waiting, prefix },
          createTimelyRedis,
        ),
      ),
    events: (name) => heard(name, events, new QueueEvents(name, { connection: waiting, prefix })),
    state: new RedisQueueState(url, prefix, (error) => events.queueError('crawl', error)),
  };
}

function onPostgres(
  postgres: PostgresConfig,
  schema: string,
  settings: WorkerSettings,
  log: Logger,
  events: Events,
): Store {
  const shared = {
    ...postgres,
    schema,
    application_name: 'hybrid-cache-service queue',
    connectionTimeoutMillis: 5_000,
    // A network that swallows everything would else hold a worker until TCP gives up, a quarter of an hour later. Who only
    // listens runs no query, and is probed by TCP.
    query_timeout: QUERY_TIMEOUT_MS,
    Client: SocketsFirstClient,
    keepAlive: true,
  };
  const pool = (max: number) => ({ connection: { ...shared, max } });
  // BullMQ's classes carry their backend in a type parameter that defaults to Redis; what we use of them is common.
  return {
    queue: (name) =>
      heard(name, events, new Queue(name, pool(POOL_SIZES.queue), createPatientBackend)) as unknown as Queue,
    worker: (name, processor, concurrency) => {
      const options = { ...settings(concurrency), ...pool(POOL_SIZES.worker(concurrency)) };
      const worker = new PatientWorker(name, processor, options as unknown as WorkerOptions, createPatientBackend);
      return heard(name, events, worker);
    },
    events: (name) =>
      heard(name, events, new QueueEvents(name, pool(2), createPatientBackend)) as unknown as QueueEvents,
    state: new PostgresQueueState(
      createPool(postgres, log, { timeoutMs: STATE_TIMEOUT_MS, max: POOL_SIZES.queueState }),
      schema,
    ),
  };
}

/** Without a listener the first lost connection would end the process. BullMQ reconnects by itself. */
function heard<T extends { on(event: 'error', listener: (error: Error) => void): unknown }>(
  name: QueueName,
  events: Events,
  emitter: T,
): T {
  emitter.on('error', (error) => events.queueError(name, error));
  return emitter;
}
