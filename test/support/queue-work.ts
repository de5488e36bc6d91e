/** Jobs and workers of the crawl queue whose work a test decides. */
import type { Worker } from 'bullmq';
import type { App } from '../../src/app.js';
import { type CrawlPayload, crawlQueue } from '../../src/queues/crawl.js';
import type { JobView } from '../../src/queues/index.js';
import { tellEnds } from '../../workers/ends.js';
import { type Perform, processorOf } from '../../workers/run.js';
import { until } from './until.js';

export type CrawlWork = Perform<CrawlPayload, { outcome: string; [more: string]: unknown }>;

export interface WorkOptions {
  readonly concurrency?: number;
  /** What a shutting down process would fire. */
  readonly shutdown?: AbortSignal;
}

/** A crawl worker that does `work`, with all of the service's own behaviour around it; closed with the app. */
export function startWork(app: App, work: CrawlWork, { concurrency = 1, shutdown }: WorkOptions = {}): Worker {
  const signal = shutdown ?? new AbortController().signal;
  const processor = processorOf(crawlQueue, work, app.events, signal);
  const worker = tellEnds(app.backend.worker('crawl', processor, concurrency), app.events);
  app.closer.add('worker', worker, (one) => one.close(true));
  worker.run().catch((error: unknown) => app.events.queueError(worker.name, error));
  return worker;
}

export function image(n: number | string, more: Partial<CrawlPayload> = {}): CrawlPayload {
  return { v: 1, tenantId: 'acme', url: `https://example.com/${n}.jpg`, ...more };
}

/** Enqueues one crawl job and gives its id. */
export async function enqueueOne(app: App, payload: CrawlPayload = image(1)): Promise<string> {
  const [id] = await app.queues.enqueue(crawlQueue, [payload]);
  return String(id);
}

/** The job once it is in `state`. */
export function untilState(app: App, id: string, ...states: string[]): Promise<JobView> {
  return until(`job ${id} is ${states.join(' or ')}`, async () => {
    const job = await app.queues.job('crawl', id);
    return job && states.includes(job.state) ? job : null;
  });
}

/** The job's wait before its next run, in milliseconds, as the queue keeps it. */
export async function delayOf(app: App, id: string): Promise<number> {
  return (await rawJob(app, id)).delay;
}

/** Has a delayed job run now. */
export async function promote(app: App, id: string): Promise<void> {
  await (await rawJob(app, id)).promote();
}

async function rawJob(app: App, id: string) {
  const job = await app.queues.get('crawl').getJob(id);
  if (!job) throw new Error(`no job ${id}`);
  return job;
}

/** A gate that is shut until it is opened, for holding a job in the middle. */
export function gate(): { readonly opened: Promise<void>; open(): void } {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open: () => open() };
}
