/** What a worker and the process that it has a single job run in say to each other. */
import type { Overrides } from '../src/app.js';
import type { Env } from '../src/config.js';
import { DeferredError, JobLostError, RetryableError, TierUnavailableError } from '../src/errors.js';
import type { QueueName } from '../src/queues/contract.js';
import { QueueUnavailableError } from '../src/queues/index.js';

/** One job, and what the process needs to be as its parent is. */
export interface Assignment {
  readonly env: Env;
  readonly overrides: Pick<Overrides, 'cachePrefix' | 'queueNamespace' | 'retryBaseMs'>;
  readonly queue: QueueName;
  readonly payload: unknown;
  readonly id: string;
  readonly jobId: string;
  readonly deaths: number;
  readonly isRepeat: boolean;
  readonly isLast: boolean;
  readonly remembered: Readonly<Record<string, unknown>>;
}

export type ToChild =
  | { readonly do: 'run'; readonly assignment: Assignment }
  /** The answer to `remember`; with what went wrong. */
  | { readonly do: 'go on'; readonly call: number; readonly error: WireError | null }
  | { readonly do: 'stop'; readonly why: WireError }
  /** The job is back in its queue: what was promised for then may be done. */
  | { readonly do: 'settle' };

export type ToParent =
  /** Loaded: from here on its death is the job's doing. */
  | { readonly say: 'ready' }
  /** Something happened: to be counted where it is scraped. */
  | { readonly say: 'event'; readonly name: string; readonly args: readonly unknown[] }
  | { readonly say: 'remember'; readonly call: number; readonly fact: Readonly<Record<string, unknown>> }
  | { readonly say: 'done'; readonly outcome: { readonly outcome: string } }
  | { readonly say: 'failed'; readonly error: WireError };

export interface WireError {
  readonly name: string;
  readonly message: string;
  readonly stack: string | undefined;
  readonly fields: Readonly<Record<string, unknown>>;
}

/** The classes that one of the two tells apart. */
const CLASSES: Readonly<Record<string, { readonly prototype: Error }>> = {
  DeferredError,
  JobLostError,
  RetryableError,
  TierUnavailableError,
  QueueUnavailableError,
};

export function toWire(thrown: unknown): WireError {
  const error = thrown instanceof Error ? thrown : new Error(String(thrown));
  const fields = Object.entries(error).filter(([, value]) => typeof value !== 'function' && typeof value !== 'object');
  return { name: error.name, message: error.message, stack: error.stack, fields: Object.fromEntries(fields) };
}

export function fromWire({ name, message, stack, fields }: WireError): Error {
  const error = Object.create(CLASSES[name]?.prototype ?? Error.prototype) as Error;
  const hidden = { message: { value: message }, stack: { value: stack } };
  return Object.assign(Object.defineProperties(error, hidden), fields);
}
