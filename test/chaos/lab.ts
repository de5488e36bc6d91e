/**
 * One run: servers, a web, worker processes, and a producer that knows what was accepted. Whatever an experiment does
 * to them, in the end `settled` waits for the jobs and `check` judges.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { QueueEvents } from 'bullmq';
import type { App } from '../../src/app.js';
import { type Env, toConfig } from '../../src/config.js';
import { Closer, within } from '../../src/lifecycle.js';
import { createLogger } from '../../src/logger.js';
import type { QueueName } from '../../src/queues/contract.js';
import { until } from '../support/until.js';
import { openChaosApp } from './app.js';
import { type Expected, type Judgement, judge } from './checker.js';
import { metricsOf } from './figures.js';
import { Origin, type OriginOptions } from './origin.js';
import { Producer } from './producer.js';
import { pick } from './random.js';
import { Servers } from './servers.js';
import { type WorkerOptions, WorkerProcess } from './worker-process.js';

export type Backend = 'redis' | 'postgres';

export interface LabOptions extends OriginOptions {
  readonly backend: Backend;
  readonly seed: number;
  /** For the workers and the producer alike. */
  readonly env?: Env;
  /** Of PostgreSQL, where more processes have their queue there than its default has room for. */
  readonly maxConnections?: number;
}

/**
 * Several hosts, each with permits, a gap and robots rules: faults meet whoever waits in a line, holds a permit or is
 * about to be woken. Permits of the dead are free again after ten seconds. Without it, hosts let everybody through.
 */
export const POLITE = {
  hosts: 8,
  robots: true,
  env: {
    FETCH_HOST_GAP_MS: '20',
    FETCH_HOST_CONCURRENCY: '4',
    FETCH_ROBOTS: 'honour',
    FETCH_TIMEOUT_MS: '5000',
  },
} satisfies Partial<LabOptions>;

const START_MS = 60_000;
const QUEUES = ['crawl', 'embedding'] as const;

/** Each by its own index: to count all jobs, as BullMQ does there, takes the longer the more have ended. */
const UNENDED = `select (${['waiting', 'active', 'delayed']
  .map((state) => `(select count(*) from bullmq.job where queue = $1 and state = '${state}')`)
  .join(' + ')})::int as count`;

export class Lab extends Producer implements AsyncDisposable {
  /** Numbers that follow from the seed, for what the experiment itself does, one after the other. */
  readonly random: () => number;
  /** When worker processes were killed, in milliseconds since the epoch. */
  readonly kills: number[] = [];
  readonly workers = new Set<WorkerProcess>();
  /** The metrics of workers that stopped by themselves. */
  readonly #stopped: string[] = [];
  readonly #servers = new Set<WorkerProcess>();
  /** When each crawl job was begun, as the queue tells. */
  readonly starts = new Map<string, number[]>();
  /** When each crawl job had ended, as the queue told; not those that ended while it could not tell. */
  readonly ended = new Map<string, number>();
  /** Crawl jobs of which it told so more than once. */
  readonly endedAgain = new Set<string>();
  readonly stalled = new Set<string>();

  private constructor(
    override readonly options: LabOptions,
    readonly servers: Servers,
    origin: Origin,
    readonly folder: string,
    readonly env: Env,
    app: App,
    events: QueueEvents,
    private readonly closer: Closer,
  ) {
    super(app, origin, options);
    this.random = this.randomFor('experiment');
    events.on('active', ({ jobId }) => {
      this.starts.set(jobId, [...(this.starts.get(jobId) ?? []), Date.now()]);
    });
    const end = ({ jobId }: { jobId: string }) => {
      if (this.ended.has(jobId)) this.endedAgain.add(jobId);
      this.ended.set(jobId, Date.now());
    };
    events.on('completed', end).on('failed', end);
    events.on('stalled', ({ jobId }) => void this.stalled.add(jobId));
  }

