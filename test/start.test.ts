/** `hybrid-cache start` where no server is named: what it brings, and what it says before it brings anything. */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Running, startCommand } from './support/command.js';
import { until } from './support/until.js';

const MINUTES = 60_000;

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'hc-start-'));
});
afterEach(() => rm(folder, { recursive: true }));

/** Resolves once the service is up, or has ended. */
async function started(env: Record<string, string>): Promise<Running> {
  await mkdir(join(folder, '.local'));
  await symlink(resolve('.local/redis-server'), join(folder, '.local/redis-server')).catch(() => undefined);
  const running = startCommand(['start'], { PORT: '0', ...env }, null, folder);
  const isUp = () => running.process.exitCode ?? running.out().includes('"address":"');
  await until('the service to be up', isUp, MINUTES);
  return running;
}

async function stopped(running: Running): Promise<void> {
  running.process.kill('SIGTERM');
  const ended = await running.ended;
  expect(ended, ended.out + ended.err).toMatchObject({ code: 0 });
}

test(
  'queues that are wanted in Redis are in the one that it brings',
  async () => {
    await using running = await started({ QUEUE_BACKEND: 'redis' });
    await stopped(running);
  },
  2 * MINUTES,
);

test(
  'a command that joins it uses its queues, whatever else is wanted there',
  async () => {
    await using running = await started({});
    const args = ['enqueue', '-', '--tenant', 'acme', '--wait'];
    // Of an address that is not for us: nobody is asked.
    await using joined = startCommand(args, { QUEUE_BACKEND: 'postgres' }, 'http://127.0.0.1:9/a.jpg\n', folder);
    const { out, err } = await joined.ended;
    expect(out + err).toContain('blocked-address');
    await stopped(running);
  },
  2 * MINUTES,
);

test('what is wrong with the configuration is said before servers are started for nothing', async () => {
  const { code, err } = await startCommand(['start'], { PORT: 'http' }, '', folder).ended;
  expect([code, err]).toEqual([1, expect.stringContaining('PORT: expected a whole number')]);
  expect(existsSync(join(folder, '.local'))).toBe(false);
});
