/** One signal that ends when the time is up, when the caller gives up, or when we do; and leaves no timer behind. */
import { performance } from 'node:perf_hooks';

/** A timer that fires so late, in milliseconds, tells that the process stood still, and not that the peer was slow. */
const STILL_MS = 500;

/**
 * The time for which this process stood still when it was up is given once more: it was not the peer's, and what came
 * meanwhile lies in the socket.
 */
export class Deadline {
  readonly #controller = new AbortController();
  #timer: NodeJS.Timeout;
  readonly #parent: AbortSignal | undefined;
  readonly #onParentAbort = () => this.abort(this.#parent?.reason);

  /** `late` makes the signal's reason for when `ms` have passed; an abort of `parent` hands its own reason on. */
  constructor(ms: number, late: () => Error, parent?: AbortSignal) {
    const due = performance.now() + ms;
    const end = () => this.abort(late());
    this.#timer = setTimeout(() => {
      const stillMs = performance.now() - due;
      if (stillMs < STILL_MS) end();
      else this.#timer = setTimeout(end, Math.min(stillMs, ms));
    }, ms);
    this.#parent = parent;
    // Not AbortSignal.any: its dependants live as long as a parent that lives as long as the process.
    parent?.addEventListener('abort', this.#onParentAbort, { once: true });
    if (parent?.aborted) this.#onParentAbort();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  abort(reason: unknown): void {
    this.#controller.abort(reason);
  }

  /** To be called when the work is done, whatever came of it. */
  clear(): void {
    clearTimeout(this.#timer);
    this.#parent?.removeEventListener('abort', this.#onParentAbort);
  }
}

/** As `promise`, but rejects with the signal's reason as soon as it is aborted; what comes later is dropped. */
export function orAborted<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const abort = () => reject(signal.reason);
    const settle = () => signal.removeEventListener('abort', abort);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(settle);
  });
}
