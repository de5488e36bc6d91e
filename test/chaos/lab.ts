/**
 * One run: servers, a web, worker processes, and a producer that knows what was accepted. Whatever an experiment does
 * to them, in the end `settled` waits for the jobs and `check` judges.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { QueueEvents } from 'bullmq';
import type { App } from '../../src/app.js';
import { type Env, toConfig } from '../../src/config.js';
import { Closer, within } from '../../src/lifecycle.js';
import { createLogger } from '../../src/logger.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { QueueUnavailableError } from '../../src/queues/index.js';
import { until } from '../support/until.js';
import { DIE_AT, openChaosApp, type Step } from './app.js';
import { type Expected, type Judgement, judge } from './checker.js';
import { Origin, randomOf } from './origin.js';
import { Servers } from './servers.js';
import type { FromWorker, WorkerFigures } from './worker.js';

export type Backend = 'redis' | 'postgres';

export interface LabOptions {
  readonly backend: Backend;
  readonly seed: number;
  /** For the workers and the producer alike. */
  readonly env?: Env;
  /** Milliseconds that the web takes for every answer. */
  readonly latencyMs?: number;
}

export interface Accepted {
  readonly id: string;
  readonly tenantId: string;
  readonly url: string;
  /** When the queue had taken it, in milliseconds since the epoch. */
  readonly at: number;
}

export interface WorkerOptions {
  /** Dies at this step, at the first job that comes to it. */
  readonly dieAt?: Step;
  readonly queues?: readonly ('crawl' | 'embedding')[];
  readonly env?: Env;
  /** Command and arguments that the process is started with, such as `faketime`. */
  readonly execArgv?: readonly string[];
  /** Gets each line that it logs; `LOG_LEVEL` of `env` says which there are. */
  readonly onLine?: (line: string) => void;
}

const WORKER = fileURLToPath(new URL('./worker.js', import.meta.url));
const START_MS = 60_000;
const ACCEPT_MS = 180_000;
const AT_ONCE = 200;
const LATE = Symbol('late');

export class Lab implements AsyncDisposable {
  /** Numbers that follow from the seed. */
  readonly random: () => number;
  /** What the producer was told is accepted, in order. */
  readonly accepted: Accepted[] = [];
  /** URLs that the queue did not take: nothing is promised about them. */
  refused = 0;
  /** When worker processes were killed, in milliseconds since the epoch. */
  readonly kills: number[] = [];
  readonly workers = new Set<WorkerProcess>();
  /** When each crawl job was begun, as the queue tells. */
  readonly starts = new Map<string, number[]>();
  /** When each crawl job had ended, as the queue told; not those that ended while it could not tell. */
  readonly ended = new Map<string, number>();
  readonly stalled = new Set<string>();

  private constructor(
    readonly options: LabOptions,
    readonly servers: Servers,
    readonly origin: Origin,
    readonly folder: string,
    readonly env: Env,
    /** The producer's, which also looks and reads. */
    readonly app: App,
    events: QueueEvents,
    private readonly closer: Closer,
  ) {
    this.random = randomOf(options.seed);
    events.on('active', ({ jobId }) => {
      this.starts.set(jobId, [...(this.starts.get(jobId) ?? []), Date.now()]);
    });
    const end = ({ jobId }: { jobId: string }) => void this.ended.set(jobId, Date.now());
    events.on('completed', end).on('failed', end);
    events.on('stalled', ({ jobId }) => void this.stalled.add(jobId));
  }

