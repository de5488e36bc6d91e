/** Many jobs that want the same at once, and nothing but claims to keep them apart. */
import { KINDS } from '../../../src/kinds/index.js';
import { BOTH, type Experiment, type Figures, hold, inLab, must, roomFor, type Trial } from '../experiment.js';
import { counted } from '../figures.js';
import type { Lab } from '../lab.js';

/** Slots of all workers together, and jobs of one round. */
const CROWD_SIZE = 64;
const ROUND_MS = 120_000;

/** Rounds of one new URL each. @returns the seconds of the slowest */
async function rounds(trial: Trial, lab: Lab, from: number, to: number): Promise<number> {
  let slowest = 0;
  for (let i = from; i < to; i++) {
    const started = Date.now();
    await lab.offerAsForeigner(Array(CROWD_SIZE).fill(lab.origin.imageUrl(i)));
    await lab.emptied('crawl', ROUND_MS);
    slowest = Math.max(slowest, (Date.now() - started) / 1000);
    if (i % 100 === 99) trial.say(`${i + 1} rounds`);
  }
  return slowest;
}

/** One job of each round stored, the others skipped, and the origin was asked once. */
async function judged(lab: Lab, count: number, more: Figures): Promise<Figures> {
  await lab.settled();
  const deferred = counted(await lab.metrics(), 'job_attempts_total', 'queue="crawl"', 'result="deferred"');
  const judgement = await lab.check({ mostRequests: 1, metrics: () => lab.metrics() });
  const figures = hold(judgement, { deferred, ...more });
  must(deferred > 0, 'no job met the claim of another: nothing was tried');
  const { stored, skipped, requests, contents } = figures;
  must(
    stored === count && contents === count && requests === count && skipped === count * (CROWD_SIZE - 1),
    `of ${count} rounds ${stored} jobs stored, ${skipped} skipped, with ${requests} requests and ${contents} records`,
  );
  return figures;
}

const ONE_URL: Experiment = {
  id: 'E12',
  title: 'one new URL is asked for by 64 jobs at once',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40, ...roomFor(trial) }, async (lab) => {
      const { count, processes } = trial.full ? { count: 1_000, processes: 8 } : { count: 4, processes: 2 };
      await lab.workersOf(processes);
      const slowest = await rounds(trial, lab, 0, count);
      return judged(lab, count, { processes, 'slowest round, s': slowest });
    }),
};

const ONE_CONTENT: Experiment = {
  id: 'E13',
  title: 'the same bytes stand under 50 URLs that are asked for at once',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40, ...roomFor(trial) }, async (lab) => {
      const { count, processes } = trial.full ? { count: 50, processes: 8 } : { count: 2, processes: 2 };
      const copies = 50;
      await lab.workersOf(processes);
      for (let i = 0; i < count; i++) {
        const urls = Array.from({ length: copies }, (_, copy) => lab.origin.imageUrl(i, copy));
        must((await lab.offer(urls)).length === copies, 'the queue did not take the jobs');
        await lab.emptied('crawl', ROUND_MS);
      }
      await lab.settled();
      const deferred = counted(await lab.metrics(), 'job_attempts_total', 'queue="crawl"', 'result="deferred"');
      const [row] = await lab.servers.sql<{ urls: number }>('select count(*)::int as urls from crawl_cache');
      // One that is put off remembers what it fetched: even so the origin is asked once for each URL.
      const judgement = await lab.check({ mostRequests: 1, metrics: () => lab.metrics() });
      const figures = hold(judgement, { deferred, urls: row?.urls ?? 0 });
      must(deferred > 0, 'no job met the claim of another: nothing was tried');
      const { contents, stored, skipped, urls } = figures;
      must(
        contents === count && stored === count && skipped === count * (copies - 1) && urls === count * copies,
        `of ${count} contents ${contents} are recorded, with ${urls} URLs; ${stored} jobs stored, ${skipped} skipped`,
      );
      return figures;
    }),
};

const SHIFTED_CLOCK = new URL('../shifted-clock.js', import.meta.url).href;
const SHIFT_MS = 10 * 60_000;
/** So short that ten minutes more or less cannot be overlooked. */
const TTL_SECONDS = 300;
const TTL_JITTER = 0.1;
const TTLS = ['EMBEDDING', 'SEARCH', 'PHASH', 'FACE_DETECTION', 'CRAWL'].map((name) => `CACHE_TTL_${name}`);

