/**
 * The one place that degrades. Every operation on a tier runs through its guard, which holds the deadline and the
 * circuit breaker, and logs an outage once.
 *
 *     up    an operation runs with a deadline; a deadline missed or a connection lost makes the tier `down`
 *     down  operations are refused at once; a ping is tried after 100 ms, then at growing gaps up to one second;
 *           the first that succeeds makes the tier `up`
 *
 * A single late answer suffices to go down, because the first ping then follows within 100 ms: a false alarm costs
 * that long without the tier, and a real outage costs each caller one deadline at most.
 */
import { performance } from 'node:perf_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { reasonOf, type TierName, TierUnavailableError } from '../errors.js';
import type { Events, TierErrorReason, TierOperation } from '../events.js';

export interface Guarded {
  readonly name: TierName;
  ping(): Promise<void>;
  isOutage(error: unknown): boolean;
}

const FIRST_PROBE_MS = 100;
const LAST_PROBE_MS = 1000;

class DeadlineError extends Error {
  override readonly name = 'DeadlineError';
}

export class Guard {
  #downSince: number | null = null;
  #reason = '';
  #probe: NodeJS.Timeout | undefined;
  #closed = false;
  readonly #listeners = new Set<(up: boolean) => void>();

  constructor(
    private readonly tier: Guarded,
    private readonly deadlineMs: number,
    private readonly events: Events,
  ) {
    events.tierUp(tier.name, null);
  }

  get isUp(): boolean {
    return this.#downSince === null;
  }

  /** Why the tier is down; empty while it is up. */
  get reason(): string {
    return this.isUp ? '' : this.#reason;
  }

  /** Tells of every change between up and down, until the returned function is called. */
  onChange(listener: (up: boolean) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Runs an operation of the tier.
   *
   * @throws {TierUnavailableError} when the tier is away; any other error of the operation as it is.
   */
  async run<T>(operation: TierOperation, work: () => Promise<T>, deadlineMs = this.deadlineMs): Promise<T> {
    if (!this.isUp) {
      this.events.tierFailed(this.tier.name, operation, 'refused');
      throw new TierUnavailableError(this.tier.name, this.#reason);
    }
    const started = performance.now();
    try {
      const result = await this.#bounded(work(), deadlineMs);
      this.events.tierAnswered(this.tier.name, operation, (performance.now() - started) / 1000);
      return result;
    } catch (error) {
      throw this.#judged(operation, error);
    }
  }

  /** Checks the tier now, for a readiness answer. Never throws. */
  async check(): Promise<boolean> {
    await this.run('ping', () => this.tier.ping()).catch(() => undefined);
    return this.isUp;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#probe);
    this.#listeners.clear();
  }

  #judged(operation: TierOperation, error: unknown): unknown {
    const late = error instanceof DeadlineError;
    if (!late && !this.tier.isOutage(error)) {
      this.events.tierFailed(this.tier.name, operation, 'other', error);
      return error;
    }
    const reason: TierErrorReason = late ? 'timeout' : 'connection';
    this.events.tierFailed(this.tier.name, operation, reason);
    this.#down(reasonOf(error));
    return new TierUnavailableError(this.tier.name, reasonOf(error), { cause: error });
  }

  #down(reason: string): void {
    if (!this.isUp || this.#closed) return;
    this.#downSince = performance.now();
    // Drivers end some of their sentences and not others; ours goes on behind the reason.
    this.#reason = reason.replace(/\.$/, '');
    this.events.tierDown(this.tier.name, this.#reason);
    this.#tell(false);
    this.#probeAfter(FIRST_PROBE_MS);
  }

  #up(): void {
    if (this.#downSince === null || this.#closed) return;
    const outage = performance.now() - this.#downSince;
    this.#downSince = null;
    this.events.tierUp(this.tier.name, outage);
    this.#tell(true);
  }

  #tell(up: boolean): void {
    for (const listener of this.#listeners) listener(up);
  }

  #probeAfter(ms: number): void {
    if (this.#closed) return;
    this.#probe = setTimeout(() => {
      this.#bounded(this.tier.ping(), LAST_PROBE_MS).then(
        () => this.#up(),
        (error: unknown) => {
          this.#reason = reasonOf(error);
          this.#probeAfter(Math.min(ms * 2, LAST_PROBE_MS));
        },
      );
    }, ms);
    this.#probe.unref();
  }

  async #bounded<T>(work: Promise<T>, ms: number): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const deadline = new Promise<never>((_, reject) => {
      timer = setTimeout(async () => {
        // After a busy stretch of ours, timers run before the sockets are read: an answer that is already here counts.
        await nextTurn();
        await nextTurn();
        reject(new DeadlineError(`no answer within ${ms} ms`));
      }, ms);
    });
    try {
      return await Promise.race([work, deadline]);
    } finally {
      clearTimeout(timer);
    }
  }
}
