/** Several ways to do one work, measured in turns in one run, so that a machine's mood falls on all of them alike. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';

export type PeerName = 'cacheable' | 'bentocache' | 'cache-manager';

export interface Row {
  readonly work: string;
  /** In `unit`: medians, unless the work says otherwise. */
  readonly ours: number;
  readonly raw: number | null;
  /** Ours by raw. */
  readonly ratio: number | null;
  /** What the ratio is to reach: at most where less is better, at least where more is. `null`: told, not judged. */
  readonly target: number | null;
  readonly ok: boolean;
  readonly better: 'lower' | 'higher';
  readonly unit: 'ms' | '1/s' | 'bytes';
  /** The same ratio of the peers that can do the work, or words where there is no figure. */
  readonly peers: Readonly<Partial<Record<PeerName, number | string>>>;
  /** Further figures by name; the name says the unit. */
  readonly also: Readonly<Record<string, number>>;
}

/** `n` counts the calls of this way, so that each may be about another key. */
type Call = (n: number) => Promise<unknown>;

/** `prepare` runs before each timed call, outside of the timing; where many run at once there is none. */
export type Way = Call | { readonly prepare: Call; readonly run: Call };

export interface Contest {
  readonly work: string;
  readonly target: number | null;
  readonly ours: Way;
  readonly raw: Way;
  readonly peers?: Partial<Record<PeerName, Way>>;
  /** Ways that are measured with the others and told in `Row.also`, under these names. */
  readonly beside?: Readonly<Record<string, Way>>;
}

interface Measured {
  readonly ours: number;
  readonly raw: number;
  readonly peers?: Readonly<Partial<Record<PeerName, number>>>;
  readonly also?: Readonly<Record<string, number>>;
}

/** Calls of one way in its turn: enough to outlast what the way before has left in the processor's caches. */
const CALLS_A_TURN = 100;
const WORKERS = 64;
const SLICE_MS = 300;
const SLICES = 12;

/** Milliseconds of a call, one after another: the median, or another quantile. */
export async function latency(contest: Contest & { turns: number; quantile?: number }): Promise<Row> {
  const { turns, quantile = 0.5 } = contest;
  const measured = await inTurns(contest, turns, quantile, async (way) => {
    const times: number[] = [];
    for (let i = 0; i < CALLS_A_TURN; i++) times.push(await way.timed());
    return times;
  });
  return toRow(contest, measured, { better: 'lower', unit: 'ms' });
}

/** Calls a second of 64 workers that each do one after another: the median of slices. */
export async function throughput(contest: Contest): Promise<Row> {
  const measured = await inTurns(contest, SLICES, 0.5, async (way) => {
    const rate = await way.slice();
    // What nobody waited for (a backfill, a SET) must not run in the next one's slice.
    await pause(10);
    return [rate];
  });
  return toRow(contest, measured, { better: 'higher', unit: '1/s' });
}

export function toRow(
  { work, target }: { readonly work: string; readonly target: number | null },
  { ours, raw, peers = {}, also = {} }: Measured,
  { better, unit }: Pick<Row, 'better' | 'unit'>,
): Row {
  const ratio = ours / raw;
  const ok = target === null || (better === 'lower' ? ratio <= target : ratio >= target);
  const ratios = Object.entries(peers).map(([name, figure]) => [name, figure / raw]);
  return { work, ours, raw, ratio, target, ok, better, unit, peers: Object.fromEntries(ratios), also };
}

/** The value below which this share of the samples lies. */
export function quantileOf(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

class Contestant {
  readonly samples: number[] = [];
  #calls = 0;

  constructor(private readonly way: Way) {}

  async timed(): Promise<number> {
    const n = this.#calls++;
    if (typeof this.way === 'function') return timed(() => (this.way as Call)(n));
    const { prepare, run } = this.way;
    await prepare(n);
    return timed(() => run(n));
  }

  async slice(): Promise<number> {
    const run = typeof this.way === 'function' ? this.way : this.way.run;
    const started = performance.now();
    let done = 0;
    const worker = async () => {
      while (performance.now() - started < SLICE_MS) {
        await run(this.#calls++);
        done += 1;
      }
    };
    await Promise.all(Array.from({ length: WORKERS }, worker));
    return (1000 * done) / (performance.now() - started);
  }
}

/** Every contestant once a turn, in another order each time; a tenth as many turns come before, to warm up. */
async function inTurns(
  { ours, raw, peers = {}, beside = {} }: Contest,
  turns: number,
  quantile: number,
  turn: (way: Contestant) => Promise<number[]>,
): Promise<Measured> {
  const our = new Contestant(ours);
  const their = new Contestant(raw);
  const others = contestants(peers);
  const rest = contestants(beside);
  const all = [our, their, ...Object.values(others), ...Object.values(rest)];
  for (let i = -Math.ceil(turns / 10); i < turns; i++) {
    for (const contestant of shuffled(all)) {
      const samples = await turn(contestant);
      if (i >= 0) contestant.samples.push(...samples);
    }
  }
  const figure = ({ samples }: Contestant) => quantileOf(samples, quantile);
  const figures = (named: Record<string, Contestant>) =>
    Object.fromEntries(Object.entries(named).map(([name, one]) => [name, figure(one)]));
  return { ours: figure(our), raw: figure(their), peers: figures(others), also: figures(rest) };
}

function contestants(ways: Readonly<Record<string, Way>>): Record<string, Contestant> {
  return Object.fromEntries(Object.entries(ways).map(([name, way]) => [name, new Contestant(way)]));
}

function shuffled<T>(items: readonly T[]): T[] {
  const left = [...items];
  return items.map(() => left.splice(Math.floor(Math.random() * left.length), 1)[0] as T);
}
