/** The failed set, seen by queue, reason, host and tenant; and what runs its jobs again. */
import type { Job, Queue } from 'bullmq';
import { type FailureReason, failureReasonOf } from '../errors.js';
import { CONTENT_HASH, TENANT_ID } from '../kinds/kind.js';
import { canonicalUrl } from '../kinds/url.js';
import { withoutSecrets } from '../logger.js';
import { QUEUE_NAMES, type QueueName } from './contract.js';
import type { Queues } from './index.js';

/** What a failed job must be to be meant; what is left out means any. */
export interface FailedFilter {
  readonly queue?: QueueName;
  readonly reason?: FailureReason;
  /** As in `new URL(url).host`; without a port it is the host on every port. */
  readonly host?: string;
  readonly tenant?: string;
}

/** A job of the failed set. What its payload does not say, or says wrongly, is `null`. */
export interface FailedJob {
  readonly id: string;
  readonly queue: QueueName;
  readonly reason: FailureReason;
  /** The job's last error, without the queries of URLs, which may be signatures. */
  readonly error: string;
  readonly failedAt: Date;
  readonly attempts: number;
  readonly tenantId: string | null;
  /** Host and path are those of the canonical URL, without its query. */
  readonly host: string | null;
  readonly path: string | null;
  readonly contentHash: string | null;
}

export interface FailedSummary {
  readonly failed: number;
  /** Jobs by reason, those that are many first. */
  readonly reasons: Partial<Record<FailureReason, number>>;
  /** The hosts with the most failed jobs, at most ten. */
  readonly hosts: { readonly host: string; readonly failed: number }[];
  /** How many hosts there are in all. */
  readonly hostCount: number;
  /** The newest, at most as many as were asked for. */
  readonly jobs: FailedJob[];
}

export interface Retried {
  readonly retried: number;
  /** Left where they are: a job of the same identity waits or runs. */
  readonly twins: number;
  /** Retried or removed by somebody else meanwhile. */
  readonly gone: number;
}

const TOP_HOSTS = 10;
/** Jobs that are read or retried at once: on PostgreSQL they share a few connections, and none may wait for 5 s. */
const BATCH = 200;

/** Is told how many of a queue's failed jobs are dealt with. */
export type Watch = (done: number, of: number) => void;

/**
 * Every failed job that matches, counted, and the newest in full.
 *
 * @throws {QueueUnavailableError} within a second where the store is away
 */
export async function listFailed(
  queues: Queues,
  filter: FailedFilter,
  limit: number,
  watch?: Watch,
): Promise<FailedSummary> {
  const reasons = new Map<FailureReason, number>();
  const hosts = new Map<string, number>();
  let newest: FailedJob[] = [];
  let failed = 0;
  for await (const { views } of matching(queues, filter, watch)) {
    failed += views.length;
    for (const { reason, host } of views) {
      reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
      if (host !== null) hosts.set(host, (hosts.get(host) ?? 0) + 1);
    }
    newest = [...newest, ...views].sort((a, b) => b.failedAt.getTime() - a.failedAt.getTime()).slice(0, limit);
  }
  return {
    failed,
    reasons: Object.fromEntries(mostFirst(reasons)),
    hosts: mostFirst(hosts)
      .slice(0, TOP_HOSTS)
      .map(([host, jobs]) => ({ host, failed: jobs })),
    hostCount: hosts.size,
    jobs: newest,
  };
}

/**
 * Has every failed job that matches wait again, under its old id and with all of its attempts; those that fail anew
 * while this runs are not retried a second time.
 *
 * Twins: BullMQ looks at no deduplication key when it retries, and the job gets none. So a job whose twin, enqueued
 * since, waits or runs is left in the failed set, and of several failed twins one call retries only the newest. A twin
 * that is enqueued or retried after that waits beside the retried job: the claims of the workers keep the two from working
 * at the same time, and the second one finds what the first one left.
 *
 * @throws {QueueUnavailableError} within a second where the store is away
 */
export async function retryFailed(queues: Queues, filter: FailedFilter, watch?: Watch): Promise<Retried> {
  const counts = { retried: 0, twins: 0, gone: 0 };
  const identities = new Set<string>();
  for await (const { queue, jobs } of matching(queues, filter, watch)) {
    const ends = await Promise.all(jobs.map((job) => retryOne(queue, job, identities)));
    for (const end of ends) counts[end] += 1;
  }
  return counts;
}