  static async start(options: LabOptions): Promise<Lab> {
    const closer = new Closer();
    try {
      const servers = closer.add('servers', await Servers.start(), (one) => one[Symbol.asyncDispose]());
      const origin = closer.add('origin', await Origin.start(options), (one) => one[Symbol.asyncDispose]());
      const folder = closer.add('objects', await mkdtemp(join(tmpdir(), 'hc-chaos-objects-')), (path) =>
        rm(path, { recursive: true, force: true }),
      );
      const env: Env = {
        ...servers.stack.env,
        QUEUE_BACKEND: options.backend,
        STORAGE_URL: `file:${folder}`,
        FETCH_ALLOW: `127.0.0.1/32:${origin.port}`,
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

  /** Asks the queue once, and remembers what was taken. What is refused is counted, and left. */
  async offer(urls: readonly string[], { tenantId = 'acme', force = false } = {}): Promise<Accepted[]> {
    const payloads = urls.map((url) => ({ v: 1 as const, tenantId, url, ...(force ? { force } : {}) }));
    try {
      const ids = await this.app.queues.enqueue(crawlQueue, payloads);
      const at = Date.now();
      const taken = ids.map((id, i) => ({ id, tenantId, url: urls[i] as string, at }));
      this.accepted.push(...taken);
      return taken;
    } catch (error) {
      if (!(error instanceof QueueUnavailableError)) throw error;
      this.refused += urls.length;
      return [];
    }
  }

  /** Enqueues all of them, as a producer does that asks again where it is refused. */
  async enqueue(urls: readonly string[], options: { tenantId?: string; force?: boolean } = {}): Promise<void> {
    for (let from = 0; from < urls.length; from += AT_ONCE) {
      const batch = urls.slice(from, from + AT_ONCE);
      await until('the queue to take jobs', async () => (await this.offer(batch, options)).length > 0, ACCEPT_MS);
    }
  }

  /** Resolves when the process takes jobs. */
  async worker(options: WorkerOptions = {}): Promise<WorkerProcess> {
    const worker = this.spawn(options);
    await worker.working;
    return worker;
  }

  /** As `worker`, for a process that may die before it says anything. */
  spawn({ dieAt, queues, env = {}, execArgv = [], onLine }: WorkerOptions = {}): WorkerProcess {
    const child = fork(WORKER, {
      env: {
        PATH: process.env.PATH,
        ...this.env,
        ...env,
        ...(dieAt ? { [DIE_AT]: dieAt } : {}),
        ...(queues ? { CHAOS_QUEUES: queues.join() } : {}),
      },
      execArgv: [...execArgv],
      stdio: ['ignore', onLine ? 'pipe' : 'inherit', 'inherit', 'ipc'],
    });
    if (onLine && child.stdout) createInterface(child.stdout).on('line', onLine);
    const worker = new WorkerProcess(child);
    this.workers.add(worker);
    worker.ended.then(() => this.workers.delete(worker));
    return worker;
  }

  async workersOf(count: number, options: WorkerOptions = {}): Promise<WorkerProcess[]> {
    return Promise.all(Array.from({ length: count }, () => this.worker(options)));
  }

  /** `kill -9`, and a note of it. */
  async kill(worker: WorkerProcess): Promise<void> {
    this.kills.push(Date.now());
    await worker.kill();
  }

  /** One of them, by chance. */
  pick<T>(all: Iterable<T>): T {
    const list = [...all];
    return list[Math.floor(this.random() * list.length)] as T;
  }

  /** Resolves when no job waits, runs or is put off, and the embeddings are done too. */
  async settled(ms = 5 * 60_000): Promise<void> {
    const idle = async () => {
      const counts = await Promise.all((['crawl', 'embedding'] as const).map((name) => this.app.queues.counts(name)));
      return counts.every(({ waiting, prioritized, active, delayed, paused }) => {
        return !waiting && !prioritized && !active && !delayed && !paused;
      });
    };
    for (const end = Date.now() + ms; ; ) {
      await until('the queues to be empty', idle, Math.max(1, end - Date.now()));
      // Between the end of a crawl job and its embedding nothing lies; but counts of two queues are two moments.
      await pause(100);
      if (await idle().catch(() => false)) return;
    }
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
    await Promise.all([...this.workers].map((worker) => worker.kill()));
    await this.closer.close();
  }
}

export class WorkerProcess {
  /** Resolves when it takes jobs, with where it serves its health; rejects when it ends before that. */
  readonly working: Promise<string>;
  /** Exit code, or the signal that ended it. */
  readonly ended: Promise<number | string>;

  constructor(private readonly child: ChildProcess) {
    this.ended = once(child, 'exit').then(([code, signal]) => code ?? signal);
    const said = new Promise<string>((resolve) => {
      child.on('message', (message: FromWorker) => {
        if (message.say === 'working') resolve(message.address);
      });
    });
    const died = this.ended.then((end) => {
      throw new Error(`a worker process ended (${end}) before it worked`);
    });
    this.working = within(START_MS, Promise.race([said, died]), LATE).then((address) => {
      if (address === LATE) throw new Error(`a worker process did not work within ${START_MS} ms`);
      return address;
    });
    this.working.catch(() => undefined); // heard by whoever waits
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  get isAlive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.ended;
  }

  /** SIGTERM. @returns how it ended */
  async stop(): Promise<number | string> {
    this.child.kill('SIGTERM');
    return this.ended;
  }

  /** What it measured since the last time it was asked. */
  async figures(): Promise<WorkerFigures> {
    const told = new Promise<WorkerFigures>((resolve) => {
      const hear = (message: FromWorker) => {
        if (message.say !== 'figures') return;
        this.child.off('message', hear);
        resolve(message.figures);
      };
      this.child.on('message', hear);
    });
    this.child.send('figures');
    const ended = this.ended.then((end) => {
      throw new Error(`a worker process ended (${end}) when it was asked for figures`);
    });
    return Promise.race([told, ended]);
  }
}
