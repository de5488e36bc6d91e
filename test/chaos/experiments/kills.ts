/** Worker processes that are killed, or killed by their own job. */
import { setTimeout as pause } from 'node:timers/promises';
import { DEATHS_BEFORE_ALONE } from '../../../workers/alone.js';
import { until } from '../../support/until.js';
import { STEPS, type Step } from '../app.js';
import { BOTH, boundOf, type Experiment, hold, inLab, must, mustBeWithin, percentile } from '../experiment.js';
import { type Lab, POLITE } from '../lab.js';

/** From an order to the kill that meets it, at most, in milliseconds: no portion is done by then. */
const AMIDST_MS = 250;

/** Every worker has an even chance, and work is under way and waits. */
async function killAmidst(lab: Lab): Promise<void> {
  await pause(lab.random() * AMIDST_MS);
  // While eight hosts are asked for their robots rules, there are moments in which all jobs wait.
  await until('work to be under way and to wait', async () => {
    const { active = 0 } = await lab.app.queues.counts('crawl');
    return active > 0 && (await lab.unended('crawl')) > active;
  });
  await lab.kill(lab.pick(lab.workers));
  await lab.worker();
}

const KILLS: Experiment = {
  id: 'E1',
  title: 'a worker of three is killed, at random moments',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 40, ...POLITE }, async (lab) => {
      const { urls, kills } = trial.full ? { urls: 20_000, kills: 200 } : { urls: 150, kills: 4 };
      await lab.workersOf(3);
      const mix = lab.mix();
      const portion = Math.ceil(urls / kills);
      for (let i = 0; i < kills; i++) {
        const taken = await lab.offerAll(mix.take(portion));
        must(taken.length === portion, 'the queue did not take the jobs');
        await killAmidst(lab);
        await pause(300 + lab.random() * 2_000);
        if (i % 20 === 19) trial.say(`${i + 1} kills`);
      }
      await lab.settled(boundOf(await lab.unended('crawl')));
      const reruns = lab.rerunSeconds();
      const figures = hold(await lab.check(), {
        reruns: reruns.length,
        'rerun p95, s': percentile(reruns, 0.95),
        'rerun max, s': percentile(reruns, 1),
        'asked for robots rules': lab.origin.robotsRequests,
      });
      must(reruns.length > 0, 'no run was cut short: nothing was tried');
      must(Number(figures.skipped) > urls / 5, `only ${figures.skipped} jobs of twins and copies reached a worker`);
      mustBeWithin(trial, 'the p95 of seconds to the next run', percentile(reruns, 0.95), 15);
      return figures;
    }),
};

/** For each of these deaths a worker dies there, some at a time; then one ends what they left. */
async function killAt(lab: Lab, deaths: readonly Step[], urls: readonly string[], atOnce: number): Promise<void> {
  await lab.enqueue(urls);
  const left = [...deaths];
  const dying = async () => {
    for (let step = left.shift(); step; step = left.shift()) {
      const worker = lab.spawn({ dieAt: step, queues: ['crawl'], env: { CRAWL_CONCURRENCY: '1' } });
      const end = await worker.ended;
      must(end === 'SIGKILL', `a worker that was to die at "${step}" ended with ${end}`);
      lab.kills.push(Date.now());
    }
  };
  await Promise.all(Array.from({ length: atOnce }, dying));
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
      const times = trial.full ? 50 : 1;
      const atOnce = trial.full ? 2 : STEPS.length / 2;
      const rounds = trial.full
        ? STEPS.map((step): Step[] => Array(times).fill(step))
        : [STEPS.slice(0, atOnce), STEPS.slice(atOnce)];
      let next = 0;
      for (const deaths of rounds) {
        await killAt(
          lab,
          deaths,
          deaths.map(() => lab.origin.imageUrl(next++)),
          atOnce,
        );
        trial.say([...new Set(deaths)].join(', '));
      }
      await lab.worker();
      return hold(await lab.check(), { 'deaths at each step': times });
    }),
};

/** Of its own, and at most in as many workers before it has one. */
const POISONED = { processes: 3, workers: DEATHS_BEFORE_ALONE };

const POISON_JOB: Experiment = {
  id: 'E18',
  title: 'one image kills whoever processes it, while workers are killed from outside too',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 20 }, async (lab) => {
      const { urls, kills } = trial.full ? { urls: 1_000, kills: 20 } : { urls: 40, kills: 2 };
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
      const figures = hold(await lab.check({ failed: ({ url }) => (url === poison ? 'poison' : null) }));
      const asked = lab.origin.counts().get(poison) ?? 0;
      const most = POISONED.processes + POISONED.workers + kills;
      must(asked >= POISONED.processes && asked <= most, `the poison was tried ${asked} times, and not up to ${most}`);
      return { ...figures, 'tries of the poison': asked };
    }),
};

export const KILL_EXPERIMENTS = [KILLS, STEP_KILLS, POISON_JOB];
