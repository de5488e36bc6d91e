/** What experiments share in which a server is away under load: the load, the fault, and what the load says of it. */
import { setTimeout as pause } from 'node:timers/promises';
import { factsOf } from '../../../src/redis-info.js';
import { until } from '../../support/until.js';
import { type Figures, must, mustBeWithin, mustNotBe, percentile, type Trial, ViolationError } from '../experiment.js';
import { counted, metricsOf } from '../figures.js';
import type { Lab } from '../lab.js';
import { LibraryUse, SteadyJobs } from '../load.js';
import type { Accepted } from '../producer.js';
import type { ServerName } from '../servers.js';
import type { WorkerFigures } from '../worker-messages.js';
import type { WorkerProcess } from '../worker-process.js';

/** What a Redis that appends to its file may lose with its process where its disk is slow, and it held back what it appends. */
const HELD_BACK_MS = 2_000;
/** Jobs at once, just before a fault: so many that some are under way, and, where they go on, done within a second or two. */
const BURST = { redis: 40, postgres: 20 };
const WARM_JOBS = 20;

export interface Load {
  readonly jobs: SteadyJobs;
  readonly library: LibraryUse;
  /** Resolves when nothing is asked for any more. */
  stop(): Promise<void>;
}

/** Workers, steady jobs, and a program that uses the library. */
export async function underLoad(
  { full, rate }: Trial,
  lab: Lab,
  perSecond: number,
  { withoutPostgres = false, workers = full ? 3 : 2 } = {},
): Promise<Load> {
  await lab.workersOf(workers);
  const library = await new LibraryUse(lab, { withoutPostgres }).start();
  const jobs = new SteadyJobs(lab, rate ?? perSecond).start();
  await until('the workers to be warm', () => lab.ended.size >= WARM_JOBS, 120_000);
  return {
    jobs,
    library,
    stop: async () => {
      await jobs.stop();
      await library.stop();
    },
  };
}

/** Resolves at a moment at which crawl jobs run. */
export async function inFlight({ app, options }: Lab, { jobs }: Load): Promise<void> {
  jobs.burst(BURST[options.backend]);
  await until('jobs to be under way', async () => ((await app.queues.counts('crawl')).active ?? 0) > 2);
}

/** Time in which a Redis that then died may have lost what it took. */
export interface Loss {
  readonly from: number;
  readonly to: number;
}

/** Kills Redis. @returns which accepted jobs it may have lost, where it held them */
export async function killRedis({ servers }: Lab): Promise<Loss> {
  const isBehind = (await servers.redis(async (redis) => factsOf(await redis.info()).heldBackBytes)) > 0;
  const at = Date.now();
  await servers.kill('redis');
  await pause(100); // what it said before that is heard by now
  // What it had appended by then is in the system's hands, and outlives its process.
  return { from: at - (isBehind ? HELD_BACK_MS : 0), to: Date.now() };
}

/** With the queue on PostgreSQL, a Redis that dies loses no job. */
export function lostIn({ options }: Lab, losses: readonly Loss[]): (job: Accepted) => boolean {
  if (options.backend === 'postgres') return () => false;
  return ({ at }) => losses.some(({ from, to }) => at >= from && at <= to);
}

/** Something done to a server by which it is away, and undone by what it resolves with. */
export interface Fault {
  readonly server: ServerName;
  readonly name: string;
  begin(lab: Lab): Promise<() => Promise<unknown>>;
}

/** `stopped` is PostgreSQL's immediate shutdown: its clients are told. */
export function faultOf(server: ServerName, name: 'killed' | 'frozen' | 'stopped'): Fault {
  return {
    server,
    name,
    begin: async ({ servers }) => {
      if (name === 'frozen') {
        await servers.freeze(server);
        return () => servers.thaw(server);
      }
      await servers.kill(server, name === 'stopped' ? 'SIGQUIT' : 'SIGKILL');
      return () => servers.restart(server);
    },
  };
}

/** What a read may take while a server is away, in milliseconds. */
const READ_MS = 100;
/** Until a frozen server is noticed: a call's deadline, and time for a busy machine to say so. */
const NOTICE_MS = 20_000;

