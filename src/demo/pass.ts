/** One pass of the demo: enqueue every URL for every tenant, wait, and count what happened. */

import type { Progress } from '../progress.js';
import type { ApiClient, JobAnswer } from './client.js';

export interface PassResult {
  readonly jobs: number;
  readonly stored: number;
  readonly skippedByUrl: number;
  readonly skippedByContent: number;
  readonly nearDuplicates: number;
  readonly rejected: Record<string, number>;
  readonly failed: number;
  readonly faces: number;
  readonly redisHits: number;
  readonly postgresHits: number;
  readonly downloads: number;
  readonly imagesPerSecond: number;
}

export interface PassOptions {
  readonly tenants: readonly string[];
  readonly urls: readonly string[];
  /** Requests that the site has served. */
  readonly requests: () => number;
}

export async function runPass(client: ApiClient, options: PassOptions, progress: Progress): Promise<PassResult> {
  const started = performance.now();
  const requestsBefore = options.requests();
  const hitsBefore = await hits(client);
  const answers = await crawlAll(client, options, progress);
  const stored = answers.filter(({ job }) => job.outcome?.outcome === 'stored');
  progress.begin('embedding', stored.length);
  await client.embedded((left) => progress.at(stored.length - left));
  progress.end();
  const seconds = (performance.now() - started) / 1000;
  const faces = await Promise.all(
    stored.map(({ tenantId, job }) => client.faces(tenantId, String(job.outcome?.contentHash))),
  );
  // After everything that looks something up, so that the table says what `/metrics` says.
  const hitsAfter = await hits(client);
  const skipped = (reason: string) =>
    answers.filter(({ job }) => job.outcome?.outcome === 'skipped' && job.outcome.reason === reason).length;
  return {
    jobs: answers.length,
    stored: stored.length,
    skippedByUrl: skipped('url'),
    skippedByContent: skipped('content'),
    nearDuplicates: stored.filter(({ job }) => (job.outcome?.nearDuplicates as unknown[]).length > 0).length,
    rejected: reasons(answers),
    failed: answers.filter(({ job }) => job.state === 'failed').length,
    faces: faces.reduce((sum, count) => sum + count, 0),
    redisHits: hitsAfter.redis - hitsBefore.redis,
    postgresHits: hitsAfter.postgres - hitsBefore.postgres,
    downloads: options.requests() - requestsBefore,
    imagesPerSecond: answers.length / seconds,
  };
}

interface TenantAnswer {
  readonly tenantId: string;
  readonly job: JobAnswer;
}

async function crawlAll(client: ApiClient, options: PassOptions, progress: Progress): Promise<TenantAnswer[]> {
  progress.begin('crawling', options.tenants.length * options.urls.length);
  const perTenant = await Promise.all(
    options.tenants.map(async (tenantId) => {
      const ids = await client.enqueue(tenantId, options.urls);
      const jobs = await client.finished(ids, () => progress.step());
      return jobs.map((job) => ({ tenantId, job }));
    }),
  );
  progress.end();
  return perTenant.flat();
}

function reasons(answers: readonly TenantAnswer[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { job } of answers) {
    if (job.outcome?.outcome !== 'rejected') continue;
    const reason = String(job.outcome.reason);
    counts[reason] = (counts[reason] ?? 0) + 1;
  }
  return counts;
}

async function hits(client: ApiClient): Promise<{ redis: number; postgres: number }> {
  const [redis, postgres] = await Promise.all([
    client.counter('hybrid_cache_requests_total', { result: 'redis_hit' }),
    client.counter('hybrid_cache_requests_total', { result: 'postgres_hit' }),
  ]);
  return { redis, postgres };
}
