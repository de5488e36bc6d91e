/** Whoever opens a resource registers its closing here; closing runs last in, first out, once, to the end. */
import { setMaxListeners } from 'node:events';
import { performance } from 'node:perf_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';

interface Opened {
  readonly name: string;
  readonly close: () => Promise<unknown> | unknown;
}

export class Closer implements AsyncDisposable {
  readonly #stack: Opened[] = [];
  #closing: Promise<void> | undefined;

  /**
   * Registers the closing of a resource that is open now, and hands the resource through. One that comes while closing
   * is under way, because its opening was overtaken, is closed at once and refused.
   */
  add<T>(name: string, resource: T, close: (resource: T) => Promise<unknown> | unknown): T {
    if (this.#closing) {
      this.#closing = bothClosed(this.#closing, closed({ name, close: () => close(resource) }));
      // Who calls `close` again hears of a failure; here nobody may be left to hear of it.
      this.#closing.catch(() => undefined);
      throw new Error(`${name} was opened while everything closes`);
    }
    this.#stack.push({ name, close: () => close(resource) });
    return resource;
  }

  /** Closes everything that is registered. Overlapping and repeated calls share one closing. */
  close(): Promise<void> {
    this.#closing ??= this.#closeAll();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #closeAll(): Promise<void> {
    const failures: unknown[] = [];
    for (let next = this.#stack.pop(); next; next = this.#stack.pop()) {
      await closed(next).catch((failure: unknown) => failures.push(failure));
    }
    if (failures.length > 0) throw failures[0];
  }
}

async function closed({ name, close }: Opened): Promise<void> {
  try {
    await close();
  } catch (error) {
    throw new Error(`closing ${name} failed`, { cause: error });
  }
}

async function bothClosed(...closings: Promise<void>[]): Promise<void> {
  const ends = await Promise.allSettled(closings);
  const failed = ends.find((end) => end.status === 'rejected');
  if (failed) throw failed.reason;
}

/** After a busy stretch of ours, timers run before the sockets are read: an answer that is already here counts. */
export async function socketsRead(): Promise<void> {
  await nextTurn();
  await nextTurn();
}

/** Resolves with what `promise` gives, or with `late` when that takes longer than `ms`. Never leaves a timer behind. */
export async function within<T, L>(ms: number, promise: Promise<T>, late: L): Promise<T | L> {
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<L>((resolve) => {
    timer = setTimeout(async () => {
      await socketsRead();
      resolve(late);
    }, ms);
  });
  try {
    return await Promise.race([promise, deadline]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Fires with the first of its sources, until it is cleared. Not `AbortSignal.any`: in Node 20 what depends on a signal is
 * remembered for as long as that lives, and the signal of a shutdown lives as long as the process.
 */
export class EitherSignal {
  readonly #controller = new AbortController();
  readonly #onAbort = ({ target }: Event) => this.#controller.abort((target as AbortSignal).reason);

  constructor(private readonly sources: readonly AbortSignal[]) {
    // As many listen to the signal of a shutdown as there are runs under way: that is no leak, as Node would warn.
    setMaxListeners(0, ...sources);
    for (const source of sources) {
      source.addEventListener('abort', this.#onAbort, { once: true });
      if (source.aborted) this.#controller.abort(source.reason);
    }
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** To be called when nobody listens any more. */
  clear(): void {
    for (const source of this.sources) source.removeEventListener('abort', this.#onAbort);
  }
}

/**
 * Runs `round` every `ms` from `start` on, never two at a time, and waits for the one under way when stopped:
 * a round of many steps looks at its signal between them.
 * The timer holds no process open.
 */
export class Periodic {
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> | undefined;
  #started = false;
  readonly #stopped = new AbortController();

  constructor(
    private readonly ms: number,
    private readonly round: (signal: AbortSignal) => Promise<void>,
  ) {}

  /** Begins the first round now; nothing happens when it was started or stopped before. */
  start(): this {
    if (!this.#started && !this.#stopped.signal.aborted) this.#tick();
    this.#started = true;
    return this;
  }

  async stop(): Promise<void> {
    this.#stopped.abort();
    clearTimeout(this.#timer);
    await this.#running;
  }

  #tick(): void {
    this.#running = this.round(this.#stopped.signal)
      .catch(() => undefined)
      .then(() => {
        this.#running = undefined;
        if (this.#stopped.signal.aborted) return;
        this.#timer = setTimeout(() => this.#tick(), this.ms);
        this.#timer.unref();
      });
  }
}

/** Under npm one Ctrl-C is two: the terminal tells every process in front of it, and npm tells its child once more. */
const ECHO_MS = 500;

/**
 * Calls `stop` at the first SIGINT or SIGTERM and ends the process with its exit code; a second signal, unless it is the echo
 * of a Ctrl-C, ends it at once. SIGPIPE is not among them: Node ignores it, and a closed pipe shows up as a write error where
 * it belongs.
 */
export function onShutdownSignal(stop: (signal: NodeJS.Signals) => Promise<number>): void {
  let first: { readonly signal: NodeJS.Signals; readonly at: number } | undefined;
  const handle = (signal: NodeJS.Signals) => {
    const isEcho = signal === 'SIGINT' && first?.signal === 'SIGINT' && performance.now() - first.at < ECHO_MS;
    if (isEcho) return;
    if (first) process.exit(130);
    first = { signal, at: performance.now() };
    stop(signal).then(
      (code) => process.exit(code),
      () => process.exit(1),
    );
  };
  process.on('SIGINT', handle);
  process.on('SIGTERM', handle);
}
