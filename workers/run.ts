/**
 * Around every processor: check the payload, and translate an error into the queue's verb. The only place that knows both
 * our errors and BullMQ's; what the queue records of a run is told by `ends.ts`.
 *
 *     payload is malformed          fails at once, unretried, as `invalid-payload`, naming the field
 *     DeferredError                 delayed, no attempt spent
 *     Tier-, QueueUnavailableError  delayed, no attempt spent: an outage of ours fails no job
 *     told to stop while it ran     delayed, no attempt spent
 *     PoisonError                   fails at once, as `poison`
 *     anything else                 an attempt is spent; retried with backoff; failed when none is left, with the
 *                                   error's own words: `failureReasonOf` reads their class
 *
 * `RejectedError` is not here: it is an outcome, and the jobs themselves make it one.
 */
import { performance } from 'node:perf_hooks';
import { DelayedError, type Job, type Processor, UnrecoverableError } from 'bullmq';
import {
  DeferredError,
  PoisonError,
  RejectedError,
  type RejectReason,
  RetryableError,
  TierUnavailableError,
} from '../src/errors.js';
import type { Events } from '../src/events.js';
import { EitherSignal } from '../src/lifecycle.js';
import { BACKOFF, type QueueContract } from '../src/queues/contract.js';
import { QueueUnavailableError } from '../src/queues/index.js';
import { check } from '../src/schema-check.js';
import { fieldsOf, secondsOf } from './ends.js';

/** What a processor gets besides its payload. */
export interface Run {
  /** The job's id in its queue: for people. */
  readonly id: string;
  /** Identity of the job, the same for all its attempts and never another job's: for records and claims. */
  readonly jobId: string;
  /** What `remember` kept in earlier runs of this job; empty in the first. */
  readonly remembered: Readonly<Record<string, unknown>>;
  /** Keeps something for the job's next run, beside what is kept already. */
  remember(fact: Readonly<Record<string, unknown>>): Promise<void>;
  /** How often a worker died under this job, whoever killed it. */
  readonly deaths: number;
  /** Whether an earlier run of the job began, which may have come to anything before it was cut short. */
  readonly isRepeat: boolean;
  /** Whether a failure of this run is the job's end. */
  readonly isLast: boolean;
  /** Fires when the work should stop: the process shuts down, or the job was cancelled or lost its lock. */
  readonly signal: AbortSignal;
}

/** The outcome that both jobs share: a lasting fact about the image or its URL. */
export interface Rejected {
  readonly outcome: 'rejected';
  readonly reason: RejectReason;
  readonly detail: string;
}

/** Makes a `RejectedError` of `work` the job's outcome, once `remember` has kept it. */
export async function orRejected<Outcome>(
  work: () => Promise<Outcome>,
  remember: (refusal: { reason: RejectReason; detail: string }) => Promise<void>,
): Promise<Outcome | Rejected> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof RejectedError)) throw error;
    const { reason, detail } = error;
    await remember({ reason, detail });
    return { outcome: 'rejected', reason, detail };
  }
}

/** Runs one stage of a job and reports its seconds; a job that should stop begins no further one. */
export async function inStage<T>(
  { signal }: Run,
  report: (seconds: number) => void,
  work: () => Promise<T>,
): Promise<T> {
  signal.throwIfAborted();
  const started = performance.now();
  try {
    return await work();
  } finally {
    report((performance.now() - started) / 1000);
  }
}

export type Perform<Payload, Outcome> = (payload: Payload, run: Run) => Promise<Outcome>;

/** The wait after an outage was noticed, in milliseconds; workers do not take jobs meanwhile anyway. */
const OUTAGE_DELAY_MS = 2_000;
/** What is deaf to its signal is handed back this long after a shutdown, in milliseconds; what hears it, sooner. */
const DEAF_MS = 500;

