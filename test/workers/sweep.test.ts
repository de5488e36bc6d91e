/** What the sweep does by the clock: `pipeline.test.ts` has what it finds. */
import { expect, test } from 'vitest';
import { sha256 } from '../../src/kinds/identity.js';
import { enqueueMissing, startSweep } from '../../workers/sweep.js';
import { until } from '../support/until.js';
import { createWorld } from '../support/world.js';

test('a sweep that is told to stop enqueues no further batch', async () => {
  await using world = await createWorld();
  const app = world.app({});
  await app.connection.pool.query(
    `insert into crawl_content_cache (tenant_id, generation, content_hash, raw_key, job_id, stored_at, version, created_at)
    select 'acme', coalesce(max(generation), 0), encode(sha256(n::text::bytea), 'hex'), 'raw', 'job', now(), 1, now()
    from generate_series(1, 500) as n, cache_generations where tenant_id in ('acme', '*') group by n`,
  );
  const stop = new AbortController();
  const enqueue = app.queues.enqueue.bind(app.queues);
  app.queues.enqueue = async (...args) => {
    stop.abort();
    return enqueue(...args);
  };
  expect(await enqueueMissing(app, 'puppet@1', new Date(0), stop.signal)).toBe(100);
  expect((await app.queues.counts('embedding')).prioritized).toBe(100);
});

const WEEK_MS = 7 * 24 * 3_600_000;

test.each([
  { wholeEveryMs: 300, found: ['new', 'old'] },
  { wholeEveryMs: WEEK_MS, found: ['new'] },
])('images of long ago are looked at once in a while, new ones every round ($wholeEveryMs ms)', async (rhythm) => {
  await using world = await createWorld();
  const app = world.app({});
  const sweep = startSweep(app, 'puppet@1', { everyMs: 50, ...rhythm });
  try {
    const enqueued = async () => {
      const jobs = await app.queues.get('embedding').getJobs(['waiting', 'prioritized']);
      return jobs.map(({ data }) => data.contentHash).toSorted();
    };
    const record = (name: string, age: string) =>
      app.connection.pool.query(
        `insert into crawl_content_cache (tenant_id, generation, content_hash, raw_key, job_id, stored_at, version, created_at)
        select 'acme', coalesce(max(generation), 0), $1, 'raw', 'job', now(), 1, now() - $2::interval
        from cache_generations where tenant_id in ('acme', '*')`,
        [sha256(name), age],
      );
    // The first round is over: it looks at everything.
    await record('before', '0');
    await until('the first image', async () => (await enqueued()).includes(sha256('before')));
    await record('old', '2 days');
    await record('new', '0');
    const expected = ['before', ...rhythm.found].map(sha256).toSorted();
    await until('the images', async () => (await enqueued()).length >= expected.length);
    expect(await enqueued()).toEqual(expected);
  } finally {
    await sweep.stop();
  }
});
