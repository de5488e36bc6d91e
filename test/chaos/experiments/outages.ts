/** What experiments share in which a server is away under load: the load, the fault, and what the load says of it. */
import { setTimeout as pause } from 'node:timers/promises';
import { factsOf } from '../../../src/redis-info.js';
import { until } from '../../support/until.js';
import { type Figures, must, mustBeWithin, percentile, type Trial, ViolationError } from '../experiment.js';
import { counted } from '../figures.js';
import type { Accepted, Lab } from '../lab.js';
import { LibraryUse, SteadyJobs } from '../load.js';
import type { WorkerProcess } from '../worker-process.js';

/** What a Redis that appends to its file every second may lose, and where its disk is slow; see ARCHITECTURE.md. */
const LOSS_MS = 1_000;
const SLOW_LOSS_MS = 2_000;
/** Jobs at once, just before a fault: so many that some are under way. */
const BURST = 40;
const WARM_JOBS = 30;

export interface Load {
  readonly jobs: SteadyJobs;
  readonly library: LibraryUse;
  /** Resolves when nothing is asked for any more. */
  stop(): Promise<void>;
}

/** Three workers, steady jobs, and a program that uses the library. */
export async function underLoad(lab: Lab, perSecond: number, withoutPostgres = false): Promise<Load> {
  await lab.workersOf(3);
  const library = await new LibraryUse(lab, { withoutPostgres }).start();
  const jobs = new SteadyJobs(lab, perSecond).start();
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
export async function inFlight({ app }: Lab, { jobs }: Load): Promise<void> {
  jobs.burst(BURST);
  await until('jobs to be under way', async () => ((await app.queues.counts('crawl')).active ?? 0) > 2);
}

/** Time in which a Redis that then died may have lost what it took. */
export interface Loss {
  readonly from: number;
  readonly to: number;
}

/** Kills Redis. @returns which accepted jobs it may have lost, where it held them */
export async function killRedis({ servers }: Lab): Promise<Loss> {
  const isBehind = (await servers.redis(async (redis) => factsOf(await redis.info()).unwrittenBytes)) > 0;
  const at = Date.now();
  await servers.kill('redis');
  await pause(100); // what it said before that is heard by now
  return { from: at - (isBehind ? SLOW_LOSS_MS : LOSS_MS), to: Date.now() };
}

/** With the queue on PostgreSQL, a Redis that dies loses no job. */
export function lostIn({ options }: Lab, losses: readonly Loss[]): (job: Accepted) => boolean {
  if (options.backend === 'postgres') return () => false;
  return ({ at }) => losses.some(({ from, to }) => at >= from && at <= to);
}

export interface Outage {
  /** When Redis was away, in milliseconds since the epoch. */
  readonly from: number;
  readonly to: number;
  readonly losses: readonly Loss[];
  readonly figures: Figures;
}

/** Redis goes while jobs are under way and comes back after `ms`; everybody must have noticed, and work again. */
export async function redisOutage(
  trial: Trial,
  lab: Lab,
  load: Load,
  how: 'killed' | 'frozen',
  ms: number,
): Promise<Outage> {
  const workers = [...lab.workers];
  const guard = lab.app.connection.tiers.redis?.guard;
  await inFlight(lab, load);
  await Promise.all(workers.map((worker) => worker.figures())); // from now on
  const from = Date.now();
  const before = { refused: lab.refused, accepted: lab.accepted.length, ended: lab.ended.size };
  const losses = how === 'killed' ? [await killRedis(lab)] : [];
  if (how === 'frozen') await lab.servers.freeze('redis');
  await pause(ms);
  const isUp = guard?.isUp;
  const during = await Promise.all(workers.map((worker) => worker.figures()));
  const by = { refused: lab.refused, accepted: lab.accepted.length, ended: lab.ended.size };
  await (how === 'killed' ? lab.servers.restart('redis') : lab.servers.thaw('redis'));
  const to = Date.now();
  must(isUp === false, 'the library did not notice that Redis was away');
  for (const { metrics } of during) {
    must(counted([metrics], 'hybrid_cache_tier_up', 'tier="redis"') === 0, 'a worker did not notice it');
  }
  const refused = by.refused - before.refused;
  if (trial.backend === 'redis') {
    must(refused > 0, 'no job was refused without the store of the queue');
  } else {
    must(by.accepted > before.accepted, 'no job was accepted without the cache');
    must(by.ended > before.ended, 'no job ended without the cache');
    mustBeWithin(trial, 'the number of jobs that were refused without the cache', refused, 0);
  }
  await workAgain(workers, Object.fromEntries(during.map(({ metrics }, i) => [workers[i]?.pid, metrics])));
  const lag = Math.max(...during.map(({ lagP99Ms }) => lagP99Ms));
  const reads = load.library.readMs(from, to);
  must(reads.length > 0, 'nothing was read meanwhile');
  const name = `${how} ${Math.round(ms / 1000)} s`;
  trial.say(`${name}: ${refused} refused, ${reads.length} reads`);
  const figures = {
    [`${name}: read p99, ms`]: percentile(reads, 0.99),
    [`${name}: read max, ms`]: percentile(reads, 1),
    [`${name}: lag p99, ms`]: lag,
  };
  mustBeWithin(trial, `the p99 of reads, ${name}`, percentile(reads, 0.99), 100);
  mustBeWithin(trial, `the p99 of a worker's lag, ${name}`, lag, 50);
  return { from, to, losses, figures };
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
      const now = await Promise.all(workers.map((worker) => worker.figures()));
      return now.every(({ metrics }, i) => crawled(metrics) > crawled(before[workers[i]?.pid ?? 0] ?? ''));
    },
    60_000,
  );
}

