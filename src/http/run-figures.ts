/** Figures about the jobs that ended last: pure sums over what `ended-jobs.ts` read. */
import type { z } from 'zod';
import { QUEUE_NAMES } from '../queues/contract.js';
import type { EndedJob, EndedJobs } from './ended-jobs.js';
import type { failures, run } from './schemas.js';

const RATE_SECONDS = 60;
/** What a tenant is told of, where the window does not hold all: the longest of these that it reaches back. */
const TENANT_SECONDS = [RATE_SECONDS, 10, 1];
/** Seconds of one point of the curve. */
const POINT_SECONDS = 2;

/** What became of the newest jobs of a queue, at most 1,000 of all tenants. */
export type Run = z.infer<typeof run>;
export type Failures = z.infer<typeof failures>;
type Count = Run['outcomes'][number];

/** Those of some tenants. */
export function theirs({ jobs, more }: EndedJobs, tenants: readonly string[] | null): EndedJobs {
  return {
    jobs: tenants ? jobs.filter(({ tenantId }) => tenantId !== null && tenants.includes(tenantId)) : jobs,
    more,
  };
}

/**
 * How far the window goes back tells how much all tenants together do: that is for those alone who see all of them.
 * A tenant's figures are of all its jobs that are kept, else of those of the last minute, 10 s or second: who knows how
 * many of its own ended could tell the window's length by those that are left.
 */
export function runOf(window: EndedJobs, tenants: readonly string[] | null, at: number): Run {
  const begins = window.jobs.at(-1)?.at ?? at;
  const reach = window.more ? Math.max(1, (at - begins) / 1000) : Number.POSITIVE_INFINITY;
  if (!tenants) return figuresOf(window, at, Math.min(RATE_SECONDS, reach));
  const overSeconds = TENANT_SECONDS.find((seconds) => seconds <= reach) as number;
  const { jobs, more } = theirs(window, tenants);
  return figuresOf({ jobs: more ? endedWithin(jobs, at, overSeconds) : jobs, more }, at, overSeconds);
}

function endedWithin(jobs: readonly EndedJob[], at: number, seconds: number): EndedJob[] {
  return jobs.filter((job) => job.at > at - seconds * 1000);
}

function figuresOf({ jobs, more }: EndedJobs, at: number, overSeconds: number): Run {
  const recent = endedWithin(jobs, at, overSeconds);
  return {
    jobs: jobs.length,
    more,
    since: jobs.at(-1)?.at ?? null,
    perSecond: recent.length / overSeconds,
    overSeconds,
    curve: curveOf(recent, at, overSeconds),
    outcomes: countsOf(jobs),
    faces: jobs.reduce((sum, { outcome, faces }) => sum + (outcome === 'embedded' ? faces : 0), 0),
  };
}

function curveOf(recent: readonly EndedJob[], at: number, overSeconds: number): (number | null)[] {
  const points = RATE_SECONDS / POINT_SECONDS;
  const curve = Array.from({ length: points }, (_, i): number | null =>
    (points - i) * POINT_SECONDS <= overSeconds ? 0 : null,
  );
  for (const job of recent) {
    const i = points - 1 - Math.floor(Math.max(0, at - job.at) / 1000 / POINT_SECONDS);
    const point = curve[i];
    if (typeof point === 'number') curve[i] = point + 1 / POINT_SECONDS;
  }
  return curve;
}

function countsOf(jobs: readonly EndedJob[]): Count[] {
  const counts = new Map<string, { outcome: string; reason: string | null; jobs: number }>();
  for (const { outcome, reason } of jobs) {
    const count = counts.get(`${outcome} ${reason}`) ?? { outcome, reason, jobs: 0 };
    count.jobs += 1;
    counts.set(`${outcome} ${reason}`, count);
  }
  return [...counts.values()].sort((a, b) => b.jobs - a.jobs);
}

export function failuresOf(windows: readonly EndedJobs[]): Failures {
  const jobs = windows.flatMap((window) => window.jobs);
  const reasons = QUEUE_NAMES.flatMap((queue) =>
    countsOf(jobs.filter((job) => job.queue === queue)).map((count) => ({
      queue,
      reason: String(count.reason),
      jobs: count.jobs,
    })),
  );
  return {
    jobs: jobs.length,
    more: windows.some(({ more }) => more),
    reasons: reasons.sort((a, b) => b.jobs - a.jobs),
  };
}
