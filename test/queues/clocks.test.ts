/** Workers on machines without NTP: it is the clock of the queue's server that decides. */
import type { ChildProcess } from 'node:child_process';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { enqueueOne, image, startWork, untilState } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { killableWorker } from './killable.js';

const TEN_MINUTES_MS = 600_000;
const MINUTE_MS = 60_000;

type Backend = 'redis' | 'postgres';

/** A process whose clock is off, which takes a job and never ends it, or puts it off. Resolves once it has taken one. */
async function taking(world: World, backend: Backend, clockShiftMs: number, putOffMs?: number): Promise<ChildProcess> {
  const options = { env: { QUEUE_BACKEND: backend }, concurrency: 1, clockShiftMs };
  const { child, taken } = killableWorker(world, putOffMs === undefined ? options : { ...options, putOffMs });
  await until('it to take a job', () => taken.size > 0, 60_000);
  return child;
}

describe.each([
  ['fast', 'redis', TEN_MINUTES_MS],
  ['slow', 'redis', -TEN_MINUTES_MS],
  ['fast', 'postgres', TEN_MINUTES_MS],
  ['slow', 'postgres', -TEN_MINUTES_MS],
] as const)('a worker whose clock is ten minutes %s, queues on %s', (_, backend, shiftMs) => {
  let world: World;
  let app: App;

  beforeEach(async () => {
    world = await createWorld();
    app = world.app({ QUEUE_BACKEND: backend });
  });

  afterEach(() => world[Symbol.asyncDispose]());

  /** Of the one job, by the server's clock; `null` where it has none. */
  async function leftMs(of: 'lock' | 'delay'): Promise<number | null> {
    if (backend === 'postgres') {
      const column = of === 'lock' ? 'locked_until_ms' : 'process_at_ms';
      const { rows } = await app.connection.pool.query<{ ms: number | null }>(
        `select (${column} - extract(epoch from clock_timestamp()) * 1000)::float8 as ms from bullmq.job`,
      );
      return rows[0]?.ms ?? null;
    }
    const redis = redisClient(world);
    const key = `${world.namespace}:crawl`;
    const [id] = [...(await redis.lrange(`${key}:active`, 0, 0)), ...(await redis.zrange(`${key}:delayed`, '0', '0'))];
    const [lock, due, [seconds]] = await Promise.all([
      redis.pttl(`${key}:${id}:lock`),
      redis.zscore(`${key}:delayed`, id ?? ''),
      redis.time(),
    ]);
    redis.disconnect();
    if (of === 'lock') return lock > 0 ? lock : null;
    // BullMQ keeps the milliseconds in all but the last twelve bits.
    return due === null ? null : Number(due) / 4096 - Number(seconds) * 1000;
  }

  test('locks its job for as long as others, and again', async () => {
    await app.queues.get('crawl').add('crawl', image(1), { delay: 100 });
    await taking(world, backend, shiftMs);
    let last = await until('the lock', () => leftMs('lock'));
    expect(last).toBeLessThan(MINUTE_MS);
    await until('the lock to be renewed', async () => {
      const before = last;
      last = (await leftMs('lock')) ?? 0;
      return last > before;
    });
    const [job] = await app.queues.get('crawl').getActive();
    expect(job?.attemptsStarted).toBe(1);
  });

  test('puts a job off for as long as it says', async () => {
    const id = await enqueueOne(app);
    await taking(world, backend, shiftMs, 10 * TEN_MINUTES_MS);
    await untilState(app, id, 'delayed');
    expect(Math.abs(((await leftMs('delay')) ?? 0) - 10 * TEN_MINUTES_MS)).toBeLessThan(MINUTE_MS);
  });

  test('leaves what it has put off to others, when it is due', async () => {
    const id = await enqueueOne(app);
    const child = await taking(world, backend, shiftMs, 3_000);
    await untilState(app, id, 'delayed');
    child.kill('SIGKILL');
    startWork(app, async () => ({ outcome: 'done by another' }));
    expect((await untilState(app, id, 'completed')).outcome).toEqual({ outcome: 'done by another' });
  });
});

test.each([
  ['fast', TEN_MINUTES_MS],
  ['slow', -TEN_MINUTES_MS],
])('a worker whose clock is ten minutes %s holds up nobody who looks for the jobs of the dead', async (_, shiftMs) => {
  await using world = await createWorld();
  const app = world.app({ QUEUE_BACKEND: 'postgres' });
  await enqueueOne(app);
  await taking(world, 'postgres', shiftMs);
  const looked = await until('somebody to look for jobs of the dead', async () => {
    const text = `select (extract(epoch from clock_timestamp()) * 1000 - value::bigint)::float8 as ms
      from bullmq.meta where field = 'stalled-check'`;
    return (await app.connection.pool.query<{ ms: number }>(text)).rows[0];
  });
  expect(Math.abs(looked.ms)).toBeLessThan(MINUTE_MS);
});