const RATE_MS = 3_000;
const FULL = 0.9;

/** How the rate of jobs came back after each outage: judged at full size. The load has stopped at `until`. */
export async function ratesOf(
  trial: Trial,
  lab: Lab,
  outages: readonly Outage[],
  times: { readonly from: number; readonly to: number },
): Promise<Figures> {
  const finished = await finishedTimes(lab);
  const rate = (from: number, to: number) =>
    finished.filter((at) => at >= from && at < to).length / ((to - from) / 1000);
  const before = rate(times.from, outages[0]?.from ?? times.to);
  const seconds = outages.map(({ to }) => {
    for (let from = to; from + RATE_MS <= times.to; from += 250) {
      if (rate(from, from + RATE_MS) >= FULL * before) return (from - to) / 1000;
    }
    return Number.POSITIVE_INFINITY;
  });
  const slowest = Math.max(...seconds);
  const last = rate(Math.max(outages.at(-1)?.to ?? 0, times.to - 10_000), times.to);
  trial.say(`${before.toFixed(1)} jobs/s before, ${last.toFixed(1)} at the end`);
  mustBeWithin(trial, 'seconds until the full rate', slowest, 10);
  return { 'jobs/s before': before, 'jobs/s at the end': last, 'full rate after, s': slowest };
}

/** When each job ended that is there still, by the clock of its worker. */
async function finishedTimes({ accepted, app }: Lab): Promise<number[]> {
  const queue = app.queues.get('crawl');
  const ids = [...new Set(accepted.map(({ id }) => id))];
  const times: number[] = [];
  for (let from = 0; from < ids.length; from += 200) {
    const jobs = await Promise.all(ids.slice(from, from + 200).map((id) => queue.getJob(id)));
    times.push(...jobs.flatMap((job) => job?.finishedOn ?? []));
  }
  return times;
}

/** @throws {ViolationError} where what the library promised does not hold */
export async function holdLibrary({ library }: Load): Promise<Figures> {
  const violations = await library.violations();
  if (violations.length > 0) throw new ViolationError(violations);
  return { reads: library.reads.length, 'reads unanswered': library.unanswered, 'writes refused': library.refused };
}
