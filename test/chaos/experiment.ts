/** What an experiment is: servers and workers, something done to them, and what must hold in the end. */
import type { Judgement } from './checker.js';
import { type Backend, Lab, type LabOptions } from './lab.js';

export type Figures = Readonly<Record<string, number | string>>;

/** One run of an experiment. */
export interface Trial {
  readonly backend: Backend;
  readonly seed: number;
  /** Its full size, as in `docs/reliability.md`; otherwise that of CI. */
  readonly full: boolean;
  /** Jobs a second, where the load is steady; `undefined` leaves it to the experiment. */
  readonly rate?: number | undefined;
  /** Tells whoever watches how far it is. */
  readonly say: (line: string) => void;
}

export interface Experiment {
  /** As in `docs/reliability.md`: `E1`. */
  readonly id: string;
  readonly title: string;
  /** Both where the fault concerns the queue. */
  readonly backends: readonly Backend[];
  /** Whether at CI's size it hardly works, and runs beside as many others as the machine bears. */
  readonly mostlyWaits?: true;
  /** Resolves with what was measured. @throws {ViolationError} where a promise is broken */
  readonly run: (trial: Trial) => Promise<Figures>;
}

export const BOTH: readonly Backend[] = ['redis', 'postgres'];

/** What an experiment found broken. */
export class ViolationError extends Error {
  override readonly name = 'ViolationError';
  constructor(
    readonly violations: readonly string[],
    readonly figures: Figures = {},
  ) {
    super(violations.join('\n'));
  }
}

/** @throws {ViolationError} where something does not hold */
export function hold({ violations, figures }: Judgement, more: Figures = {}): Figures {
  const all = { ...figures, ...more };
  if (violations.length > 0) throw new ViolationError(violations, all);
  return all;
}

/** @throws {ViolationError} unless it is so */
export function must(isSo: boolean, otherwise: string): void {
  if (!isSo) throw new ViolationError([otherwise]);
}

/** CI's machine is busy, and how busy differs: so many times the limit is still told from what is broken. */
const CI_SLACK = 3;

/**
 * A limit of time or size, as it stands at full size.
 *
 * @throws {ViolationError}
 */
export function mustBeWithin({ full }: Trial, what: string, value: number, limit: number): void {
  const most = full ? limit : CI_SLACK * limit;
  must(value <= most, `${what} is ${value}, and not at most ${most}`);
}

/**
 * Of what a busy machine does at times, since an answer comes late: judged at full size alone.
 *
 * @throws {ViolationError}
 */
export function mustNotBe({ full }: Trial, what: string, count: number): void {
  must(!full || count === 0, `${what}: ${count}`);
}

/**
 * By when so many jobs have ended that no fault meets any more, in milliseconds: ten a second, after all leases and locks
 * of the dead are over. Whoever was not woken waits far longer, up to an hour.
 */
export function boundOf(jobs: number): number {
  return 60_000 + jobs * 100;
}

/** The servers, the web and the producer of one run; all of it goes when `work` is done. */
export async function inLab<T>(
  trial: Trial,
  options: Omit<LabOptions, 'backend' | 'seed'>,
  work: (lab: Lab) => Promise<T>,
): Promise<T> {
  await using lab = await Lab.start({ ...options, backend: trial.backend, seed: trial.seed });
  return await work(lab);
}

/** Of the full size, where PostgreSQL keeps the queue: a process has up to 32 connections there, and more with more slots. */
export function roomFor({ full, backend }: Trial): Pick<LabOptions, 'maxConnections'> {
  return full && backend === 'postgres' ? { maxConnections: 300 } : {};
}

/** The value below which this share of them lies; they are sorted. */
export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}
