/** Workers that are told to stop: under load, with jobs that never end, and a second time while they stop. */
import { setTimeout as pause } from 'node:timers/promises';
import { until } from '../../support/until.js';
import { ENGINE_MS } from '../app.js';
import {
  BOTH,
  boundOf,
  type Experiment,
  type Figures,
  hold,
  inLab,
  must,
  mustBeWithin,
  type Trial,
} from '../experiment.js';
import { counted } from '../figures.js';
import type { Lab } from '../lab.js';
import type { WorkerProcess } from '../worker-process.js';

const SHUTDOWN_MS = 5_000;
const ENV = { SHUTDOWN_TIMEOUT_MS: String(SHUTDOWN_MS), FETCH_TIMEOUT_MS: '600000' };
/** What a process takes to end beside that. */
const ENDING_MS = 1_000;
/** As `onShutdownSignal` has it for a second signal. */
const FORCED = 130;
const FORCED_MS = 1_000;
/** From a job's hand-back to its next run. */
const AGAIN_MS = 5_000;
const NEVER_MS = 3_600_000;
/** Contents that no other part of the run asks for. */
const HANGING_FROM = 1_000_000;
const AT_ONCE = 5;
/** Some of so many images have faces. */
const IMAGES = 6;

/** One after the other, under load: each ends what it has. @returns the milliseconds of the slowest */
async function rolling(trial: Trial, lab: Lab): Promise<number> {
  const { urls, restarts } = trial.full ? { urls: 10_000, restarts: 100 } : { urls: 90, restarts: 3 };
  await lab.workersOf(2);
  const [mix, portion] = [lab.mix(), Math.ceil(urls / restarts)];
  let slowest = 0;
  for (let i = 0; i < restarts; i++) {
    const taken = await lab.offerAll(mix.take(portion));
    must(taken.length === portion, 'the queue did not take the jobs');
    await pause(lab.random() * 200);
    must((await lab.unended('crawl')) > 0, 'no work waited when a worker was told to stop');
    slowest = Math.max(slowest, await stopped(lab.pick(lab.workers)));
    await lab.worker();
    await pause(lab.random() * 600);
  }
  await lab.settled(boundOf(await lab.unended('crawl')));
  await Promise.all([...lab.workers].map(stopped));
  return slowest;
}

/** @returns milliseconds */
async function stopped(worker: WorkerProcess): Promise<number> {
  const started = Date.now();
  const end = await worker.stop();
  must(end === 0, `a worker that was told to stop ended with ${end}`);
  return Date.now() - started;
}

/** Jobs whose site never ends its answer, in the hands of whoever works now. @returns their ids */
async function hangingJobs(lab: Lab, from: number): Promise<string[]> {
  const urls = Array.from({ length: AT_ONCE }, (_, i) => lab.origin.hangingUrl(from + i));
  const jobs = await lab.offer(urls);
  must(jobs.length === AT_ONCE, 'the queue did not take the jobs');
  await until('the site to be asked', () => urls.every((url) => lab.origin.counts().get(url) === 1));
  return jobs.map(({ id }) => id);
}

/**
 * A worker is told to stop in the middle of crawls that hear no end, and of embeddings that are deaf to their
 * signal: the ones are handed back and begin at once elsewhere, the others when their locks have ended.
 */
async function neverEnding(trial: Trial, lab: Lab): Promise<Figures> {
  const deaf = await lab.worker({ env: { [ENGINE_MS]: String(NEVER_MS), EMBEDDING_THREADS: String(IMAGES) } });
  await lab.enqueue(Array.from({ length: IMAGES }, (_, i) => lab.origin.imageUrl(HANGING_FROM + i)));
  await lab.emptied('crawl');
  const ids = await hangingJobs(lab, HANGING_FROM + IMAGES);
  const { active = 0 } = await lab.app.queues.counts('embedding');
  must(active > 0, 'no embedding was under way: nothing was tried');
  await lab.worker();
  const took = await stopped(deaf);
  const exitedAt = Date.now();
  mustBeWithin(trial, 'the stop of a worker whose jobs never end, in ms', took, SHUTDOWN_MS + ENDING_MS);
  // The embeddings wait for their locks to end, while the experiment goes on.
  await until('what was handed back to end', () => ids.every((id) => lab.ended.has(id)), boundOf(ids.length));
  const again = Math.max(...ids.map((id) => (lab.starts.get(id)?.[1] ?? Number.POSITIVE_INFINITY) - exitedAt));
  mustBeWithin(trial, 'milliseconds until a job that was handed back ran again', again, AGAIN_MS);
  for (const id of ids) await wasHandedBack(lab, id);
  return { 'stop amid endless jobs, ms': took, 'again after the exit, ms': again, 'deaf embeddings': active };
}

/** Neither did it wait for its lock to end, nor did it cost an attempt. */
async function wasHandedBack({ app }: Lab, id: string): Promise<void> {
  const job = await app.queues.get('crawl').getJob(id);
  must(job?.stalledCounter === 0, `job ${id} was left to its lock, and not handed back`);
  must(job?.attemptsMade === 1, `job ${id} spent ${job?.attemptsMade} attempts, and not the one that did it`);
}

/** Whoever is told twice goes at once, and what it had runs again like the jobs of the dead. */
async function toldTwice(trial: Trial, lab: Lab): Promise<Figures> {
  await Promise.all([...lab.workers].map(stopped));
  let isStopping = false;
  const onLine = (line: string) => {
    isStopping ||= line.includes('service stopping');
  };
  const worker = await lab.worker({ env: { LOG_LEVEL: 'info' }, onLine });
  const ids = await hangingJobs(lab, HANGING_FROM + IMAGES + AT_ONCE);
  worker.signal('SIGTERM');
  await until('it to begin to stop', () => isStopping);
  const toldAt = Date.now();
  lab.kills.push(toldAt);
  const end = await worker.stop();
  const took = Date.now() - toldAt;
  must(end === FORCED, `a worker that was told to stop twice ended with ${end}`);
  mustBeWithin(trial, 'the end after the second signal, in ms', took, FORCED_MS);
  await lab.worker();
  await lab.settled(boundOf(ids.length));
  return { 'end when told twice, ms': took };
}

const RESTARTS: Experiment = {
  id: 'E17',
  title: 'workers are told to stop: under load, with jobs that never end, and twice',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40, env: ENV }, async (lab) => {
      const slowest = await rolling(trial, lab);
      trial.say('under load');
      mustBeWithin(trial, 'the slowest stop, in ms', slowest, SHUTDOWN_MS + ENDING_MS);
      const endless = await neverEnding(trial, lab);
      trial.say('with jobs that never end');
      await lab.settled();
      // Whoever is told twice takes what it counted with it.
      hold(await lab.check({ metrics: () => lab.metrics() }));
      const twice = await toldTwice(trial, lab);
      const handedBack = counted(await lab.metrics(), 'job_attempts_total', 'queue="crawl"', 'result="handed_back"');
      // Whoever was told to stop under load asks once more; so may one that waited for the bytes that it worked on.
      const judgement = await lab.check({ mostRequests: 1, inVain: 2 * (handedBack - AT_ONCE) });
      return hold(judgement, { 'handed back': handedBack, 'slowest stop, ms': slowest, ...endless, ...twice });
    }),
};

export const RESTART_EXPERIMENTS = [RESTARTS];
