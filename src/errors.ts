/**
 * Every error this service raises on purpose, and what happens to a job that ends in one. `workers/run.ts` is the
 * only translator from these classes to the queue's verbs.
 */

/** Lasting facts about an image or a URL. Also the label values of `crawl_images_total{outcome="rejected",reason}`. */
export const REJECT_REASONS = [
  'not-an-image',
  'corrupt',
  'unsupported',
  'too-large',
  'too-small',
  'blocked-address',
  'gone',
  'forbidden',
  'robots',
  'unknown-image',
] as const;
export type RejectReason = (typeof REJECT_REASONS)[number];

/** What may pass later: an attempt is spent, and the job ends in the failed set when none is left. */
const RETRY_REASONS = [
  'timeout',
  'connection',
  'dns',
  'server-error',
  'throttled',
  'storage',
  'engine',
  'internal',
] as const;
export type RetryReason = (typeof RETRY_REASONS)[number];

/** Why a job is in the failed set. Also the label values of `crawl_images_total{outcome="failed",reason}`. */
export const FAILURE_REASONS = [...RETRY_REASONS, 'invalid-payload', 'poison'] as const;
export type FailureReason = (typeof FAILURE_REASONS)[number];

/**
 * The reason of a job that failed with these words, which is all that the queue keeps: our own errors begin with
 * `<reason>: `. Whatever begins otherwise nobody foresaw, and is `internal`.
 */
export function failureReasonOf(failedReason: string): FailureReason {
  return reasonAhead(FAILURE_REASONS, failedReason) ?? 'internal';
}

/** The reason with which these words of a `RetryableError` begin. */
export function retryReasonOf(words: string): RetryReason | undefined {
  return reasonAhead(RETRY_REASONS, words);
}

function reasonAhead<Reason extends string>(reasons: readonly Reason[], words: string): Reason | undefined {
  return reasons.find((reason) => words.startsWith(`${reason}: `));
}

const TIERS = ['redis', 'postgres'] as const;
/** One of the two places where facts are kept. */
export type TierName = (typeof TIERS)[number];

/** A caller's argument is wrong. Raised before anything is written. */
export class ArgumentError extends Error {
  /** Tells the class where `instanceof` cannot: between two copies of this package. */
  override readonly name = 'ArgumentError';
  constructor(
    /** The argument as the caller knows it, such as `tenantId`. */
    readonly argument: string,
    /** What would have been right, such as `expected text of 1 to 128 characters`. */
    readonly expectation: string,
  ) {
    super(`${argument}: ${expectation}`);
  }
}

/** The environment is wrong. Lists every problem at once, so that one restart is enough. */
export class ConfigError extends Error {
  /** Tells the class where `instanceof` cannot. */
  override readonly name = 'ConfigError';
  constructor(
    /** A line each: the variable, what was expected, and its value unless that may be secret. */
    readonly problems: readonly string[],
  ) {
    super(`The configuration is not usable:\n${problems.map((problem) => `  - ${problem}`).join('\n')}`);
  }
}

/** Names that our migrations need stand for what somebody else made. Raised before anything is changed. */
export class ForeignTablesError extends Error {
  override readonly name = 'ForeignTablesError';
  constructor(
    readonly schema: string,
    /** Tables, views and functions, as PostgreSQL writes them. */
    readonly names: readonly string[],
    remedy: string,
  ) {
    super(`the schema ${schema} holds ${names.join(', ')}: ${remedy}. Nothing was changed.`);
  }
}

/** The image or URL can never be processed: the job completes with `{ outcome: 'rejected', reason, detail }`. */
export class RejectedError extends Error {
  override readonly name = 'RejectedError';
  constructor(
    readonly reason: RejectReason,
    readonly detail: string,
    options?: ErrorOptions,
  ) {
    super(`${reason}: ${detail}`, options);
  }
}

/** It may pass later: the job spends an attempt and is retried with backoff. */
export class RetryableError extends Error {
  override readonly name = 'RetryableError';
  /** The origin's own wish (`Retry-After`), in milliseconds; `undefined` leaves the choice to the backoff. */
  readonly retryAfterMs: number | undefined;
  /** No further attempt of this job: it is known how it would end. */
  readonly isFinal: boolean;
  constructor(
    readonly reason: RetryReason,
    detail: string,
    options?: ErrorOptions & { retryAfterMs?: number | undefined; isFinal?: boolean },
  ) {
    super(`${reason}: ${detail}`, options);
    this.retryAfterMs = options?.retryAfterMs;
    this.isFinal = options?.isFinal ?? false;
  }
}

/** The job kills the process that runs it: it ends in the failed set as `poison`. */
export class PoisonError extends Error {
  override readonly name = 'PoisonError';
  constructor(detail: string) {
    super(`poison: ${detail}`);
  }
}

/** It has to wait, for a claim, for a host or for its turn: outside of a slot, and without spending an attempt. */
export class DeferredError extends Error {
  override readonly name = 'DeferredError';
  constructor(
    readonly delayMs: number,
    why: string,
    /** To be called once the job waits in its queue. */
    readonly settled: () => Promise<void> = async () => undefined,
  ) {
    super(why);
  }
}

/** Why a run is told to stop whose job may be another run's by now: that one has what this one booked for it. */
export class JobLostError extends Error {
  override readonly name = 'JobLostError';
}

/** One of our own tiers is away. Never the job's fault: it is handed back and spends no attempt. */
export class TierUnavailableError extends Error {
  /** Tells the class where `instanceof` cannot. */
  override readonly name = 'TierUnavailableError';
  constructor(
    /** Which one. */
    readonly tier: TierName,
    reason: string,
    options?: ErrorOptions,
  ) {
    super(`${tier} is unavailable: ${reason}`, options);
  }
}

/** A one-line reason that is safe to log: never a stack, never more than the error's own words. */
export function reasonOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0]);
  if (error instanceof Error) return error.message || error.name;
  return String(error);
}
