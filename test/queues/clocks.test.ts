/** Workers on machines without NTP, with queues on PostgreSQL: it is the server's clock that decides. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { image } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const TEN_MINUTES_MS = 600_000;

/** A worker that takes a job and never ends it; its clock is off. Resolves once it has taken one. */
async function taking(world: World, shiftMs: number): Promise<void> {
  const [clock, worker] = ['../chaos/shifted-clock.ts', './killable-worker.ts'].map((file) =>
    fileURLToPath(new URL(file, import.meta.url)),
  ) as [string, string];
  const given = { env: { DATABASE_URL: world.databaseUrl, REDIS_URL: 'none' }, concurrency: 1 };
  const child = spawn(process.execPath, ['--import', 'tsx', '--import', clock, worker, JSON.stringify(given)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, CHAOS_CLOCK_SHIFT_MS: String(shiftMs) },
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  await once(child.stdout, 'data');
}

test.each([
  ['fast', TEN_MINUTES_MS],
  ['slow', -TEN_MINUTES_MS],
])(
  'a worker whose clock is ten minutes %s locks its job for as long as others, and again, and holds up nobody who looks for the dead',
  async (_, shiftMs) => {
    await using world = await createWorld();
    const app = world.app({ REDIS_URL: 'none' });
    await app.queues.get('crawl').add('crawl', image(1), { delay: 100 });
    await taking(world, shiftMs);
    const { pool } = app.connection;
    const now = 'extract(epoch from clock_timestamp()) * 1000';
    const lock = await until('the lock', async () => {
      const text = `select locked_until_ms::float8 as until, (locked_until_ms - ${now})::float8 as ms
        from bullmq.job where state = 'active'`;
      return (await pool.query<{ until: number; ms: number }>(text)).rows[0];
    });
    expect(lock.ms).toBeGreaterThan(0);
    expect(lock.ms).toBeLessThan(60_000);
    await until('the lock to be renewed', async () => {
      const text = "select attempts_started as starts from bullmq.job where state = 'active' and locked_until_ms > $1";
      const { rows } = await pool.query<{ starts: number }>(text, [lock.until]);
      return rows.length === 1 && rows[0]?.starts === 1;
    });
    const looked = await until('somebody to look for jobs of the dead', async () => {
      const text = `select (${now} - value::bigint)::float8 as ms from bullmq.meta where field = 'stalled-check'`;
      return (await pool.query<{ ms: number }>(text)).rows[0];
    });
    expect(Math.abs(looked.ms)).toBeLessThan(60_000);
  },
);
