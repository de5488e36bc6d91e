/** Worker processes that are killed, told to stop, or killed by their own job. */
import { setTimeout as pause } from 'node:timers/promises';
import { STEPS, type Step } from '../app.js';
import { BOTH, type Experiment, hold, inLab, must, mustBeWithin, percentile } from '../experiment.js';
import type { Lab } from '../lab.js';

/** Of `count` URLs 30 % are asked for twice, and 20 % of the rest serve what another serves. In an order of chance. */
function mixOfUrls({ origin, random }: Lab, count: number): string[] {
  const distinct = Math.ceil(count * 0.7);
  const contents = Math.ceil(distinct * 0.8);
  const urls = Array.from({ length: distinct }, (_, i) =>
    i < contents ? origin.imageUrl(i) : origin.imageUrl(Math.floor(random() * contents), i),
  );
  while (urls.length < count) urls.push(urls[Math.floor(random() * distinct)] as string);
  for (let i = urls.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [urls[i], urls[j]] = [urls[j] as string, urls[i] as string];
  }
  return urls;
}

const KILLS: Experiment = {
  id: 'E1',
  title: 'a worker of three is killed, at random moments',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40 }, async (lab) => {
      const { urls, kills } = trial.full ? { urls: 20_000, kills: 200 } : { urls: 600, kills: 6 };
      await lab.workersOf(3);
      await lab.enqueue(mixOfUrls(lab, urls));
      for (let i = 0; i < kills; i++) {
        await pause(300 + lab.random() * 2_000);
        await lab.kill(lab.pick(lab.workers));
        await lab.worker();
        if (i % 20 === 19) trial.say(`${i + 1} kills`);
      }
      await lab.settled(30 * 60_000);
      const reruns = lab.rerunSeconds();
      const figures = hold(await lab.check(), {
        reruns: reruns.length,
        'rerun p95, s': percentile(reruns, 0.95),
        'rerun max, s': percentile(reruns, 1),
      });
      mustBeWithin(trial, 'the p95 of seconds to the next run', percentile(reruns, 0.95), 15);
      return figures;
    }),
};

/** Workers die there, two at a time, until so many have; then one ends what they left. */
async function killAt(lab: Lab, step: Step, urls: readonly string[]): Promise<void> {
  await lab.enqueue(urls);
  let deaths = 0;
  const dying = async () => {
    while (deaths < urls.length) {
      deaths += 1;
      const worker = lab.spawn({ dieAt: step, queues: ['crawl'], env: { CRAWL_CONCURRENCY: '1' } });
      const end = await worker.ended;
      must(end === 'SIGKILL', `a worker that was to die at "${step}" ended with ${end}`);
      lab.kills.push(Date.now());
    }
  };
  await Promise.all([dying(), dying()]);
  const worker = await lab.worker();
  await lab.settled();
  await worker.stop();
}

const STEP_KILLS: Experiment = {
  id: 'E2',
  title: 'a worker dies at each step of its job',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, {}, async (lab) => {
      const times = trial.full ? 50 : 2;
      for (const [i, step] of STEPS.entries()) {
        const urls = Array.from({ length: times }, (_, n) => lab.origin.imageUrl(i * times + n));
        await killAt(lab, step, urls);
        trial.say(step);
      }
      await lab.worker();
      return hold(await lab.check(), { 'deaths at each step': times });
    }),
};

const POISON_JOB: Experiment = {
  id: 'E18',
  title: 'one image kills whoever processes it, while workers are killed from outside too',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 20 }, async (lab) => {
      const { urls, kills } = trial.full ? { urls: 1_000, kills: 20 } : { urls: 60, kills: 2 };
      const poison = lab.origin.imageUrl(urls, 0, { poison: true });
      const all = Array.from({ length: urls - 1 }, (_, i) => lab.origin.imageUrl(i));
      all.splice(Math.floor(lab.random() * all.length), 0, poison);
      await lab.enqueue(all);
      /** Whoever dies, of the poison or of us, is replaced, as a supervisor would. */
      let running = true;
      const supervised = async () => {
        while (running) {
          const worker = lab.spawn();
          await worker.ended;
        }
      };
      const supervisors = [supervised(), supervised(), supervised()];
      for (let i = 0; i < kills; i++) {
        await pause(1_500 + lab.random() * 1_500);
        const alive = [...lab.workers].filter(({ isAlive }) => isAlive);
        if (alive.length > 0) await lab.kill(lab.pick(alive));
      }
      await lab.settled(10 * 60_000);
      running = false;
      await Promise.all([...lab.workers].map((worker) => worker.stop()));
      await Promise.all(supervisors);
      return hold(await lab.check({ failed: ({ url }) => (url === poison ? 'poison' : null) }));
    }),
};

const RESTARTS: Experiment = {
  id: 'E17',
  title: 'workers are told to stop under load, one after the other',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40, env: { SHUTDOWN_TIMEOUT_MS: '5000' } }, async (lab) => {
      const { urls, restarts } = trial.full ? { urls: 10_000, restarts: 100 } : { urls: 200, restarts: 4 };
      await lab.workersOf(2);
      await lab.enqueue(Array.from({ length: urls }, (_, i) => lab.origin.imageUrl(i)));
      let slowest = 0;
      for (let i = 0; i < restarts; i++) {
        await pause(200 + lab.random() * 600);
        const worker = lab.pick(lab.workers);
        const started = Date.now();
        const end = await worker.stop();
        slowest = Math.max(slowest, Date.now() - started);
        must(end === 0, `a worker that was told to stop ended with ${end}`);
        await lab.worker();
      }
      await lab.settled(30 * 60_000);
      // Nobody was killed: no URL is fetched twice.
      const figures = hold(await lab.check({ mostRequests: 1 }), { restarts, 'slowest stop, ms': slowest });
      mustBeWithin(trial, 'the slowest stop', slowest, 5_000 + 4_000);
      return figures;
    }),
};

export const KILL_EXPERIMENTS = [KILLS, STEP_KILLS, RESTARTS, POISON_JOB];
