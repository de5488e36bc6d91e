/** Redis and PostgreSQL are both away. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { sha256 } from '../../../src/kinds/identity.js';
import { crawlQueue } from '../../../src/queues/crawl.js';
import { QueueUnavailableError } from '../../../src/queues/index.js';
import { until } from '../../support/until.js';
import { BOTH, type Experiment, type Figures, hold, inLab, must, mustBeWithin, type Trial } from '../experiment.js';
import { counted } from '../figures.js';
import type { Lab } from '../lab.js';
import type { ServerName } from '../servers.js';
import type { WorkerProcess } from '../worker-process.js';
import { holdLibrary, inFlight, killRedis, type Load, type Loss, lostIn, underLoad, workAgain } from './outages.js';

const ORDERS: readonly (readonly ServerName[])[] = [
  ['redis', 'postgres'],
  ['postgres', 'redis'],
];
/** In which whoever adds a job is told that it is not taken, as its client sees it. */
const PROMISED_MS = 1_000;
/** From the one to the other, going and coming. */
const BETWEEN_MS = 1_000;

async function statusOf(worker: WorkerProcess, path: string): Promise<number> {
  const response = await fetch(`${await worker.working}${path}`);
  await response.arrayBuffer();
  return response.status;
}

/** How long `add` takes to say no, in milliseconds. */
async function refusal({ app, origin }: Lab, count: number): Promise<number> {
  const url = origin.statusUrl(404, 0); // of no job that counts
  const started = performance.now();
  const payloads = Array.from({ length: count }, () => ({ v: 1 as const, tenantId: 'acme', url }));
  const said = await app.queues.enqueue(crawlQueue, payloads).then(
    () => null,
    (error: unknown) => error,
  );
  must(said instanceof QueueUnavailableError, `add said ${said} with both servers away`);
  return performance.now() - started;
}

/** How long a client of the API waits for the 503, in milliseconds. */
async function refusalOverHttp(api: string, url: string): Promise<number> {
  const body = JSON.stringify({ tenantId: 'acme', images: [{ url }] });
  const started = performance.now();
  const response = await fetch(`${api}/v1/crawl-jobs`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body,
  });
  await response.arrayBuffer();
  must(response.status === 503, `POST answered ${response.status} with both servers away`);
  return performance.now() - started;
}

/** Nothing is there, and nobody says otherwise. @returns the longest wait for a refusal, of the library and over HTTP */
async function nothingIsPromised(lab: Lab, api: string, round: number): Promise<{ add: number; post: number }> {
  const { cache, connection } = lab.app;
  await until('both to be missed', () => {
    const { redis, postgres } = connection.tiers;
    return !redis?.guard.isUp && !postgres.guard.isUp;
  });
  const add = Math.max(await refusal(lab, 1), await refusal(lab, 10));
  const unasked = lab.origin.statusUrl(404, 0); // of no job that counts
  const post = Math.max(await refusalOverHttp(api, unasked), await refusalOverHttp(api, unasked));
  const key = sha256(`both away ${round}`);
  const url = lab.origin.imageUrl(1_000_000 + round);
  must(!(await cache.cachePerceptualHash(key, 'acme', '00000000000000aa')), 'a write was called durable');
  must(!(await cache.storeCrawledImage(url, key, { rawKey: 'none' }, 'acme')), 'a record was called stored');
  for (const worker of lab.workers) {
    must((await statusOf(worker, '/healthz')) === 200, 'a worker is not alive');
    must((await statusOf(worker, '/readyz')) === 503, 'a worker calls itself ready');
  }
  return { add, post };
}

interface Round {
  readonly how: 'killed' | 'frozen';
  readonly going: readonly ServerName[];
  readonly coming: readonly ServerName[];
  readonly ms: number;
}

async function bothAway(lab: Lab, api: string, load: Load, { how, going, coming, ms }: Round, round: number) {
  const workers = [...lab.workers];
  const losses: Loss[] = [];
  await inFlight(lab, load);
  for (const server of going) {
    if (server !== going[0]) await pause(BETWEEN_MS);
    if (how === 'frozen') await lab.servers.freeze(server);
    else if (server === 'redis') losses.push(await killRedis(lab));
    else await lab.servers.kill(server);
  }
  const started = Date.now();
  const refused = lab.refused;
  await pause(Math.min(2_000, ms / 2)); // what was under way has come to its end
  const figures = () => Promise.all(workers.map((worker) => worker.figures()));
  const before = await figures();
  const waits = await nothingIsPromised(lab, api, round);
  await pause(Math.max(0, started + ms - Date.now()));
  const after = await figures();
  const stored = (all: typeof before) =>
    counted(
      all.map(({ metrics }) => metrics),
      'crawl_images_total',
      'outcome="stored"',
    );
  must(stored(after) === stored(before), `${stored(after) - stored(before)} images were reported as stored meanwhile`);
  must(lab.refused > refused, 'no job was refused meanwhile');
  for (const server of coming) {
    if (server !== coming[0]) await pause(BETWEEN_MS);
    await (how === 'frozen' ? lab.servers.thaw(server) : lab.servers.restart(server));
  }
  await workAgain(workers, Object.fromEntries(after.map(({ metrics }, i) => [workers[i]?.pid, metrics])));
  for (const worker of workers) {
    await until('a worker to be ready again', async () => (await statusOf(worker, '/readyz')) === 200);
  }
  return { losses, waits };
}

