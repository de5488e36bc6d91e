/** A server's clock as seen from here: so that a statement can say until when it may be carried out. */
import { performance } from 'node:perf_hooks';

/** Clocks drift and are set. */
const FRESH_MS = 5_000;
const LASTS_MS = 60_000;
/** An answer that takes longer to be heard is old by then: the server was busy, or this process stood still meanwhile. */
const PROMPT_MS = 1_000;

/** What the clock said, when its answer was heard, and how long it took. */
interface Reading {
  readonly seconds: number;
  readonly at: number;
  readonly tookMs: number;
  /** From our monotonic clock to the other one; changes where that is set, and where this machine was suspended. */
  readonly offsetMs: number;
  /** Whether it is the quicker one of two. */
  readonly isConfirmed: boolean;
}

export class ServerClock {
  #last: Reading | undefined;
  #reading: Promise<void> | undefined;

  /** `ask` resolves with seconds since the epoch. */
  constructor(private readonly ask: () => Promise<number>) {}

  /**
   * Seconds since the epoch: never more than the server's, less by what its answer took. The quicker of two answers says
   * it better (F. Cristian, "Probabilistic clock synchronization", 1989), so after a slow one it is asked once more.
   */
  async now(): Promise<number> {
    const last = this.#usable();
    if (!last) await this.#readOnce();
    else if (last.tookMs > PROMPT_MS && !last.isConfirmed) await this.#readOnce().catch(() => undefined);
    else if (ageOf(last) > FRESH_MS) this.#readOnce().catch(() => undefined);
    const { seconds, at } = this.#last ?? { seconds: 0, at: 0 };
    return seconds + (performance.now() - at) / 1000;
  }

  /** By how many milliseconds it is ahead of ours, whole. */
  async aheadMs(): Promise<number> {
    return Math.round((await this.now()) * 1_000 - Date.now());
  }

  async read(): Promise<void> {
    const asked = { at: performance.now(), offsetMs: offsetMs() };
    const seconds = await this.ask();
    const at = performance.now();
    const tookMs = at - asked.at + Math.abs(offsetMs() - asked.offsetMs);
    const last = this.#usable();
    const isWorse = last && tookMs > Math.max(last.tookMs, PROMPT_MS);
    const best = isWorse ? last : { seconds, at, tookMs, offsetMs: offsetMs() };
    this.#last = { ...best, isConfirmed: last !== undefined };
  }

  /** It was set, or so it seems. */
  forget(): void {
    this.#last = undefined;
  }

  #usable(): Reading | undefined {
    const last = this.#last;
    const isUsable = last && ageOf(last) < LASTS_MS && Math.abs(offsetMs() - last.offsetMs) < PROMPT_MS;
    return isUsable ? last : undefined;
  }

  #readOnce(): Promise<void> {
    this.#reading ??= this.read().finally(() => {
      this.#reading = undefined;
    });
    return this.#reading;
  }
}

function ageOf({ at }: Reading): number {
  return performance.now() - at;
}

function offsetMs(): number {
  return Date.now() - performance.now();
}
