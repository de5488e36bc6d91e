/** PostgreSQL killed, stopped, frozen, full or locked, while jobs come in and a program uses the library. */
import { setTimeout as pause } from 'node:timers/promises';
import { Client } from 'pg';
import { Periodic } from '../../../src/lifecycle.js';
import { until } from '../../support/until.js';
import {
  BOTH,
  type Experiment,
  type Figures,
  hold,
  inLab,
  must,
  mustBeWithin,
  mustNotBe,
  percentile,
  type Trial,
  ViolationError,
} from '../experiment.js';
import { counted, metricsOf } from '../figures.js';
import type { Lab } from '../lab.js';
import { LibraryUse, SteadyJobs } from '../load.js';
import { Callers, type KnownImage } from './callers.js';
import { watchMemory } from './memory-watch.js';
import { away, type Fault, faultOf, mustBeQuick } from './outages.js';

/** Of a worker of a run, in both queues. */
const SLOTS = 10;

/** Where the queue's own connections break, so many ends may be committed without a worker hearing so. */
function unheard({ backend }: Trial, workers: number, times: number): number {
  return backend === 'postgres' ? SLOTS * workers * times : 0;
}

/** A job that was taken before its worker noticed may be told of this much later. */
const TOLD_LATE_MS = 1_000;

/** A crawl whose worker lost PostgreSQL is handed back: whoever is done has spent the one attempt that did it. */
async function attemptsSpared({ accepted, app, origin }: Lab): Promise<void> {
  const urls = new Map(accepted.map(({ id, url }) => [id, url]));
  const ids = [...urls.keys()];
  for (let from = 0; from < ids.length; from += 100) {
    const jobs = await Promise.all(ids.slice(from, from + 100).map((id) => app.queues.get('crawl').getJob(id)));
    for (const job of jobs) {
      const needed = origin.failsFirst(urls.get(job?.id ?? '') ?? '') ? 2 : 1;
      const failures = job?.stacktrace?.map((stack) => stack.split('\n', 1)[0]).join('; ');
      must((job?.attemptsMade ?? 0) <= needed, `I1 job ${job?.id} spent ${job?.attemptsMade} attempts: ${failures}`);
    }
  }
}

/** @returns the figures of one outage, its writes and its reads */
async function withoutPostgres(trial: Trial, lab: Lab, how: 'killed' | 'stopped', library: LibraryUse, ms: number) {
  const { journal } = lab.app.connection;
  const { from, to, found } = await away(lab, faultOf('postgres', how), ms, async () => {
    const noticed = Date.now() + TOLD_LATE_MS;
    await pause(Math.max(TOLD_LATE_MS, ms / 2));
    const until = Date.now();
    const begun = [...lab.starts.values()].flat().filter((at) => at > noticed && at < until).length;
    must(begun === 0, `${begun} jobs were taken by workers that knew PostgreSQL to be away`);
    return (await journal?.pending()) ?? 0;
  });
  const reads = library.readMs(from, to);
  must(reads.length > 0, 'nothing was read during the outage');
  // Where the queue is on PostgreSQL, nothing is journaled.
  must(trial.backend === 'postgres' || found > 0, 'no write was journaled: nothing was tried');
  mustBeQuick(trial, `reads without PostgreSQL, ${how}`, reads);
  trial.say(how);
  return {
    [`${how}: reads`]: reads.length,
    [`${how}: read p99, ms`]: percentile(reads, 0.99),
    [`${how}: read max, ms`]: percentile(reads, 1),
    [`${how}: writes journaled`]: found,
  };
}

