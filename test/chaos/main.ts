/**
 * `npm run chaos`: attacks the service's promises on real servers, and exits with 1 where one does not hold.
 *
 *     npm run chaos                        everything, at CI's size
 *     npm run chaos -- E1 E3 --full        these two, at full size
 *     npm run chaos -- E1 --backend redis --seed 42      one run again, as it was
 *     npm run chaos -- E3 --rate 100       under so many jobs a second, where the load is steady
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { reasonOf } from '../../src/errors.js';
import { within } from '../../src/lifecycle.js';
import { type Experiment, type Figures, type Trial, ViolationError } from './experiment.js';
import { BOTH_EXPERIMENTS } from './experiments/both.js';
import { CORRUPTION_EXPERIMENTS } from './experiments/corruption.js';
import { CROWD_EXPERIMENTS } from './experiments/crowd.js';
import { FACE_EXPERIMENTS } from './experiments/faces.js';
import { INVALIDATION_EXPERIMENTS } from './experiments/invalidation.js';
import { KILL_EXPERIMENTS } from './experiments/kills.js';
import { MEMORY_EXPERIMENTS } from './experiments/memory.js';
import { POSTGRES_EXPERIMENTS } from './experiments/postgres.js';
import { REDIS_EXPERIMENTS } from './experiments/redis.js';
import { RESTART_EXPERIMENTS } from './experiments/restarts.js';
import { SET_BACK_EXPERIMENTS } from './experiments/set-back.js';
import type { Backend } from './lab.js';

/** E16 waits longest for others, and is begun first. */
const EXPERIMENTS: readonly Experiment[] = [
  ...MEMORY_EXPERIMENTS,
  ...KILL_EXPERIMENTS,
  ...RESTART_EXPERIMENTS,
  ...REDIS_EXPERIMENTS,
  ...SET_BACK_EXPERIMENTS,
  ...BOTH_EXPERIMENTS,
  ...POSTGRES_EXPERIMENTS,
  ...INVALIDATION_EXPERIMENTS,
  ...FACE_EXPERIMENTS,
  ...CORRUPTION_EXPERIMENTS,
  ...CROWD_EXPERIMENTS,
];

/** Runs mostly wait; at full size they measure, and are alone. */
const LANES = 3;
/** A run of CI's size takes two or three minutes on a busy machine. */
const HANGS_MS = 15 * 60_000;
const REPORT = '.local/chaos-report.json';

interface Result {
  readonly id: string;
  readonly title: string;
  readonly backend: Backend;
  readonly seed: number;
  readonly seconds: number;
  readonly figures: Figures;
  readonly broken: readonly string[];
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    full: { type: 'boolean', default: false },
    backend: { type: 'string' },
    seed: { type: 'string' },
    rate: { type: 'string' },
  },
});
const unknown = positionals.find((id) => !EXPERIMENTS.some((one) => one.id === id));
const rate = values.rate === undefined ? undefined : Number(values.rate);
const isRate = rate === undefined || (Number.isInteger(rate) && rate > 0);
if (unknown || !isRate || (values.backend && !['redis', 'postgres'].includes(values.backend))) {
  const ids = EXPERIMENTS.map(({ id }) => id).join(' ');
  console.error(`expected some of ${ids}, --backend redis or postgres, and --rate with jobs a second`);
  process.exit(2);
}
const seed = Number(values.seed ?? Math.floor(Math.random() * 2 ** 31));
const runs = EXPERIMENTS.filter(({ id }) => positionals.length === 0 || positionals.includes(id)).flatMap((one) =>
  one.backends
    .filter((backend) => values.backend === undefined || values.backend === backend)
    .map((backend) => ({ experiment: one, backend })),
);

const started = performance.now();
console.log(`seed ${seed}; ${runs.length} runs${values.full ? ' at full size' : ''}`);
const results: Result[] = [];
const lanes = values.full ? 1 : Math.min(LANES, availableParallelism() + 1);
await Promise.all(
  Array.from({ length: lanes }, async () => {
    for (let next = runs.shift(); next; next = runs.shift()) results.push(await tried(next.experiment, next.backend));
  }),
);
await mkdir('.local', { recursive: true });
const machine = {
  cpu: cpus()[0]?.model,
  cores: cpus().length,
  gib: Math.round(totalmem() / 2 ** 30),
  node: process.version,
};
await writeFile(REPORT, JSON.stringify({ at: new Date().toISOString(), machine, full: values.full, results }, null, 2));
const failed = results.filter(({ broken }) => broken.length > 0).length;
console.log(
  `\n${results.length - failed} hold, ${failed} broken, in ${((performance.now() - started) / 60_000).toFixed(1)} min (${REPORT})`,
);
process.exit(failed > 0 ? 1 : 0);

async function tried(experiment: Experiment, backend: Backend): Promise<Result> {
  const { id, title } = experiment;
  const name = `${id} ${backend}`;
  const trial: Trial = { backend, seed, rate, full: values.full, say: (line) => console.log(`  ${name}: ${line}`) };
  const begun = performance.now();
  const result = (figures: Figures, broken: readonly string[]): Result => {
    const seconds = Math.round((performance.now() - begun) / 1000);
    const told = Object.entries(figures).map(([figure, value]) => `${figure} ${rounded(value)}`);
    console.log(`${broken.length > 0 ? 'BROKEN' : 'holds '} ${name} ${title} (${seconds} s): ${told.join(', ')}`);
    if (broken.length > 0) {
      for (const one of broken) console.log(`    ${one}`);
      console.log(
        `    again: npm run chaos -- ${id} --backend ${backend} --seed ${seed}${values.full ? ' --full' : ''}${rate ? ` --rate ${rate}` : ''}`,
      );
    }
    return { id, title, backend, seed, seconds, figures, broken };
  };
  try {
    const running = experiment.run(trial);
    const figures = await (values.full ? running : within(HANGS_MS, running, null));
    return figures ? result(figures, []) : result({}, [`did not end within ${HANGS_MS / 60_000} minutes`]);
  } catch (error) {
    if (error instanceof ViolationError) return result(error.figures, error.violations);
    return result({}, [error instanceof Error ? (error.stack ?? reasonOf(error)) : String(error)]);
  }
}

function rounded(value: number | string): string {
  return typeof value === 'number' ? String(Math.round(value * 100) / 100) : value;
}
