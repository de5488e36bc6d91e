/** An app with workers over a world: enqueue and see how each job ended. */
import type { App } from '../../src/app.js';
import { type CrawlPayload, crawlQueue } from '../../src/queues/crawl.js';
import { type EmbeddingPayload, embeddingQueue } from '../../src/queues/embedding.js';
import type { JobView } from '../../src/queues/index.js';
import type { CrawlOutcome } from '../../workers/crawl-step.js';
import type { EmbeddingOutcome } from '../../workers/embedding.js';
import { until } from './until.js';

/** Enqueues a crawl job and resolves with its view once it has ended. */
export async function crawlJob(app: App, tenantId: string, url: string, more: Partial<CrawlPayload> = {}) {
  const [id = ''] = await app.queues.enqueue(crawlQueue, [{ v: 1, tenantId, url, ...more }]);
  return ended(app, 'crawl', id);
}

/** As `crawlJob`, where the job is expected to complete. */
export async function crawled(app: App, tenantId: string, url: string, more: Partial<CrawlPayload> = {}) {
  const job = await crawlJob(app, tenantId, url, more);
  if (job.state !== 'completed') throw new Error(`${url} ended ${job.state}: ${job.error}`);
  return job.outcome as CrawlOutcome;
}

export async function embedded(app: App, tenantId: string, contentHash: string): Promise<EmbeddingOutcome> {
  const payload: EmbeddingPayload = { v: 1, tenantId, contentHash };
  const [id = ''] = await app.queues.enqueue(embeddingQueue, [payload]);
  const job = await ended(app, 'embedding', id);
  if (job.state !== 'completed') throw new Error(`${contentHash} ended ${job.state}: ${job.error}`);
  return job.outcome as EmbeddingOutcome;
}

export async function ended(app: App, queue: 'crawl' | 'embedding', id: string, ms?: number): Promise<JobView> {
  const end = async () => {
    const job = await app.queues.job(queue, id);
    return job && ['completed', 'failed'].includes(job.state) ? job : null;
  };
  return until(`job ${id} of ${queue} to end`, end, ms);
}

/** Resolves when no job waits or runs. */
export async function idle(app: App, ...queues: ('crawl' | 'embedding')[]): Promise<void> {
  await until(`${queues.join(' and ')} to be idle`, async () => {
    const counts = await Promise.all(queues.map((queue) => app.queues.counts(queue)));
    return counts.every(({ waiting, prioritized, active, delayed }) => !waiting && !prioritized && !active && !delayed);
  });
}
