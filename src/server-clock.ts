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
}

export class ServerClock {
  #last: Reading | undefined;
  #reading: Promise<void> | undefined;

  /** `ask` resolves with seconds since the epoch. */
  constructor(private readonly ask: () => Promise<number>) {}

  /**
   * Seconds since the epoch: never more than the server's, less by what its answer took. The quicker of two answers says
   * it better (F. Cristian, "Probabilistic clock synchronization", 1989), so after a slow one it is asked again.
   */
  async now(): Promise<number> {
    const age = this.#last ? ageOf(this.#last) : Number.POSITIVE_INFINITY;
    const isDoubtful = age > LASTS_MS || (this.#last as Reading).tookMs > PROMPT_MS;
    if (isDoubtful) await this.#readOnce();
    else if (age > FRESH_MS) this.#readOnce().catch(() => undefined);
    const { seconds, at } = this.#last ?? { seconds: 0, at: 0 };
    return seconds + (performance.now() - at) / 1000;
  }

  /** By how many milliseconds it is ahead of ours, whole. */
  async aheadMs(): Promise<number> {
    return Math.round((await this.now()) * 1_000 - Date.now());
  }

  async read(): Promise<void> {
    const asked = performance.now();
    const seconds = await this.ask();
    const at = performance.now();
    const tookMs = at - asked;
    const last = this.#last;
    const isWorse = last && ageOf(last) < LASTS_MS && tookMs > Math.max(last.tookMs, PROMPT_MS);
    if (!isWorse) this.#last = { seconds, at, tookMs };
  }

  /** It was set, or so it seems. */
  forget(): void {
    this.#last = undefined;
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
