/** `hybrid-cache start` where no server is named: what it brings, and what it says before it brings anything. */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { startCommand } from './support/command.js';
import { until } from './support/until.js';

const MINUTES = 60_000;

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'hc-start-'));
});
afterEach(() => rm(folder, { recursive: true }));

test(
  'queues that are wanted in Redis are in the one that it brings',
  async () => {
    await mkdir(join(folder, '.local'));
    await symlink(resolve('.local/redis-server'), join(folder, '.local/redis-server')).catch(() => undefined);
    await using running = startCommand(['start'], { PORT: '0', QUEUE_BACKEND: 'redis' }, null, folder);
    const said = () => running.out() + running.err();
    await until(`the service to be up`, () => /"address":"([^"]+)"/.exec(said()) ?? running.process.exitCode, MINUTES);
    running.process.kill('SIGTERM');
    expect(await running.ended, said()).toMatchObject({ code: 0 });
  },
  2 * MINUTES,
);

test('what is wrong with the configuration is said before servers are started for nothing', async () => {
  const { code, err } = await startCommand(['start'], { PORT: 'http' }, '', folder).ended;
  expect([code, err]).toEqual([1, expect.stringContaining('PORT: expected a whole number')]);
  expect(existsSync(join(folder, '.local'))).toBe(false);
});