/** Resolves when every worker and the producer see the server so. */
async function seen({ app, workers }: Lab, server: ServerName, isUp: boolean): Promise<void> {
  await until(
    `all to see ${server} ${isUp ? 'up' : 'down'}`,
    async () => {
      const texts = await metricsOf(workers);
      const said = texts.map((text) => counted([text], 'hybrid_cache_tier_up', `tier="${server}"`) === 1);
      const all = [app.connection.tiers[server]?.guard.isUp, ...said];
      if (!all.every((up) => up === isUp)) throw new Error(`the producer and the workers see ${all.join()}`);
      return true;
    },
    NOTICE_MS,
  );
}

export interface Away<T> {
  /** When it was away, in milliseconds since the epoch. */
  readonly from: number;
  readonly to: number;
  /** What the workers measured meanwhile. */
  readonly during: readonly WorkerFigures[];
  /** What `meanwhile` found. */
  readonly found: T;
}

/**
 * A server is away for this long: everybody notices it, and uses the server again when it is back. Whoever has nothing to
 * ask of it does not notice: jobs have to be under way, or go on without it.
 */
export async function away<T>(lab: Lab, fault: Fault, ms: number, meanwhile: () => Promise<T>): Promise<Away<T>> {
  const workers = [...lab.workers];
  await Promise.all(workers.map((worker) => worker.figures())); // from now on
  const from = Date.now();
  const undo = await fault.begin(lab);
  let [found, during, to]: [T | undefined, WorkerFigures[], number] = [undefined, [], 0];
  try {
    await seen(lab, fault.server, false);
    found = await meanwhile();
    await pause(Math.max(0, from + ms - Date.now()));
    during = await Promise.all(workers.map((worker) => worker.figures()));
  } finally {
    await undo();
    to = Date.now();
  }
  await seen(lab, fault.server, true);
  return { from, to, during, found: found as T };
}

export interface Outage {
  /** When Redis was away, in milliseconds since the epoch. */
  readonly from: number;
  readonly to: number;
  readonly losses: readonly Loss[];
  readonly figures: Figures;
}

export interface RedisFault {
  readonly how: 'killed' | 'frozen';
  readonly ms: number;
  /** Done to a dead Redis, before it comes back. */
  readonly whileDead?: () => Promise<unknown>;
}

/** Redis goes while jobs are under way and comes back later; everybody must have noticed, and work again. */
export async function redisOutage(trial: Trial, lab: Lab, load: Load, fault: RedisFault): Promise<Outage> {
  const workers = [...lab.workers];
  await inFlight(lab, load);
  const before = { refused: lab.refused, accepted: lab.accepted.length, ended: lab.ended.size };
  const losses: Loss[] = [];
  const begin = async () => {
    if (fault.how === 'frozen') return faultOf('redis', 'frozen').begin(lab);
    losses.push(await killRedis(lab));
    await fault.whileDead?.();
    return () => lab.servers.restart('redis');
  };
  const { from, to, during } = await away(lab, { server: 'redis', name: fault.how, begin }, fault.ms, async () => {});
  const by = { refused: lab.refused, accepted: lab.accepted.length, ended: lab.ended.size };
  const refused = by.refused - before.refused;
  if (trial.backend === 'redis') {
    must(refused > 0, 'no job was refused without the store of the queue');
  } else {
    must(by.accepted > before.accepted, 'no job was accepted without the cache');
    must(by.ended > before.ended, 'no job ended without the cache');
    mustNotBe(trial, 'jobs that were refused without the cache', refused);
  }
  await workAgain(workers, Object.fromEntries(during.map(({ metrics }, i) => [workers[i]?.pid, metrics])));
  const name = `${fault.how} ${Math.round(fault.ms / 1000)} s`;
  trial.say(`${name}: ${refused} refused`);
  return { from, to, losses, figures: readsMeanwhile(trial, load, { name, from, to, during }) };
}

/**
 * Reads that go on without a server: at full size their p99 is judged. In CI, where few are read on a busy machine, it is
 * the median: that of reads which each wait for their deadline is noticed.
 */
export function mustBeQuick({ full }: Trial, what: string, sortedMs: readonly number[]): void {
  const [share, name] = full ? [0.99, 'p99'] : [0.5, 'median'];
  const ms = percentile(sortedMs, share);
  must(ms <= READ_MS, `the ${name} of ${what} is ${Math.round(ms)} ms, and not at most ${READ_MS}`);
}