  static async start(options: LabOptions): Promise<Lab> {
    const closer = new Closer();
    try {
      const servers = closer.add('servers', await Servers.start(options.maxConnections), (one) =>
        one[Symbol.asyncDispose](),
      );
      const origin = closer.add('origin', await Origin.start(options), (one) => one[Symbol.asyncDispose]());
      const folder = closer.add('objects', await mkdtemp(join(tmpdir(), 'hc-chaos-objects-')), (path) =>
        rm(path, { recursive: true, force: true }),
      );
      const env: Env = {
        ...servers.stack.env,
        QUEUE_BACKEND: options.backend,
        STORAGE_URL: `file:${folder}`,
        FETCH_ALLOW: '127.0.0.1/32:*',
        FETCH_HOST_GAP_MS: '0',
        FETCH_HOST_CONCURRENCY: '1000',
        FETCH_ROBOTS: 'ignore',
        CRAWL_CONCURRENCY: '8',
        EMBEDDING_THREADS: '2',
        METRICS_PORT: '0',
        LOG_LEVEL: 'fatal',
        ...options.env,
      };
      const app = openChaosApp(toConfig(env), { logger: createLogger('silent'), retryBaseMs: 200 });
      closer.add('producer', app, (one) => one.close());
      const events = closer.add('events', app.backend.events('crawl'), (one) => within(2_000, one.close(), undefined));
      await within(START_MS, events.waitUntilReady(), undefined);
      return new Lab(options, servers, origin, folder, env, app, events, closer);
    } catch (error) {
      await closer.close().catch(() => undefined);
      throw error;
    }
  }

  /** Resolves when the process takes jobs. */
  async worker(options: WorkerOptions = {}): Promise<WorkerProcess> {
    const worker = this.spawn(options);
    await worker.working;
    return worker;
  }

  /** As `worker`, for a process that may die before it says anything. */
  spawn(options: WorkerOptions = {}): WorkerProcess {
    const worker = WorkerProcess.spawn(this.env, options);
    this.workers.add(worker);
    worker.ended.then(() => {
      this.workers.delete(worker);
      if (worker.lastMetrics !== undefined) this.#stopped.push(worker.lastMetrics);
    });
    return worker;
  }

  async workersOf(count: number, options: WorkerOptions = {}): Promise<WorkerProcess[]> {
    return Promise.all(Array.from({ length: count }, () => this.worker(options)));
  }

  /** A process that serves the API, and works on nothing. @returns its address */
  async serve(): Promise<string> {
    const server = WorkerProcess.spawn({ ...this.env, PORT: '0' }, { queues: [], api: true });
    this.#servers.add(server);
    return server.working;
  }

  /** The text of the metrics of every worker that lives, or stopped by itself. */
  async metrics(): Promise<string[]> {
    return [...this.#stopped, ...(await metricsOf(this.workers))];
  }

  /** `kill -9`, and a note of it. */
  async kill(worker: WorkerProcess): Promise<void> {
    this.kills.push(Date.now());
    await worker.kill();
  }

  /** One of them, by chance. */
  pick<T>(all: Iterable<T>): T {
    return pick(this.random, all);
  }

  /** Resolves when no job waits, runs or is put off, and the embeddings are done too. */
  async settled(ms = 5 * 60_000): Promise<void> {
    const isIdle = async () =>
      (await Promise.all(QUEUES.map((name) => this.unended(name)))).every((count) => count === 0);
    for (const end = Date.now() + ms; ; ) {
      for (const name of QUEUES) await this.emptied(name, Math.max(1, end - Date.now()));
      // Between the end of a crawl job and its embedding nothing lies; but counts of two queues are two moments.
      await pause(100);
      if (await isIdle().catch(() => false)) return;
    }
  }

  /** Resolves when no job of the queue waits, runs or is put off. */
  async emptied(name: QueueName, ms = 5 * 60_000): Promise<void> {
    await until(
      `the queue ${name} to be empty`,
      async () => {
        const left = await this.unended(name);
        if (left > 0) throw new Error(`${left} jobs: ${JSON.stringify(await this.app.queues.counts(name))}`);
        return true;
      },
      ms,
    );
  }

  async unended(name: QueueName): Promise<number> {
    if (this.options.backend === 'postgres') {
      const { rows } = await this.app.connection.pool.query<{ count: number }>(UNENDED, [name]);
      return rows[0]?.count ?? 0;
    }
    const { waiting = 0, prioritized = 0, active = 0, delayed = 0, paused = 0 } = await this.app.queues.counts(name);
    return waiting + prioritized + active + delayed + paused;
  }

  /** Reads every store and says what was broken. Workers may go on; jobs must not. */
  check(expected: Expected = {}): Promise<Judgement> {
    return judge(this, expected);
  }

  /** How long killed jobs waited before they ran again, in seconds, sorted; from the first kill that can have been theirs. */
  rerunSeconds(): number[] {
    const waits: number[] = [];
    for (const id of this.stalled) {
      const starts = this.starts.get(id) ?? [];
      for (let i = 1; i < starts.length; i++) {
        const [before, after] = [starts[i - 1] as number, starts[i] as number];
        const kill = this.kills.find((at) => at >= before && at < after);
        if (kill !== undefined) waits.push((after - kill) / 1000);
      }
    }
    return waits.sort((a, b) => a - b);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.workers, ...this.#servers].map((worker) => worker.kill()));
    await this.closer.close();
  }
}
