/** PostgreSQL killed, frozen, full or locked, while jobs come in and a program uses the library. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { Client } from 'pg';
import { reasonOf } from '../../../src/errors.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { until } from '../../support/until.js';
import {
  BOTH,
  type Experiment,
  type Figures,
  hold,
  inLab,
  must,
  mustBeWithin,
  percentile,
  type Trial,
  ViolationError,
} from '../experiment.js';
import { counted, metricsOf } from '../figures.js';
import type { Lab } from '../lab.js';
import { LibraryUse, SteadyJobs } from '../load.js';

/** Until a frozen server is noticed: a call's deadline, and time for a busy machine to say so. */
const NOTICE_MS = 20_000;
/** A job that was taken before its worker noticed may be told of this much later. */
const TOLD_LATE_MS = 1_000;

async function workersSee(lab: Lab, up: 0 | 1): Promise<void> {
  await until(
    `all workers to see PostgreSQL ${up ? 'up' : 'down'}`,
    async () => {
      const texts = await metricsOf(lab.workers);
      return texts.every((text) => counted([text], 'hybrid_cache_tier_up', 'tier="postgres"') === up);
    },
    NOTICE_MS,
  );
}

/** A crawl whose worker lost PostgreSQL is handed back: whoever is done has spent the one attempt that did it. */
async function attemptsSpared({ accepted, app }: Lab): Promise<void> {
  const ids = [...new Set(accepted.map(({ id }) => id))];
  for (let from = 0; from < ids.length; from += 100) {
    const jobs = await Promise.all(ids.slice(from, from + 100).map((id) => app.queues.get('crawl').getJob(id)));
    for (const job of jobs) {
      must((job?.attemptsMade ?? 0) <= 1, `I1 job ${job?.id} spent ${job?.attemptsMade} attempts`);
    }
  }
}

const STOPPED: Experiment = {
  id: 'E7',
  title: 'PostgreSQL is killed under load, and started again',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40 }, async (lab) => {
      const { outageMs, perSecond, processes } = trial.full
        ? { outageMs: 30_000, perSecond: 40, processes: 3 }
        : { outageMs: 5_000, perSecond: 10, processes: 2 };
      const workers = await lab.workersOf(processes);
      // A machine that is busy misses Redis' deadline too: then a read knows nothing, and a write is not journaled.
      const isStrict = trial.full && trial.backend === 'redis';
      const library = await new LibraryUse(lab, { withoutPostgres: !isStrict }).start();
      const jobs = new SteadyJobs(lab, perSecond).start();
      await pause(3_000);
      const outage = await killed(lab, outageMs);
      await pause(3_000);
      await jobs.stop();
      await library.stop();
      await lab.settled(10 * 60_000);
      must(
        workers.every(({ isAlive }) => isAlive),
        'a worker process died',
      );
      await attemptsSpared(lab);
      const broken = await library.violations();
      if (broken.length > 0) throw new ViolationError(broken);
      const reads = library.readMs(outage.from, outage.to);
      const p99 = percentile(reads, 0.99);
      const figures = hold(await lab.check(), {
        'reads meanwhile': reads.length,
        'p99 of them, ms': p99,
        'max of them, ms': percentile(reads, 1),
        'writes journaled': outage.journaled,
        'writes not durable': library.refused,
        'reads of nothing': library.unanswered,
      });
      must(reads.length > 0, 'nothing was read during the outage');
      must(
        library.unanswered < library.reads.length / 10,
        `${library.unanswered} reads of durable entries knew nothing`,
      );
      if (trial.backend === 'redis') {
        must(outage.journaled > 0, 'no write was journaled: nothing was tried');
      }
      mustBeWithin(trial, 'the p99 of reads without PostgreSQL', p99, 100);
      return figures;
    }),
};

/** @returns when it was, and how many writes the journal held at its end */
async function killed(lab: Lab, ms: number): Promise<{ from: number; to: number; journaled: number }> {
  const from = Date.now();
  await lab.servers.kill('postgres');
  await workersSee(lab, 0);
  const noticed = Date.now() + TOLD_LATE_MS;
  await pause(Math.max(TOLD_LATE_MS, from + ms - Date.now()));
  must(!lab.app.connection.tiers.postgres.guard.isUp, 'the producer did not notice that PostgreSQL is away');
  const journaled = (await lab.app.connection.journal?.pending()) ?? 0;
  const to = Date.now();
  const begun = [...lab.starts.values()].flat().filter((at) => at > noticed && at < to).length;
  must(begun === 0, `${begun} jobs were taken by workers that knew PostgreSQL to be away`);
  await lab.servers.restart('postgres');
  await workersSee(lab, 1);
  return { from, to, journaled };
}

