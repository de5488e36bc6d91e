/** What every queue does, on PostgreSQL, and what its completed jobs cost there. */
import { expect, test } from 'vitest';
import { crawlQueue } from '../../src/queues/crawl.js';
import { image, startWork } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld } from '../support/world.js';
import { queueSuite } from './queue-suite.js';

queueSuite('postgres');

test('of completed jobs no more than about 100,000 are kept, and they are not read whenever one completes', async () => {
  await using world = await createWorld();
  const app = world.app({ QUEUE_BACKEND: 'postgres' });
  const { pool } = app.connection;
  const read = async () => {
    await pool.query('select pg_stat_force_next_flush()').catch(() => undefined); // since PostgreSQL 15
    const text =
      "select idx_tup_fetch::float8 as rows from pg_stat_user_tables where schemaname = 'bullmq' and relname = 'job'";
    return (await pool.query<{ rows: number }>(text)).rows[0]?.rows ?? 0;
  };
  const kept = async () => (await app.queues.counts('crawl')).completed ?? 0;
  await app.queues.reach('crawl');
  await pool.query(
    `insert into bullmq.job (queue, id, seq, name, state, data, opts, added_at_ms, finished_at_ms)
       select 'crawl', 'old-' || n, nextval('bullmq.job_seq'), 'crawl', 'completed', '{}', '{}', ms, ms
       from (select n, (extract(epoch from now()) * 1000 - 600000 + n)::bigint as ms from generate_series(1, 100500) n) old`,
  );
  const worker = startWork(app, async () => ({ outcome: 'stored' }), { concurrency: 16 });
  await app.queues.enqueue(
    crawlQueue,
    Array.from({ length: 1_000 }, (_, n) => image(n)),
  );
  await until('the oldest to be gone', async () => (await kept()) <= 100_000, 60_000);
  expect(await kept()).toBeGreaterThan(99_000);
  expect(worker.isRunning()).toBe(true);
  expect(await read()).toBeLessThan(5_000_000);
});
