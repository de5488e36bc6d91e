/** Waits for crawl jobs, and counts how they ended. */
import { setTimeout as pause } from 'node:timers/promises';
import { failureReasonOf } from '../errors.js';
import { type JobView, type Queues, QueueUnavailableError } from './index.js';

export interface OutcomeCount {
  /** As in the job's outcome; or `failed`, `removed` (it is not in the queue any more), `waiting` (for it was stopped). */
  readonly outcome: string;
  readonly reason: string | null;
  readonly count: number;
}

export interface WaitState {
  readonly ended: number;
  /** Delayed, by their host's schedule or for the next attempt. */
  readonly putOff: number;
  /** Whether the queue's store did not answer the last question. */
  readonly isAway: boolean;
}

/** Jobs that are looked at together: on PostgreSQL they share a few connections, and none may wait for long. */
const WINDOW = 200;
const PAUSE_MS = 200;
const AWAY_MS = 1_000;

/**
 * Looks at one window of the jobs after the other, round and round, until all have ended: so nothing is missed, whatever
 * happens to this process, to its connections and to the jobs. It looks for no more than half of the time.
 *
 * While the queue's store is away it waits; the jobs do so too.
 *
 * @returns what is most first
 */
export async function outcomesOf(
  queues: Queues,
  ids: ReadonlySet<string>,
  signal: AbortSignal,
  watch: (state: WaitState) => void,
): Promise<OutcomeCount[]> {
  const counts = new Map<string, OutcomeCount>();
  const count = (outcome: string, reason: string | null, jobs = 1) => {
    const key = `${outcome} ${reason}`;
    counts.set(key, { outcome, reason, count: (counts.get(key)?.count ?? 0) + jobs });
  };
  const putOff = new Set<string>();
  const left = [...ids];
  for (let from = 0; left.length > 0 && !signal.aborted; ) {
    const looked = performance.now();
    const window = left.slice(from, from + WINDOW);
    const views = await lookAt(queues, window);
    const going = window.filter((id) => {
      const view = views?.get(id);
      const end = views && endOf(view);
      if (end) count(...end);
      if (view?.state === 'delayed') putOff.add(id);
      else if (views) putOff.delete(id);
      return !end;
    });
    left.splice(from, window.length, ...going);
    from += going.length;
    const isRound = from >= left.length;
    if (isRound) from = 0;
    watch({ ended: ids.size - left.length, putOff: putOff.size, isAway: !views });
    const restMs = views ? (isRound ? PAUSE_MS : performance.now() - looked) : AWAY_MS;
    if (left.length > 0) await pause(restMs, undefined, { signal }).catch(() => undefined);
  }
  if (left.length > 0) count('waiting', null, left.length);
  return [...counts.values()].sort((a, b) => b.count - a.count);
}

/** `null` while the store is away; unknown jobs are left out. */
async function lookAt(queues: Queues, ids: readonly string[]): Promise<Map<string, JobView> | null> {
  try {
    const views = await Promise.all(ids.map((id) => queues.job('crawl', id)));
    return new Map(views.flatMap((view) => (view ? [[view.id, view]] : [])));
  } catch (error) {
    if (error instanceof QueueUnavailableError) return null;
    throw error;
  }
}

/** Outcome and reason; `null` of a job that has not ended. */
function endOf(job: JobView | undefined): [string, string | null] | null {
  if (!job) return ['removed', null];
  if (job.state === 'failed') return ['failed', failureReasonOf(job.error ?? '')];
  if (job.state !== 'completed') return null;
  const { outcome = 'completed', reason = null } = (job.outcome ?? {}) as { outcome?: string; reason?: string };
  return [outcome, reason];
}
