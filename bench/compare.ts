/** Two ways to do one work, measured in turns in one run, so that a machine's mood falls on both alike. */
import { performance } from 'node:perf_hooks';

export interface Row {
  readonly work: string;
  /** Median milliseconds of our way and of the raw one. */
  readonly ours: number;
  readonly raw: number;
  readonly ratio: number;
  /** The ratio to stay at or below. */
  readonly target: number;
  readonly ok: boolean;
}

export interface Contest {
  readonly work: string;
  readonly target: number;
  /** Pairs that count; a tenth as many are run before, to warm up. */
  readonly rounds: number;
  ours(): Promise<unknown>;
  raw(): Promise<unknown>;
}

export async function compare({ work, target, rounds, ours, raw }: Contest): Promise<Row> {
  for (let i = 0; i < Math.ceil(rounds / 10); i++) {
    await ours();
    await raw();
  }
  const times = { ours: [] as number[], raw: [] as number[] };
  for (let i = 0; i < rounds; i++) {
    times.ours.push(await timed(ours));
    times.raw.push(await timed(raw));
  }
  const [our, their] = [median(times.ours), median(times.raw)];
  const ratio = our / their;
  return { work, ours: our, raw: their, ratio, target, ok: ratio <= target };
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

function median(times: readonly number[]): number {
  return [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)] ?? Number.NaN;
}