const STOPPED: Experiment = {
  id: 'E7',
  title: 'PostgreSQL is killed under load, then shut down at once, and started again',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40 }, async (lab) => {
      const { outageMs, perSecond, processes } = trial.full
        ? { outageMs: 30_000, perSecond: 40, processes: 3 }
        : { outageMs: 4_000, perSecond: 5, processes: 2 };
      const workers = await lab.workersOf(processes);
      // A machine that is busy misses Redis' deadline too: then a read knows nothing, and a write is not journaled.
      const isStrict = trial.full && trial.backend === 'redis';
      const library = await new LibraryUse(lab, { withoutPostgres: !isStrict }).start();
      const jobs = new SteadyJobs(lab, trial.rate ?? perSecond).start();
      const outages: Figures[] = [];
      for (const how of ['killed', 'stopped'] as const) {
        await pause(3_000);
        outages.push(await withoutPostgres(trial, lab, how, library, outageMs));
      }
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
      const unanswered = { 'writes not durable': library.refused, 'reads of nothing': library.unanswered };
      must(
        library.unanswered < library.reads.length / 10,
        `${library.unanswered} reads of durable entries knew nothing`,
      );
      const uncounted = unheard(trial, processes, outages.length);
      const judgement = await lab.check({ metrics: () => lab.metrics(), uncounted });
      return hold(judgement, Object.assign({}, ...outages, unanswered));
    }),
};

const OURS = 'chaos';
const TAKING_MS = 60_000;
const FULL_AGAIN_MS = 250;
const AT_ONCE = 10;