interface Call {
  readonly method: string;
  readonly ms: number;
}

/** Of each method; more than the library has statements under way at once, so that some wait for their turn. */
const CALLERS = 6;
/** What comes at once goes into one statement. */
const APART_MS = 150;

/** Callers of the library, each of whom waits for its answer. None is ever told of an error. */
class Callers {
  readonly #known: { readonly hash: string; readonly rawKey: string; readonly thumbnailKey: string };
  readonly #calls: Call[] = [];
  readonly #thrown: string[] = [];
  #running: Promise<unknown> = Promise.resolve();
  #stopped = false;
  #count = 0;
  facesKept = 0;

  constructor(
    private readonly lab: Lab,
    known: { hash: string; rawKey: string; thumbnailKey: string },
  ) {
    this.#known = known;
  }

  start(): this {
    this.#running = Promise.all(
      Object.entries(this.#methods()).flatMap(([name, call]) =>
        Array.from({ length: CALLERS }, (_, i) => this.#loop(name, call, i * APART_MS)),
      ),
    );
    return this;
  }

  /** @returns the slowest call of each method, in milliseconds */
  async stop(): Promise<Map<string, number>> {
    this.#stopped = true;
    await this.#running;
    if (this.#thrown.length > 0) throw new ViolationError(this.#thrown.slice(0, 5));
    const slowest = new Map<string, number>();
    for (const { method, ms } of this.#calls) slowest.set(method, Math.max(ms, slowest.get(method) ?? 0));
    return slowest;
  }

  #methods(): Record<string, () => Promise<unknown>> {
    const { cache } = this.lab.app;
    const { hash, ...keys } = this.#known;
    const unknown = () => sha256(`unknown ${this.#count++}`);
    const newUrl = () => this.lab.origin.imageUrl(0, 1_000_000 + this.#count++);
    const face = { bbox: [0, 0, 1, 1] as [number, number, number, number], det_score: 1, embedding: [1, 2, 3] };
    return {
      getCachedFaceEmbeddings: () => cache.getCachedFaceEmbeddings(unknown(), 'library'),
      cacheFaceEmbeddings: async () => {
        if (await cache.cacheFaceEmbeddings(unknown(), 'library', [face])) this.facesKept += 1;
      },
      shouldSkipUrl: () => cache.shouldSkipUrl(newUrl(), 'acme'),
      shouldSkipCrawledImage: () => cache.shouldSkipCrawledImage(newUrl(), hash, 'acme'),
      storeCrawledImage: () => cache.storeCrawledImage(newUrl(), hash, keys, 'acme'),
      findNearDuplicates: () => cache.findNearDuplicates('00ff00ff00ff00ff', 'acme'),
    };
  }

  async #loop(method: string, call: () => Promise<unknown>, afterMs: number): Promise<void> {
    await pause(afterMs);
    while (!this.#stopped) {
      const started = performance.now();
      try {
        await call();
      } catch (error) {
        this.#thrown.push(`${method} threw ${reasonOf(error)}`);
      }
      this.#calls.push({ method, ms: performance.now() - started });
      await pause(50);
    }
  }
}

/** Something done to PostgreSQL, and undone by what it resolves with. */
interface Fault {
  readonly name: string;
  /** Whether the breaker is to open; a server that answers and cannot do one thing is not away. */
  readonly isOutage: boolean;
  begin(lab: Lab): Promise<() => Promise<void>>;
}

const OURS = 'chaos';
const TAKING_MS = 60_000;

async function connected(lab: Lab): Promise<Client> {
  const client = new Client({ connectionString: lab.servers.stack.env.DATABASE_URL, application_name: OURS });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

/** Every connection that the server allows, ours: who had one loses it. */
async function takeAllConnections(lab: Lab): Promise<Client[]> {
  const first = await connected(lab);
  const clients = [first];
  for (const end = Date.now() + TAKING_MS; Date.now() < end; ) {
    const more = await Promise.all(Array.from({ length: 10 }, () => connected(lab).catch(() => null)));
    clients.push(...more.filter((client) => client !== null));
    if (!more.includes(null)) continue;
    const { rowCount } = await first.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
         where backend_type = 'client backend' and application_name <> $1`,
      [OURS],
    );
    if (rowCount === 0) return clients;
  }
  throw new Error(`connections of others were still there after ${TAKING_MS} ms`);
}

const FAULTS: readonly Fault[] = [
  {
    name: 'frozen',
    isOutage: true,
    begin: async ({ servers }) => {
      await servers.freeze('postgres');
      return () => servers.thaw('postgres');
    },
  },
  {
    name: 'full',
    isOutage: true,
    begin: async (lab) => {
      const clients = await takeAllConnections(lab);
      return async () => {
        await Promise.all(clients.map((client) => client.end()));
      };
    },
  },
  {
    name: 'locked',
    isOutage: false,
    begin: async (lab) => {
      const client = await connected(lab);
      await client.query('begin; lock table crawl_cache in access exclusive mode');
      return () => client.end();
    },
  },
];

const UNABLE: Experiment = {
  id: 'E8',
  title: 'PostgreSQL is frozen, then full of connections, then has a table locked',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40 }, async (lab) => {
      const { faultMs, perSecond } = trial.full ? { faultMs: 30_000, perSecond: 30 } : { faultMs: 5_000, perSecond: 8 };
      const workers = await lab.workersOf(2);
      const jobs = new SteadyJobs(lab, perSecond).start();
      await pause(trial.full ? 30_000 : 3_000);
      const before = await memoryOf(lab);
      const figures: Record<string, number | string> = {};
      for (const fault of FAULTS) {
        Object.assign(figures, await suffered(trial, lab, fault, faultMs));
      }
      await pause(trial.full ? 10_000 : 1_000);
      await jobs.stop();
      await lab.settled(10 * 60_000);
      must(
        workers.every(({ isAlive }) => isAlive),
        'a worker process died',
      );
      await attemptsSpared(lab);
      const grown = Math.max(...(await memoryOf(lab)).map((mib, i) => mib - (before[i] as number)));
      const all = hold(await lab.check(), { ...figures, 'memory grown, MiB': grown });
      mustBeWithin(trial, 'what a worker grew by in MiB', grown, 64);
      return all;
    }),
};

/** MiB of each worker. */
async function memoryOf({ workers }: Lab): Promise<number[]> {
  return Promise.all([...workers].map(async (worker) => (await worker.figures()).rssBytes / 2 ** 20));
}

async function knownImage(lab: Lab): Promise<{ hash: string; rawKey: string; thumbnailKey: string }> {
  return until('a first image to be recorded', async () => {
    const rows = await lab.servers.sql<{ hash: string; rawKey: string; thumbnailKey: string }>(
      `select content_hash as hash, raw_key as "rawKey", thumbnail_key as "thumbnailKey"
         from crawl_content_cache where tenant_id = 'acme' order by stored_at limit 1`,
    );
    return rows[0];
  });
}

async function suffered(trial: Trial, lab: Lab, fault: Fault, ms: number): Promise<Figures> {
  const { guard } = lab.app.connection.tiers.postgres;
  const callers = new Callers(lab, await knownImage(lab));
  const failed = async () => counted(await metricsOf(lab.workers), 'hybrid_cache_tier_errors_total', 'tier="postgres"');
  const errorsBefore = await failed();
  let closings = 0;
  const stopListening = guard.onChange((up) => {
    if (!up) closings += 1;
  });
  const undo = await fault.begin(lab);
  const kept = callers.start().facesKept;
  const started = Date.now();
  let slowest: Map<string, number>;
  try {
    if (fault.isOutage) {
      await workersSee(lab, 0);
      await until('the producer to notice', () => !guard.isUp, NOTICE_MS);
    }
    await pause(Math.max(0, started + ms - Date.now()));
  } finally {
    await undo();
  }
  slowest = await callers.stop();
  stopListening();
  await workersSee(lab, 1);
  await until('the producer to see PostgreSQL again', () => guard.isUp, NOTICE_MS);
  must((await failed()) > errorsBefore, `${fault.name}: no worker had an error: nothing was tried`);
  if (!fault.isOutage) {
    mustBeWithin(trial, `${fault.name}: openings of the breaker, though the server answers,`, closings, 0);
    must(callers.facesKept > kept, `${fault.name}: other tables took nothing either`);
  }
  const sorted = [...slowest].sort(([, a], [, b]) => b - a);
  const [[method, worst] = ['none', 0]] = sorted;
  trial.say(`${fault.name}: ${sorted.map(([name, took]) => `${name} ${Math.round(took)} ms`).join(', ')}`);
  mustBeWithin(trial, `${fault.name}: milliseconds of the slowest call (${method})`, worst, 3_000 + 1_000);
  return { [`slowest call, ${fault.name}, ms`]: `${Math.round(worst)} (${method})` };
}

export const POSTGRES_EXPERIMENTS: readonly Experiment[] = [STOPPED, UNABLE];
