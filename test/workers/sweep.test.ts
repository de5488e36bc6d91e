/** What the sweep does by the clock: `pipeline.test.ts` has what it finds. */
import { expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { sha256 } from '../../src/kinds/identity.js';
import type { Periodic } from '../../src/lifecycle.js';
import { enqueueMissing, startSweep } from '../../workers/sweep.js';
import { until } from '../support/until.js';
import { createWorld } from '../support/world.js';

test('a sweep that is told to stop enqueues no further batch; the next one counts what is new', async () => {
  await using world = await createWorld();
  const app = world.app({});
  await app.connection.pool.query(
    `insert into crawl_content_cache (tenant_id, generation, content_hash, raw_key, job_id, stored_at, version, created_at)
    select 'acme', coalesce(max(generation), 0), encode(sha256(n::text::bytea), 'hex'), 'raw', 'job', now(), 1, now()
    from generate_series(1, 500) as n, cache_generations where tenant_id in ('acme', '*') group by n`,
  );
  const stop = new AbortController();
  const enqueue = app.queues.enqueueTellingTwins.bind(app.queues);
  app.queues.enqueueTellingTwins = async (...args) => {
    stop.abort();
    return enqueue(...args);
  };
  expect(await enqueueMissing(app, 'puppet@1', new Date(0), stop.signal)).toBe(100);
  expect((await app.queues.counts('embedding')).prioritized).toBe(100);
  app.queues.enqueueTellingTwins = enqueue;
  expect(await enqueueMissing(app, 'puppet@1', new Date(0))).toBe(400);
});

const WEEK_MS = 7 * 24 * 3_600_000;

/** Records an image as of some time ago. */
async function record(app: App, name: string, age: string): Promise<void> {
  await app.connection.pool.query(
    `insert into crawl_content_cache (tenant_id, generation, content_hash, raw_key, job_id, stored_at, version, created_at)
    select 'acme', coalesce(max(generation), 0), $1, 'raw', 'job', now(), 1, now() - $2::interval
    from cache_generations where tenant_id in ('acme', '*')`,
    [sha256(name), age],
  );
}

async function enqueued(app: App): Promise<string[]> {
  const jobs = await app.queues.get('embedding').getJobs(['waiting', 'prioritized']);
  return jobs.map(({ data }) => data.contentHash).toSorted();
}

/** Whose first round, which looks at everything, is over. */
async function startedSweep(app: App, rhythm: { everyMs: number; wholeEveryMs: number }): Promise<Periodic> {
  const sweep = startSweep(app, 'puppet@1', rhythm);
  await record(app, 'before', '0');
  await until('the first image', async () => (await enqueued(app)).includes(sha256('before')));
  return sweep;
}

test.each([
  { wholeEveryMs: 300, found: ['new', 'old'] },
  { wholeEveryMs: WEEK_MS, found: ['new'] },
])('images of long ago are looked at once in a while, new ones every round ($wholeEveryMs ms)', async (rhythm) => {
  await using world = await createWorld();
  const app = world.app({});
  const sweep = await startedSweep(app, { everyMs: 50, ...rhythm });
  try {
    await record(app, 'old', '2 days');
    await record(app, 'new', '0');
    const expected = ['before', ...rhythm.found].map(sha256).toSorted();
    await until('the images', async () => (await enqueued(app)).length >= expected.length);
    expect(await enqueued(app)).toEqual(expected);
  } finally {
    await sweep.stop();
  }
});

test("images of long ago are looked at when the queue's Redis began anew: it may have lost their jobs", async () => {
  await using world = await createWorld();
  const app = world.app({});
  const sweep = await startedSweep(app, { everyMs: 50, wholeEveryMs: WEEK_MS });
  try {
    await record(app, 'old', '2 days');
    const { journal } = app.connection;
    if (!journal) throw new Error('the queue is not in Redis');
    const facts = journal.facts.bind(journal);
    journal.facts = async () => ({ ...(await facts()), runId: 'another' });
    await until('the old image', async () => (await enqueued(app)).includes(sha256('old')));
  } finally {
    await sweep.stop();
  }
});

test("new images are found where this machine's clock is an hour fast", async () => {
  await using world = await createWorld();
  const app = world.app({});
  const clock = Date.now;
  Date.now = () => clock() + 3_600_000;
  const sweep = await startedSweep(app, { everyMs: 50, wholeEveryMs: WEEK_MS });
  try {
    await record(app, 'new', '0');
    await until('the new image', async () => (await enqueued(app)).includes(sha256('new')));
  } finally {
    Date.now = clock;
    await sweep.stop();
  }
});
