/** A worker in a process of its own, which can be killed and whose clock can be wrong. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import type { World } from '../support/world.js';

const [CLOCK, WORKER] = ['../chaos/shifted-clock.ts', './killable-worker.ts'].map((file) =>
  fileURLToPath(new URL(file, import.meta.url)),
) as [string, string];

export interface KillableOptions {
  readonly env: Readonly<Record<string, string>>;
  readonly concurrency: number;
  /** It puts each job off by so many milliseconds; else it never ends one. */
  readonly putOffMs?: number;
  /** How far its clock is ahead, in milliseconds. */
  readonly clockShiftMs?: number;
}

/** @returns the process, and the jobs that it says it has taken; it is killed at the end of the test at the latest */
export function killableWorker(
  world: World,
  { env, concurrency, putOffMs, clockShiftMs }: KillableOptions,
): { child: ChildProcess; taken: Set<string> } {
  const given = {
    env: { DATABASE_URL: world.databaseUrl, REDIS_URL: world.redisUrl, ...env },
    namespace: world.namespace,
    concurrency,
    putOffMs,
  };
  const clock = clockShiftMs === undefined ? [] : ['--import', CLOCK];
  const child = spawn(process.execPath, ['--import', 'tsx', ...clock, WORKER, JSON.stringify(given)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, CHAOS_CLOCK_SHIFT_MS: String(clockShiftMs ?? 0) },
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const taken = new Set<string>();
  createInterface({ input: child.stdout }).on('line', (line) => taken.add(line));
  return { child, taken };
}