const WRONG_CLOCK: Experiment = {
  id: 'E14',
  title: 'the clock of one worker is ten minutes fast, then slow (within its process), under the load of E12',
  backends: BOTH,
  run: (trial) => {
    const env = Object.fromEntries(TTLS.map((name) => [name, String(TTL_SECONDS)]));
    return inLab(trial, { latencyMs: 40, ...roomFor(trial), env }, async (lab) => {
      const { count, processes } = trial.full ? { count: 1_000, processes: 7 } : { count: 4, processes: 1 };
      const began = await serverMicros(lab);
      await lab.workersOf(processes);
      const figures: Record<string, number> = {};
      let done = 0;
      for (const [name, shift] of [
        ['fast', SHIFT_MS],
        ['slow', -SHIFT_MS],
      ] as const) {
        const shifted = await lab.worker({
          env: { CHAOS_CLOCK_SHIFT_MS: String(shift) },
          execArgv: ['--import', SHIFTED_CLOCK],
        });
        const before = Date.now();
        figures[`slowest round, ${name}, s`] = await rounds(trial, lab, done, done + count / 2);
        done += count / 2;
        await timesAreTheServers(lab, began, before);
        await lab.settled();
        const metrics = await shifted.metrics();
        const born = counted([metrics], 'process_start_time_seconds') * 1000;
        must(Math.abs(born - shift - before) < SHIFT_MS / 2, `the clock of the ${name} worker is not off`);
        const runs = counted([metrics], 'job_attempts_total', 'queue="crawl"');
        must(runs > 0, `the ${name} worker ran no job: nothing was tried`);
        figures[`runs, ${name}`] = runs;
        if (name === 'fast') await shifted.stop();
      }
      const all = hold(await lab.check({ mostRequests: 1, metrics: () => lab.metrics() }), figures);
      must(all.stored === count && all.requests === count, `of ${count} rounds ${all.stored} jobs stored`);
      return all;
    });
  },
};

async function serverMicros(lab: Lab): Promise<number> {
  const [row] = await lab.servers.sql<{ now: string }>('select (extract(epoch from now()) * 1e6)::bigint as now');
  return Number(row?.now);
}

/** Versions lie within the time of the run by PostgreSQL's clock, and lifetimes in Redis are those that were set. */
async function timesAreTheServers(lab: Lab, began: number, before: number): Promise<void> {
  const [row] = await lab.servers.sql<{ least: string; most: string }>(
    `select min(version) as least, max(version) as most from
       (select version from crawl_content_cache union all select version from crawl_cache) as all_rows`,
  );
  const [least, most, now] = [Number(row?.least), Number(row?.most), await serverMicros(lab)];
  must(least >= began && most <= now, `versions are from ${least} to ${most}, and not within ${began} to ${now}`);
  const lifetimes = await lab.servers.redis(async (redis) => {
    const keys = (await redis.keys('hc:*')).filter((key) => KINDS.some(({ name }) => key.startsWith(`hc:${name}:`)));
    return Promise.all(keys.map(async (key) => ({ key, ms: await redis.pttl(key) })));
  });
  must(lifetimes.length > 0, 'Redis holds nothing whose lifetime could be looked at');
  const longest = TTL_SECONDS * 1000 * (1 + TTL_JITTER);
  const shortest = TTL_SECONDS * 1000 * (1 - TTL_JITTER) - (Date.now() - before) - 1_000;
  // What was written before this part of the run may be older than it, and about to expire.
  const wrong = lifetimes.filter(({ ms }) => ms === -1 || ms > longest);
  must(wrong.length === 0, `${wrong[0]?.key} lives for ${wrong[0]?.ms} ms, and not at most ${longest}`);
  const young = lifetimes.filter(({ ms }) => ms >= shortest).length;
  must(young > 0, `no entry lives for at least ${shortest} ms`);
}

export const CROWD_EXPERIMENTS = [ONE_URL, ONE_CONTENT, WRONG_CLOCK];
