/** A server's clock as seen from here: so that a statement can say until when it may be carried out. */
import { performance } from 'node:perf_hooks';

/** Clocks drift and are set. */
const FRESH_MS = 5_000;
const LASTS_MS = 60_000;

export class ServerClock {
  /** What the clock said, and when its answer came. */
  #read: { seconds: number; at: number } | undefined;
  #reading: Promise<unknown> | undefined;

  /** `ask` resolves with seconds since the epoch. */
  constructor(private readonly ask: () => Promise<number>) {}

  /** Seconds since the epoch: never more than the server's, less by the way of its answer. */
  async now(): Promise<number> {
    const age = this.#read ? performance.now() - this.#read.at : Number.POSITIVE_INFINITY;
    if (age > LASTS_MS) await this.read();
    else if (age > FRESH_MS) this.#reading ??= this.read().catch(() => undefined);
    const { seconds, at } = this.#read ?? { seconds: 0, at: 0 };
    return seconds + (performance.now() - at) / 1000;
  }

  /** By how many milliseconds it is ahead of ours, whole. */
  async aheadMs(): Promise<number> {
    return Math.round((await this.now()) * 1_000 - Date.now());
  }

  async read(): Promise<void> {
    try {
      this.#read = { seconds: await this.ask(), at: performance.now() };
    } finally {
      this.#reading = undefined;
    }
  }

  /** It was set, or so it seems. */
  forget(): void {
    this.#read = undefined;
  }
}