/** What the load and the workers felt of an outage. */
export function readsMeanwhile(
  trial: Trial,
  { library }: Load,
  { name, from, to, during }: Omit<Away<unknown>, 'found'> & { readonly name: string },
): Figures {
  const lag = Math.max(...during.map(({ lagP99Ms }) => lagP99Ms));
  const reads = library.readMs(from, to);
  must(reads.length > 0, 'nothing was read meanwhile');
  mustBeQuick(trial, `reads, ${name}`, reads);
  // Where other runs take the cores, it says nothing.
  if (trial.full) mustBeWithin(trial, `the p99 of a worker's lag, ${name}, in ms`, lag, 50);
  return {
    [`${name}: reads`]: reads.length,
    [`${name}: read p99, ms`]: percentile(reads, 0.99),
    [`${name}: read max, ms`]: percentile(reads, 1),
    [`${name}: lag p99, ms`]: lag,
  };
}

/** Every worker ends jobs again, beyond those of `before`: the text of its metrics by its process. */
export async function workAgain(
  workers: readonly WorkerProcess[],
  before: Readonly<Record<number, string>>,
): Promise<void> {
  const crawled = (metrics: string) => counted([metrics], 'crawl_images_total');
  await until(
    'every worker to end jobs again',
    async () => {
      const now = await Promise.all(workers.map((worker) => worker.metrics()));
      return now.every((metrics, i) => crawled(metrics) > crawled(before[workers[i]?.pid ?? 0] ?? ''));
    },
    60_000,
  );
}

const RATE_MS = 3_000;
const FULL = 0.9;

/** How the rate of jobs came back after each outage: judged at full size. The load has stopped at `to`. */
export async function ratesOf(
  trial: Trial,
  lab: Lab,
  { jobs: { perSecond } }: Load,
  outages: readonly Outage[],
  times: { readonly from: number; readonly to: number },
): Promise<Figures> {
  const finished = await finishedTimes(lab);
  const rate = (from: number, to: number) =>
    finished.filter((at) => at >= from && at < to).length / ((to - from) / 1000);
  const before = rate(times.from, outages[0]?.from ?? times.to);
  // Before an outage there was a burst; after it no more may be asked for than goes on steadily.
  const full = FULL * Math.min(before, perSecond);
  const seconds = outages.map(({ to }) => {
    for (let from = to; from + RATE_MS <= times.to; from += 250) {
      if (rate(from, from + RATE_MS) >= full) return (from - to) / 1000;
    }
    return Number.POSITIVE_INFINITY;
  });
  const slowest = Math.max(...seconds);
  const last = rate(Math.max(outages.at(-1)?.to ?? 0, times.to - 10_000), times.to);
  trial.say(`${before.toFixed(1)} jobs/s before, ${last.toFixed(1)} at the end`);
  // In CI hardly any time is left for it.
  if (trial.full) mustBeWithin(trial, 'seconds until the full rate', slowest, 10);
  return { 'jobs/s before': before, 'jobs/s at the end': last, 'full rate after, s': slowest };
}

/** When each job ended, by the clock of its worker; of those that are gone, when the queue told so. */
async function finishedTimes({ accepted, app, ended }: Lab): Promise<number[]> {
  const queue = app.queues.get('crawl');
  const ids = [...new Set(accepted.map(({ id }) => id))];
  const times: number[] = [];
  for (let from = 0; from < ids.length; from += 200) {
    const some = ids.slice(from, from + 200);
    const jobs = await Promise.all(some.map((id) => queue.getJob(id)));
    times.push(...some.flatMap((id, i) => jobs[i]?.finishedOn ?? ended.get(id) ?? []));
  }
  return times;
}

/** @throws {ViolationError} where what the library promised does not hold */
export async function holdLibrary({ library }: Load): Promise<Figures> {
  const violations = await library.violations();
  if (violations.length > 0) throw new ViolationError(violations);
  return { reads: library.reads.length, 'reads unanswered': library.unanswered, 'writes refused': library.refused };
}

const EMBED_MS = 120_000;

/** What the queue forgot to embed, the sweep of a new worker finds. */
export async function embedAll(lab: Lab): Promise<void> {
  const [oldest] = lab.workers;
  await oldest?.stop();
  await lab.worker();
  const missing = `select count(*)::int as count from crawl_content_cache as content where not exists (
    select from face_embeddings_cache as face
    where face.tenant_id = content.tenant_id and face.content_hash = content.content_hash)`;
  const isDone = async () => (await lab.servers.sql<{ count: number }>(missing))[0]?.count === 0;
  await until('every image to be embedded', isDone, EMBED_MS);
}