export function processorOf<Payload, Outcome extends { outcome: string }>(
  contract: QueueContract<Payload>,
  perform: Perform<Payload, Outcome>,
  events: Events,
  shutdown: AbortSignal,
): Processor {
  return async (job, token, cancelled) => {
    adoptRetryPolicy(contract, job);
    if (job.attemptsStarted <= 1) events.jobStarted(contract.name, Math.max(0, (Date.now() - job.timestamp) / 1000));
    const stop = new EitherSignal([shutdown, ...(cancelled ? [cancelled] : [])]);
    try {
      return await unlessDeaf(shutdown, perform(checked(contract, job), runOf(job, stop.signal)));
    } catch (error) {
      const delayMs = handBackDelay(error, stop.signal);
      if (delayMs === null) throw isFinal(error) ? unrecoverable(error as Error) : error;
      if (await handedBack(job, token, delayMs)) {
        const result = error instanceof DeferredError ? 'deferred' : 'handed_back';
        events.jobRan(contract.name, 'none', result, secondsOf(job));
        events.jobHandedBack(fieldsOf(job), String(error), delayMs);
      }
      if (error instanceof DeferredError) await error.settled().catch(() => undefined);
      throw new DelayedError();
    } finally {
      stop.clear();
    }
  };
}

/** The end of `work`, or the reason of the shutdown where it is deaf to it; what comes of it later, nobody hears. */
function unlessDeaf<T>(shutdown: AbortSignal, work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    let timer: NodeJS.Timeout | undefined;
    const giveUp = () => {
      timer = setTimeout(() => reject(shutdown.reason), DEAF_MS);
    };
    shutdown.addEventListener('abort', giveUp, { once: true });
    if (shutdown.aborted) giveUp();
    work.then(resolve, reject).finally(() => {
      clearTimeout(timer);
      shutdown.removeEventListener('abort', giveUp);
    });
  });
}

/** Whether no further attempt would help. */
function isFinal(error: unknown): boolean {
  if (error instanceof UnrecoverableError || error instanceof PoisonError) return true;
  return error instanceof RetryableError && error.isFinal;
}

/** BullMQ tells by the class that it should not try again. */
function unrecoverable(cause: Error): UnrecoverableError {
  return Object.assign(new UnrecoverableError(cause.message), { cause });
}

function runOf(job: Job, signal: AbortSignal): Run {
  const { progress } = job;
  const remembered = typeof progress === 'object' ? (progress as Record<string, unknown>) : {};
  let kept = remembered;
  return {
    id: String(job.id),
    jobId: identityOf(job),
    isRepeat: job.attemptsStarted > 1,
    isLast: job.attemptsMade + 1 >= (job.opts.attempts ?? 1),
    deaths: job.stalledCounter,
    remembered,
    remember: (fact) => {
      kept = { ...kept, ...fact };
      return job.updateProgress(kept).catch((cause: unknown) => {
        throw new QueueUnavailableError({ cause });
      });
    },
    signal,
  };
}

/** A queue that lost its data counts ids anew: with its time of birth, an id names one job for ever. */
function identityOf(job: Job): string {
  return `${job.id}@${job.timestamp}`;
}

function checked<Payload>(contract: QueueContract<Payload>, job: Job): Payload {
  const { data, problem } = check(contract.payload, job.data);
  if (problem) throw new UnrecoverableError(`invalid-payload: ${problem.field}: ${problem.expectation}`);
  return data;
}

/** A job of another client that says nothing about retries gets the queue's own policy. */
function adoptRetryPolicy<Payload>(contract: QueueContract<Payload>, job: Job): void {
  job.opts.attempts ||= contract.attempts;
  job.opts.backoff ||= BACKOFF;
}

/** Whether a run that ends so spent no attempt: it was put off, or met an outage of ours, and what it booked is still wanted. */
export function comesBack(error: unknown): boolean {
  return (
    error instanceof DeferredError || error instanceof TierUnavailableError || error instanceof QueueUnavailableError
  );
}

/** A run that was told to stop did not fail; where it was because it lost its job, the queue refuses to take that back. */
function handBackDelay(error: unknown, signal: AbortSignal): number | null {
  if (error instanceof DeferredError) return error.delayMs;
  if (signal.aborted) return 1;
  return comesBack(error) ? OUTAGE_DELAY_MS : null;
}

/** Where the queue's store is away too, the job stays with a lock that ends: it runs again then, as after a crash. */
function handedBack(job: Job, token: string | undefined, delayMs: number): Promise<boolean> {
  return job.moveToDelayed(Date.now() + delayMs, token).then(
    () => true,
    () => false,
  );
}
