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
    const text = `select (idx_tup_fetch + seq_tup_read)::float8 as rows from pg_stat_user_tables
      where schemaname = 'bullmq' and relname = 'job'`;
    return (await pool.query<{ rows: number }>(text)).rows[0]?.rows ?? 0;
  };
  const kept = async () => (await app.queues.counts('crawl')).completed ?? 0;
  await app.queues.reach('crawl');
  await pool.query(
    `insert into bullmq.job (queue, id, seq, name, state, data, opts, added_at_ms, finished_at_ms)
       select 'crawl', 'old-' || n, nextval('bullmq.job_seq'), 'crawl', 'completed', '{}', '{}', ms, ms
       from (select n, (extract(epoch from now()) * 1000 - 600000 + n)::bigint as ms from generate_series(1, 100500) n) old`,
  );
  let ended = 0;
  const worker = startWork(app, async () => ({ outcome: 'stored' }), { concurrency: 16 });
  worker.on('completed', () => {
    ended += 1;
  });
  await app.queues.enqueue(
    crawlQueue,
    Array.from({ length: 1_000 }, (_, n) => image(n)),
  );
  await until('all to end', () => Promise.resolve(ended === 1_000), 50_000);
  await until('the oldest to be gone', async () => (await kept()) <= 100_000, 60_000);
  expect(await kept()).toBeGreaterThan(99_000);
  expect(worker.isRunning()).toBe(true);
  // Their end alone would read each of 100,000 twice, a thousand times.
  expect(await read()).toBeLessThan(20_000_000);
});