async function connected(lab: Lab): Promise<Client> {
  const client = new Client({ connectionString: lab.servers.stack.env.DATABASE_URL, application_name: OURS });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

/**
 * Every connection that the server allows becomes ours: who had one loses it.
 *
 * @param clients those that are ours already, to which it adds
 */
async function takeAllConnections(lab: Lab, clients: Client[]): Promise<void> {
  for (const end = Date.now() + TAKING_MS; Date.now() < end; ) {
    const more = await Promise.all(Array.from({ length: AT_ONCE }, () => connected(lab).catch(() => null)));
    clients.push(...more.filter((client) => client !== null));
    if (!more.includes(null)) continue;
    if ((await endOthers(clients)) === 0) return;
  }
  throw new Error(`connections of others were still there after ${TAKING_MS} ms`);
}

/** @returns how many there were */
async function endOthers([ours]: readonly Client[]): Promise<number> {
  const { rowCount } = await (ours as Client).query(
    `select pg_terminate_backend(pid) from pg_stat_activity
       where backend_type = 'client backend' and application_name <> $1`,
    [OURS],
  );
  return rowCount ?? 0;
}

/** Who lost a connection would be back before we had it: the workers stand still meanwhile. */
async function whileWorkersStand<T>({ workers }: Lab, work: () => Promise<T>): Promise<T> {
  const standing = [...workers];
  for (const worker of standing) worker.signal('SIGSTOP');
  try {
    return await work();
  } finally {
    for (const worker of standing) worker.signal('SIGCONT');
  }
}

/** Something done to PostgreSQL. A server that answers and cannot do one thing is not away. */
interface Trouble extends Fault {
  readonly isOutage: boolean;
}

const TROUBLES: readonly Trouble[] = [
  { ...faultOf('postgres', 'frozen'), isOutage: true },
  {
    server: 'postgres',
    name: 'full',
    isOutage: true,
    begin: async (lab) => {
      const clients = [await connected(lab)];
      await whileWorkersStand(lab, () => takeAllConnections(lab, clients));
      // Who was just logging in had a connection that the server did not list yet.
      const again = new Periodic(FULL_AGAIN_MS, async () => {
        if ((await endOthers(clients)) > 0) await takeAllConnections(lab, clients);
      }).start();
      return async () => {
        await again.stop();
        await Promise.all(clients.map((client) => client.end()));
      };
    },
  },
  {
    server: 'postgres',
    name: 'locked',
    isOutage: false,
    begin: async (lab) => {
      const client = await connected(lab);
      await client.query('begin; lock table crawl_cache in access exclusive mode');
      return () => client.end();
    },
  },
];

/** Of an image that no producer of the load asks for. */
const KNOWN_CONTENT = 1_000_000;

async function knownImage(lab: Lab): Promise<KnownImage> {
  const url = lab.origin.imageUrl(KNOWN_CONTENT);
  await lab.enqueue([url]);
  return until('the image to be recorded', async () => {
    const [row] = await lab.servers.sql<Omit<KnownImage, 'content'>>(
      `select content_hash as hash, raw_key as "rawKey", thumbnail_key as "thumbnailKey" from crawl_cache where url = $1`,
      [url],
    );
    return row && { content: KNOWN_CONTENT, ...row };
  });
}

/** What a locked table leaves to be done goes on. */
async function lockedFor(lab: Lab, trouble: Trouble, ms: number): Promise<void> {
  const undo = await trouble.begin(lab);
  await pause(ms).finally(undo);
}

async function suffered(trial: Trial, lab: Lab, trouble: Trouble, callers: Callers, ms: number): Promise<Figures> {
  const { name, isOutage } = trouble;
  const { guard } = lab.app.connection.tiers.postgres;
  const failed = async () => counted(await metricsOf(lab.workers), 'hybrid_cache_tier_errors_total', 'tier="postgres"');
  const errorsBefore = await failed();
  let closings = 0;
  const stopListening = guard.onChange((up) => {
    if (!up) closings += 1;
  });
  callers.start();
  if (isOutage) await away(lab, trouble, ms, async () => {});
  else await lockedFor(lab, trouble, ms);
  const slowest = await callers.stop();
  stopListening();
  must((await failed()) > errorsBefore, `${name}: no worker had an error: nothing was tried`);
  if (!isOutage) {
    mustNotBe(trial, `${name}: openings of the breaker, though the server answers`, closings);
    must(callers.kept.faces.length > 0, `${name}: other tables took nothing either`);
  }
  const sorted = [...slowest].sort(([, a], [, b]) => b - a);
  const [[method, worst] = ['none', 0]] = sorted;
  trial.say(`${name}: ${sorted.map(([call, took]) => `${call} ${Math.round(took)} ms`).join(', ')}`);
  mustBeWithin(trial, `${name}: milliseconds of the slowest call (${method})`, worst, 3_000 + 1_000);
  return { [`slowest call, ${name}, ms`]: `${Math.round(worst)} (${method})` };
}

/** MiB that a worker may have grown by, from the first quarter of the run to the last. */
const GROWTH_MIB = 64;

const UNABLE: Experiment = {
  id: 'E8',
  title: 'PostgreSQL is frozen, then full of connections, then has a table locked',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40 }, async (lab) => {
      const { faultMs, perSecond } = trial.full ? { faultMs: 30_000, perSecond: 30 } : { faultMs: 5_000, perSecond: 4 };
      const workers = await lab.workersOf(2);
      const known = await knownImage(lab);
      const jobs = new SteadyJobs(lab, trial.rate ?? perSecond).start();
      await pause(trial.full ? 30_000 : 3_000);
      const memory = watchMemory(workers);
      const figures: Record<string, number | string> = {};
      const all = TROUBLES.map((trouble) => ({ trouble, callers: new Callers(lab, known, trouble.name) }));
      for (const { trouble, callers } of all) {
        Object.assign(figures, await suffered(trial, lab, trouble, callers, faultMs));
      }
      await pause(trial.full ? 30_000 : 3_000);
      const grown = await memory.stop();
      await jobs.stop();
      await lab.settled(10 * 60_000);
      must(
        workers.every(({ isAlive }) => isAlive),
        'a worker process died',
      );
      await attemptsSpared(lab);
      const missing = (await Promise.all(all.map(({ callers }) => callers.missing()))).flat();
      must(
        missing.length === 0,
        `I4 ${missing.length} writes were called durable, and PostgreSQL has not ${missing[0]}`,
      );
      const kept = all.reduce((sum, { callers: { kept } }) => sum + kept.faces.length + kept.records.length, 0);
      must(kept > 0, 'no write was called durable: nothing was tried');
      // Frozen and full.
      const uncounted = unheard(trial, workers.length, 2);
      const judgement = await lab.check({ metrics: () => lab.metrics(), uncounted });
      mustBeWithin(trial, 'what a worker grew by in MiB', grown, GROWTH_MIB);
      return hold(judgement, { ...figures, 'writes looked up': kept, 'memory grown, MiB': grown });
    }),
};

export const POSTGRES_EXPERIMENTS: readonly Experiment[] = [STOPPED, UNABLE];
