/** Owners of stacks in processes of their own, and waiting on what can be seen of them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Redis } from 'ioredis';
import pg from 'pg';
import { onTestFinished } from 'vitest';
import type { LocalStack, StackOptions } from '../../src/local/stack.js';

export const AS_ROOT = process.getuid?.() === 0;
/** One fetched Redis for all tests but those that test the fetching. */
export const SHARED_CACHE = resolve(fileURLToPath(new URL('../../.local', import.meta.url)));

/** What an owner says once its stack runs, or why it does not. */
export interface Said {
  env: LocalStack['env'];
  pids: LocalStack['pids'];
  redis: LocalStack['redis'];
  lines: string[];
  error?: string;
  message?: string;
}

/** Polls until `condition` gives something true; fails after ten seconds, saying what was awaited. */
export async function until<T>(what: string, condition: () => T | Promise<T>): Promise<T> {
  for (const end = Date.now() + 10_000; Date.now() < end; await delay(20)) {
    const seen = await condition();
    if (seen) return seen;
  }
  throw new Error(`still not so after 10 s: ${what}`);
}

/** A folder for one test, removed after it. */
export function temporaryFolder(mode = 0o755): string {
  const folder = mkdtempSync(join(tmpdir(), 'stack-test-'));
  chmodSync(folder, mode);
  onTestFinished(() => rm(folder, { recursive: true, force: true, maxRetries: 20 }));
  return folder;
}

/** Whether a process runs; one that only waits for its parent to ask does not. */
export function isRunning(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return !/^[ZX]/.test(stat.slice(stat.lastIndexOf(')') + 2));
  } catch {
    return false;
  }
}

export function allPids({ pids }: Pick<LocalStack, 'pids'>): number[] {
  return [pids.keeper, pids.postgres, pids.redis].filter((pid) => pid !== null);
}

export async function untilGone(stack: Pick<LocalStack, 'pids'>): Promise<void> {
  await until('keeper and servers are gone', () => !allPids(stack).some(isRunning));
}

/** Starts `owner.mjs`, in a session of its own so that signals to its group reach nobody else. */
export async function ownerOf(
  options: Omit<StackOptions, 'announce'>,
  how: { uid?: number; gid?: number; env?: NodeJS.ProcessEnv } = {},
): Promise<{ child: ChildProcess; said: Said; heard: string[] }> {
  const script = fileURLToPath(new URL('./owner.mjs', import.meta.url));
  const child = spawn(process.execPath, [script, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true,
    ...how,
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const heard: string[] = [];
  const lines = createInterface({ input: child.stdout });
  const first = new Promise<Said>((resolveSaid, reject) => {
    lines.once('line', (line) => resolveSaid(JSON.parse(line)));
    child.once('error', reject).once('exit', () => reject(new Error('the owner ended without a word')));
  });
  lines.on('line', (line) => heard.push(line));
  return { child, said: await first, heard };
}

/** One query on a connection of its own. */
export async function query<T extends pg.QueryResultRow>(env: LocalStack['env'], text: string): Promise<T[]> {
  const client = new pg.Client({ connectionString: env.DATABASE_URL });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return (await client.query<T>(text)).rows;
  } finally {
    await client.end();
  }
}

/** One use of Redis on a connection of its own. */
export async function redisDo<T>(env: LocalStack['env'], use: (redis: Redis) => Promise<T>): Promise<T> {
  const redis = new Redis(env.REDIS_URL, { maxRetriesPerRequest: 1 });
  redis.on('error', () => undefined);
  try {
    return await use(redis);
  } finally {
    redis.disconnect();
  }
}
