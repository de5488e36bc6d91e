/**
 * Gathers what is asked for in one turn of the event loop into one operation, and what comes while as many operations
 * are under way as may be, into the next. Whoever comes alone waits for nobody.
 */
import { performance } from 'node:perf_hooks';

/** Who has waited as long behind an operation that then failed has waited long enough. */
const LONG_MS = 1_000;

interface Call<Item, Result> {
  readonly items: readonly Item[];
  /** When it came, by `performance.now()`. */
  readonly at: number;
  readonly resolve: (results: Result[]) => void;
  readonly reject: (error: unknown) => void;
}

export interface BatchOptions {
  /** Operations under way at once. */
  readonly inFlight: number;
  /** Items in one operation, unless a single call brings more: calls are not torn apart. */
  readonly most: number;
  /** Where more than this waits, it is shared out among the operations that may be under way, which then overlap. */
  readonly shareFrom?: number;
  /** Whether an error may be one call's fault alone, so that the others of its batch are worth a try without it. */
  readonly mayBeOnes?: (error: unknown) => boolean;
  /** Whether an error would be that of the calls too that wait behind: who has waited long gets it now, and not later. */
  readonly isEverybodys?: (error: unknown) => boolean;
}

export class Batcher<Item, Result> {
  #waiting: Call<Item, Result>[] = [];
  #running = 0;
  #scheduled = false;

  constructor(
    /** Answers in the order of the items. */
    private readonly run: (items: readonly Item[]) => Promise<Result[]>,
    private readonly options: BatchOptions,
  ) {}

  add(items: readonly Item[]): Promise<Result[]> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ items, at: performance.now(), resolve, reject });
      if (this.#scheduled || this.#running >= this.options.inFlight) return;
      this.#scheduled = true;
      // Behind all promises that are settled in this turn: what they go on to ask for comes along.
      process.nextTick(() => {
        this.#scheduled = false;
        this.#start();
      });
    });
  }

  #start(): void {
    while (this.#waiting.length > 0 && this.#running < this.options.inFlight) {
      const calls = this.#take();
      this.#running += 1;
      this.#execute(calls);
    }
  }

  #take(): Call<Item, Result>[] {
    if (this.#waiting.length === 1) return this.#waiting.splice(0);
    const share = this.#share();
    let items = 0;
    const end = this.#waiting.findIndex((call, i) => {
      items += call.items.length;
      return i > 0 && items > share;
    });
    return this.#waiting.splice(0, end < 0 ? this.#waiting.length : end);
  }

  /** Items for the next operation. */
  #share(): number {
    const { inFlight, most, shareFrom = Number.POSITIVE_INFINITY } = this.options;
    const waiting = this.#waiting.reduce((sum, { items }) => sum + items.length, 0);
    return waiting <= shareFrom ? most : Math.min(most, Math.ceil(waiting / (inFlight - this.#running)));
  }

  #execute(calls: readonly Call<Item, Result>[]): void {
    this.#settle(calls).then(() => {
      this.#running -= 1;
      if (this.#waiting.length > 0) this.#start();
    });
  }

  /** Never rejects: the calls do. */
  async #settle(calls: readonly Call<Item, Result>[]): Promise<void> {
    const [only] = calls;
    try {
      const results = await this.run(calls.length === 1 && only ? only.items : calls.flatMap(({ items }) => items));
      if (calls.length === 1) return only?.resolve(results);
      let at = 0;
      for (const { items, resolve } of calls) {
        resolve(results.slice(at, at + items.length));
        at += items.length;
      }
    } catch (error) {
      if (calls.length > 1 && this.options.mayBeOnes?.(error)) {
        for (const call of calls) await this.#settle([call]);
      } else {
        for (const { reject } of calls) reject(error);
        if (this.options.isEverybodys?.(error)) this.#giveUp(error);
      }
    }
  }

  /** A table that is locked would cost those who wait a second deadline. */
  #giveUp(error: unknown): void {
    const since = performance.now() - LONG_MS;
    const late = this.#waiting.filter(({ at }) => at <= since);
    this.#waiting = this.#waiting.filter(({ at }) => at > since);
    for (const { reject } of late) reject(error);
  }
}
