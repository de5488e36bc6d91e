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
  /** Tells whoever watches how far it is. */
  readonly say: (line: string) => void;
}

export interface Experiment {
  /** As in `docs/reliability.md`: `E1`. */
  readonly id: string;
  readonly title: string;
  /** Both where the fault concerns the queue. */
  readonly backends: readonly Backend[];
  /** Of its full size: it is not run beside others, because it measures time. */
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

/**
 * A limit of time. Machines differ and CI's are busy: at full size it is judged, in CI it is a figure like others.
 *
 * @throws {ViolationError}
 */
export function mustBeWithin({ full }: Trial, what: string, value: number, limit: number): void {
  if (full) must(value <= limit, `${what} is ${value}, and not at most ${limit}`);
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

/** The value below which this share of them lies; they are sorted. */
export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}
