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
const MOST_SEED = 2 ** 31;
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

const { ids, backend, rate, full, seed } = asked();
const runs = EXPERIMENTS.filter(({ id }) => ids.length === 0 || ids.includes(id)).flatMap((one) =>
  one.backends
    .filter((its) => backend === undefined || backend === its)
    .map((backend) => ({ experiment: one, backend })),
);
if (runs.length === 0) misuse(`${ids.join(', ')}: not with queues on ${backend}`);

const started = performance.now();
console.log(`seed ${seed}; ${runs.length} runs${full ? ' at full size' : ''}`);
const results: Result[] = [];
const lane = async (some: typeof runs) => {
  for (let next = some.shift(); next; next = some.shift()) results.push(await tried(next.experiment, next.backend));
};
const beside = full ? [] : runs.filter(({ experiment }) => experiment.mostlyWaits);
const others = runs.filter((one) => !beside.includes(one));
const lanes = full ? 1 : Math.min(LANES, availableParallelism() + 1);
await Promise.all([lane(beside), ...Array.from({ length: lanes }, () => lane(others))]);
await mkdir('.local', { recursive: true });
const machine = {
  cpu: cpus()[0]?.model,
  cores: cpus().length,
  gib: Math.round(totalmem() / 2 ** 30),
  node: process.version,
};
await writeFile(REPORT, JSON.stringify({ at: new Date().toISOString(), machine, full, rate, results }, null, 2));
const failed = results.filter(({ broken }) => broken.length > 0).length;
console.log(
  `\n${results.length - failed} hold, ${failed} broken, in ${((performance.now() - started) / 60_000).toFixed(1)} min (${REPORT})`,
);
process.exit(failed > 0 ? 1 : 0);

async function tried(experiment: Experiment, backend: Backend): Promise<Result> {
  const { id, title } = experiment;
  const name = `${id} ${backend}`;
  const trial: Trial = { backend, seed, rate, full, say: (line) => console.log(`  ${name}: ${line}`) };
  const begun = performance.now();
  const result = (figures: Figures, broken: readonly string[]): Result => {
    const seconds = Math.round((performance.now() - begun) / 1000);
    const told = Object.entries(figures).map(([figure, value]) => `${figure} ${rounded(value)}`);
    console.log(`${broken.length > 0 ? 'BROKEN' : 'holds '} ${name} ${title} (${seconds} s): ${told.join(', ')}`);
    if (broken.length > 0) {
      for (const one of broken) console.log(`    ${one}`);
      console.log(
        `    again: npm run chaos -- ${id} --backend ${backend} --seed ${seed}${full ? ' --full' : ''}${rate ? ` --rate ${rate}` : ''}`,
      );
    }
    return { id, title, backend, seed, seconds, figures, broken };
  };
  try {
    const running = experiment.run(trial);
    const figures = await (full ? running : within(HANGS_MS, running, null));
    return figures ? result(figures, []) : result({}, [`did not end within ${HANGS_MS / 60_000} minutes`]);
  } catch (error) {
    if (error instanceof ViolationError) return result(error.figures, error.violations);
    return result({}, [error instanceof Error ? (error.stack ?? reasonOf(error)) : String(error)]);
  }
}

function rounded(value: number | string): string {
  return typeof value === 'number' ? String(Math.round(value * 100) / 100) : value;
}

/** What the command line asks for; ends the process where that is nothing. */
function asked() {
  const { values, positionals } = parsed();
  const unknown = positionals.find((id) => !EXPERIMENTS.some((one) => one.id === id));
  if (unknown !== undefined) misuse(`there is no experiment ${unknown}`);
  const backend = (['redis', 'postgres'] as const).find((one) => one === values.backend);
  if (values.backend !== undefined && !backend) misuse(`--backend: expected redis or postgres, got ${values.backend}`);
  return {
    ids: positionals,
    backend,
    full: values.full,
    rate: values.rate === undefined ? undefined : wholeNumber('rate', values.rate, 1),
    seed: values.seed === undefined ? Math.floor(Math.random() * MOST_SEED) : wholeNumber('seed', values.seed, 0),
  };
}

function parsed() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        full: { type: 'boolean', default: false },
        backend: { type: 'string' },
        seed: { type: 'string' },
        rate: { type: 'string' },
      },
    });
  } catch (error) {
    return misuse(reasonOf(error));
  }
}

function wholeNumber(option: string, text: string, least: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > MOST_SEED) {
    misuse(`--${option}: expected a whole number from ${least} to ${MOST_SEED}, got ${text}`);
  }
  return value;
}

function misuse(what: string): never {
  const all = EXPERIMENTS.map(({ id }) => id).sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  console.error(
    `${what}\nusage: npm run chaos -- [${all.join(' ')}] [--backend redis|postgres] [--full] [--seed N] [--rate N]`,
  );
  process.exit(2);
}