async function retryOne(queue: Queue, job: Job, identities: Set<string>): Promise<keyof Retried> {
  const identity = job.deduplicationId && `${queue.name} ${job.deduplicationId}`;
  if (identity) {
    if (identities.has(identity)) return 'twins';
    identities.add(identity);
    if (await hasLiveTwin(queue, job)) return 'twins';
  }
  // Who runs again by somebody else's doing remembers what it needs.
  if ((await queue.getJobState(String(job.id))) !== 'failed') return 'gone';
  try {
    // Since when it waits. What it remembered of its earlier runs is as old as its failure.
    await job.updateProgress({ retriedAt: Date.now() });
    await job.retry('failed', { resetAttemptsMade: true });
    return 'retried';
  } catch (error) {
    if (isGone(error)) return 'gone';
    throw error;
  }
}

async function hasLiveTwin(queue: Queue, { id, deduplicationId = '' }: Job): Promise<boolean> {
  const holder = await queue.getDeduplicationJobId(deduplicationId);
  if (!holder || holder === id) return false;
  return !['completed', 'failed', 'unknown'].includes(await queue.getJobState(holder));
}

/** BullMQ's codes for a job that does not exist, and for one that is not in the set it was looked for in. */
function isGone(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === -1 || error.code === -3);
}

interface Batch {
  readonly queue: Queue;
  readonly jobs: Job[];
  /** As many as `jobs`, in the same order. */
  readonly views: FailedJob[];
}

/**
 * The failed jobs that match, each queue's newest first. All ids are asked for in one go. Page by page (`getJobs`) the
 * set changes between the pages, and on PostgreSQL jobs that failed in the same millisecond change places: of 6,000
 * there 14 were missed, and others came twice.
 */
async function* matching(queues: Queues, filter: FailedFilter, watch?: Watch): AsyncGenerator<Batch> {
  for (const name of QUEUE_NAMES) {
    if (filter.queue && filter.queue !== name) continue;
    await queues.reach(name); // says within a second that the store is away
    const queue = queues.get(name);
    const ids = await queue.getRanges(['failed'], 0, -1);
    for (let from = 0; from < ids.length; from += BATCH) {
      const found = await Promise.all(ids.slice(from, from + BATCH).map((id) => queue.getJob(id)));
      const seen = found.flatMap((job) => (isFailed(job) ? [{ job, view: viewOf(name, job) }] : []));
      const meant = seen.filter(({ view }) => matches(view, filter));
      yield { queue, jobs: meant.map(({ job }) => job), views: meant.map(({ view }) => view) };
      watch?.(Math.min(from + BATCH, ids.length), ids.length);
    }
  }
}

/** Somebody else may have retried or removed it since its id was read. */
function isFailed(job: Job | undefined): job is Job {
  return job?.finishedOn !== undefined && (job.returnvalue ?? null) === null;
}

function matches(job: FailedJob, filter: FailedFilter): boolean {
  if (filter.reason && job.reason !== filter.reason) return false;
  if (filter.host && !isOf(filter.host, job.host)) return false;
  return !filter.tenant || job.tenantId === filter.tenant;
}

/** A host without a port is that host on every port. */
function isOf(wanted: string, host: string | null): boolean {
  return host === wanted || host?.replace(/:\d+$/, '') === wanted;
}

function viewOf(queue: QueueName, job: Job): FailedJob {
  const failedReason = job.failedReason ?? '';
  const payload: Record<string, unknown> = typeof job.data === 'object' ? { ...job.data } : {};
  return {
    id: String(job.id),
    queue,
    reason: failureReasonOf(failedReason),
    error: withoutSecrets(failedReason),
    failedAt: new Date(job.finishedOn ?? 0),
    attempts: job.attemptsMade,
    tenantId: textLike(TENANT_ID, payload.tenantId),
    ...placeOf(payload.url),
    contentHash: textLike(CONTENT_HASH, payload.contentHash),
  };
}

function placeOf(url: unknown): { host: string | null; path: string | null } {
  try {
    const { host, pathname } = new URL(canonicalUrl(url as string));
    return { host, path: pathname };
  } catch {
    return { host: null, path: null };
  }
}

function textLike(pattern: RegExp, value: unknown): string | null {
  return typeof value === 'string' && pattern.test(value) ? value : null;
}

function mostFirst<Name>(counts: ReadonlyMap<Name, number>): [Name, number][] {
  return [...counts].sort(([, a], [, b]) => b - a);
}
