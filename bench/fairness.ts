/** One tenant has 100,000 jobs in the queue, and keeps a worker busy: how long another's ten wait, on either backend. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { type App, connect } from '../src/app.js';
import { toConfig } from '../src/config.js';
import { migrate } from '../src/db/migrate.js';
import type { StackEnv } from '../src/local/running-stack.js';
import { createLogger } from '../src/logger.js';
import { type CrawlPayload, crawlQueue } from '../src/queues/crawl.js';
import { quantileOf, type Row } from './compare.js';

const LARGE = 100_000;
const SMALL = 10;
/** How often the small tenant comes. */
const TIMES = 20;
/** What a worker does at once (`CRAWL_CONCURRENCY`), and how long it is at each: about that of a small image. */
const CONCURRENCY = 16;
const WORK_MS = 25;
const MOST_MS = 2_000;

const BACKENDS = ['redis', 'postgres'] as const;

export async function fairnessRows(env: StackEnv): Promise<Row[]> {
  const rows: Row[] = [];
  for (const backend of BACKENDS) rows.push(await fairnessRow(env, backend));
  return rows;
}

async function fairnessRow(env: StackEnv, backend: (typeof BACKENDS)[number]): Promise<Row> {
  const config = toConfig({ ...env, QUEUE_BACKEND: backend });
  await migrate(config.postgres, { queueOnPostgres: backend === 'postgres' });
  // On PostgreSQL a namespace would be a schema, which has to be migrated.
  const namespace = backend === 'redis' ? { queueNamespace: 'bench_fairness' } : {};
  const app = connect(config, { logger: createLogger('silent'), ...namespace });
  try {
    await app.queues.enqueue(crawlQueue, jobsOf('large', 0, LARGE));
    const { waits, left } = await waitsOfSmall(app);
    const p95 = quantileOf(waits, 0.95);
    return {
      work: `wait of ${SMALL} jobs beside another tenant's ${LARGE.toLocaleString('en')}, queues on ${backend}, p95`,
      ours: p95,
      raw: null,
      ratio: null,
      target: MOST_MS,
      ok: p95 <= MOST_MS && left > 0,
      better: 'lower',
      unit: 'ms',
      peers: {},
      also: { longestMs: Math.max(...waits), jobsOfTheLargeLeft: left },
    };
  } finally {
    await app.close();
  }
}

/** Milliseconds from being enqueued to being begun. */
async function waitsOfSmall(app: App): Promise<{ waits: number[]; left: number }> {
  const begun = new Map<string, number>();
  const processor = async ({ data }: { data: CrawlPayload }) => {
    if (data.tenantId === 'small') begun.set(data.url, performance.now());
    await pause(WORK_MS);
    return { outcome: 'stored' };
  };
  const worker = app.backend.worker('crawl', processor, CONCURRENCY);
  const running = worker.run();
  const waits: number[] = [];
  for (let time = 0; time < TIMES; time++) {
    const jobs = jobsOf('small', time * SMALL, SMALL);
    const enqueued = performance.now();
    await app.queues.enqueue(crawlQueue, jobs);
    while (!jobs.every(({ url }) => begun.has(url))) await pause(5);
    waits.push(...jobs.map(({ url }) => (begun.get(url) as number) - enqueued));
  }
  const { prioritized = 0 } = await app.queues.counts('crawl');
  await worker.close();
  await running;
  return { waits, left: prioritized };
}

function jobsOf(tenantId: string, first: number, count: number): CrawlPayload[] {
  return Array.from({ length: count }, (_, i) => ({
    v: 1,
    tenantId,
    url: `https://images.example.com/${tenantId}/${first + i}.jpg`,
  }));
}