/** Every order of going with every order of coming; in CI each backend's run has half of them. */
function roundsOf({ full, backend }: Trial): Pick<Round, 'going' | 'coming'>[] {
  const all = ORDERS.flatMap((going) => ORDERS.map((coming) => ({ going, coming })));
  return full ? all : all.filter(({ going, coming }) => (going === coming) === (backend === 'redis'));
}

const AWAY: Experiment = {
  id: 'E9',
  title: 'both servers go and come back, in every order',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 20 }, async (lab) => {
      const api = await lab.serve();
      const load = await underLoad(trial, lab, trial.full ? 40 : 4, { withoutPostgres: true });
      const ms = trial.full ? 20_000 : 4_000;
      const losses: Loss[] = [];
      const slowest = { add: 0, post: 0 };
      let rounds = 0;
      for (const how of trial.full ? (['killed', 'frozen'] as const) : (['killed'] as const)) {
        for (const { going, coming } of roundsOf(trial)) {
          await pause(trial.full ? 5_000 : 1_000);
          const one = await bothAway(lab, api, load, { how, going, coming, ms }, ++rounds);
          losses.push(...one.losses);
          slowest.add = Math.max(slowest.add, one.waits.add);
          slowest.post = Math.max(slowest.post, one.waits.post);
          trial.say(`${how}: ${going.join(', then ')}; back: ${coming.join(', then ')}`);
        }
      }
      await load.stop();
      await lab.settled(10 * 60_000);
      const figures = hold(await lab.check({ lost: lostIn(lab, losses) }), {
        rounds,
        'slowest refusal by the library, ms': slowest.add,
        'slowest 503, ms': slowest.post,
      });
      mustBeWithin(trial, 'milliseconds until the library refuses a job', slowest.add, PROMISED_MS);
      mustBeWithin(trial, 'milliseconds until POST is answered with 503', slowest.post, PROMISED_MS);
      return { ...figures, ...(await holdLibrary(load)) };
    }),
};

/** A worker process begins with both away, and they come in this order. */
async function startWithout(trial: Trial, lab: Lab, coming: readonly ServerName[], from: number): Promise<Figures> {
  const count = trial.full ? 500 : 30;
  await lab.enqueue(Array.from({ length: count }, (_, i) => lab.origin.imageUrl(from + i)));
  await pause(2_500); // a Redis that dies has kept them by now
  await killRedis(lab);
  await lab.servers.kill('postgres');
  const started = Date.now();
  const worker = await lab.worker();
  const startMs = Date.now() - started;
  must((await statusOf(worker, '/healthz')) === 200, 'it is not alive with both away');
  must((await statusOf(worker, '/readyz')) === 503, 'it calls itself ready with both away');
  await pause(trial.full ? 20_000 : 3_000);
  must(worker.isAlive, 'it ended with both away');
  const [first, second] = coming as [ServerName, ServerName];
  await lab.servers.restart(first);
  // The store of the queue and one tier are enough to be ready; a tier alone is not.
  if (first === trial.backend) {
    await until('it to be ready with the first', async () => (await statusOf(worker, '/readyz')) === 200);
  } else {
    await pause(3_000);
    must((await statusOf(worker, '/readyz')) === 503, `it calls itself ready with ${first} alone`);
  }
  await lab.servers.restart(second);
  const backAt = Date.now();
  await until('it to be ready with both', async () => {
    const response = await fetch(`${await worker.working}/readyz`);
    const { degraded } = (await response.json()) as { degraded: string[] };
    return response.status === 200 && degraded.length === 0;
  });
  const readyMs = Date.now() - backAt;
  await lab.settled();
  must((await statusOf(worker, '/healthz')) === 200 && worker.isAlive, 'it is not alive any more');
  await worker.stop();
  return { [`${first} first: started, ms`]: startMs, [`${first} first: ready after, ms`]: readyMs };
}

const START: Experiment = {
  id: 'E10',
  title: 'a worker starts with both servers away, and they come in turn',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, {}, async (lab) => {
      const figures: Figures[] = [];
      for (const [i, coming] of ORDERS.entries()) figures.push(await startWithout(trial, lab, coming, i * 1_000));
      const judged = hold(await lab.check({ metrics: () => lab.metrics() }), Object.assign({}, ...figures));
      must(judged.stored === judged.accepted, 'I1 not every job stored its image');
      return judged;
    }),
};

export const BOTH_EXPERIMENTS = [AWAY, START];
