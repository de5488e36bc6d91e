/**
 * The one place that degrades. Every operation on a tier runs through its guard, which holds the deadline and the
 * circuit breaker, and logs an outage once.
 *
 *     up    an operation runs with a deadline; a missed deadline or a lost connection makes the tier `down`, unless a ping
 *           is answered, which is sent at half of the deadline or when the connection was lost: then the server is busy,
 *           or has ended that connection alone
 *     down  operations are refused at once; a ping is tried after 100 ms, then at growing gaps up to one second;
 *           the first that succeeds makes the tier `up`
 *
 * So a dead or frozen tier costs a caller one deadline at most. What the server refuses to do (out of memory, read-only)
 * counts as unavailable for that operation alone.
 */
import { performance } from 'node:perf_hooks';
import { reasonOf, type TierName, TierUnavailableError } from '../errors.js';
import type { Events, TierErrorReason, TierOperation } from '../events.js';
import { socketsRead, within } from '../lifecycle.js';
import type { Verdict } from './tier.js';

interface Guarded {
  readonly name: TierName;
  ping(): Promise<void>;
  judge(error: unknown): Verdict;
}

const FIRST_PROBE_MS = 100;
const LAST_PROBE_MS = 1_000;
/** A tier that falls again within this time after it came back is probed at longer gaps. */
const STEADY_MS = 5_000;

class DeadlineError extends Error {
  override readonly name = 'DeadlineError';
  constructor(
    ms: number,
    /** Whether the server answered a ping meanwhile. */
    readonly alive: boolean,
  ) {
    super(`no answer within ${ms} ms`);
  }
}

/** An operation under way. */
interface Running {
  /** At first half of the deadline, when the server is asked whether it answers at all; then its end. */
  due: number;
  readonly deadlineMs: number;
  readonly fail: (error: unknown) => void;
  answered?: Promise<boolean>;
}

export class Guard {
  #downSince: number | null = null;
  #upSince = Number.NEGATIVE_INFINITY;
  #reason = '';
  #probeGapMs = FIRST_PROBE_MS;
  #probe: NodeJS.Timeout | undefined;
  #pinging: Promise<boolean> | undefined;
  #closed = false;
  #watch: NodeJS.Timeout | undefined;
  #watchedUntil = Number.POSITIVE_INFINITY;
  readonly #running = new Set<Running>();
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
  run<T>(operation: TierOperation, work: () => Promise<T>, deadlineMs = this.deadlineMs): Promise<T> {
    if (!this.isUp) {
      this.events.tierFailed(this.tier.name, operation, 'refused');
      return Promise.reject(new TierUnavailableError(this.tier.name, this.#reason));
    }
    const started = performance.now();
    return new Promise<T>((resolve, reject) => {
      const fail = (error: unknown) => {
        if (this.#running.delete(running)) this.#judged(operation, error, started, deadlineMs).then(reject, reject);
      };
      const running: Running = { due: started + deadlineMs / 2, deadlineMs, fail };
      this.#running.add(running);
      if (running.due < this.#watchedUntil) this.#watchUntil(running.due);
      work().then((result) => {
        if (!this.#running.delete(running)) return;
        this.events.tierAnswered(this.tier.name, operation, (performance.now() - started) / 1000);
        resolve(result);
      }, fail);
    });
  }

  /** Checks the tier now, for a readiness answer. Never throws. */
  async check(): Promise<boolean> {
    await this.run('ping', () => this.tier.ping()).catch(() => undefined);
    return this.isUp;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#probe);
    clearTimeout(this.#watch);
    this.#listeners.clear();
  }

  async #judged(operation: TierOperation, error: unknown, started: number, deadlineMs: number): Promise<unknown> {
    const late = error instanceof DeadlineError;
    const verdict = late ? (error.alive ? 'unserved' : 'away') : this.tier.judge(error);
    const reason: TierErrorReason = late ? 'timeout' : verdict === 'away' ? 'connection' : verdict;
    this.events.tierFailed(this.tier.name, operation, reason, error);
    if (verdict === 'wrong') return error;
    const leftMs = started + deadlineMs - performance.now();
    // A ping without any time would be no question.
    const pingMs = Math.min(Math.max(leftMs, deadlineMs / 10), deadlineMs / 2);
    const alive = verdict === 'away' && !late && (await this.#answersPing(pingMs));
    // What was asked before the tier came back says nothing about how it is now.
    if (verdict === 'away' && !alive && started > this.#upSince) this.#down(reasonOf(error));
    return new TierUnavailableError(this.tier.name, reasonOf(error), { cause: error });
  }

  #down(reason: string): void {
    if (!this.isUp || this.#closed) return;
    this.#downSince = performance.now();
    // Drivers end some of their sentences and not others; ours goes on behind the reason.
    this.#reason = reason.replace(/\.$/, '');
    this.events.tierDown(this.tier.name, this.#reason);
    this.#tell(false);
    const steady = this.#downSince - this.#upSince > STEADY_MS;
    this.#probeAfter(steady ? FIRST_PROBE_MS : this.#probeGapMs);
  }

  #up(): void {
    if (this.#downSince === null || this.#closed) return;
    this.#upSince = performance.now();
    const outage = this.#upSince - this.#downSince;
    this.#downSince = null;
    this.events.tierUp(this.tier.name, outage);
    this.#tell(true);
  }

  #tell(up: boolean): void {
    for (const listener of this.#listeners) listener(up);
  }

  #probeAfter(ms: number): void {
    if (this.#closed) return;
    this.#probeGapMs = Math.min(ms * 2, LAST_PROBE_MS);
    this.#probe = setTimeout(() => {
      failureOf(this.tier.ping(), LAST_PROBE_MS).then((failure) => {
        if (failure === undefined) return this.#up();
        this.#reason = reasonOf(failure);
        this.#probeAfter(this.#probeGapMs);
      });
    }, ms);
    this.#probe.unref();
  }

  /** One timer for all operations: most of them end long before it, and a timer for each would cost more than they do. */
  #watchUntil(moment: number): void {
    clearTimeout(this.#watch);
    this.#watchedUntil = moment;
    this.#watch = setTimeout(() => this.#look(), Math.max(1, moment - performance.now()));
    this.#watch.unref();
  }

  #look(): void {
    this.#watchedUntil = Number.POSITIVE_INFINITY;
    const now = performance.now();
    for (const one of this.#running) {
      if (now < one.due) continue;
      if (one.answered) {
        this.#expire(one);
      } else {
        // Late ourselves, perhaps: the ping has its half of the time from now on.
        one.answered = this.#answersPing(one.deadlineMs / 2);
        one.due = now + one.deadlineMs / 2;
      }
    }
    const next = Math.min(...[...this.#running].map(({ due }) => due));
    if (next < Number.POSITIVE_INFINITY && !this.#closed) this.#watchUntil(next);
  }

  /** Its end, unless the answer is among what the sockets have for us. */
  async #expire(one: Running): Promise<void> {
    one.due = Number.POSITIVE_INFINITY;
    await socketsRead();
    one.fail(new DeadlineError(one.deadlineMs, (await one.answered) ?? false));
  }

  /** One ping at a time, whoever asks. */
  #answersPing(ms: number): Promise<boolean> {
    this.#pinging ??= failureOf(this.tier.ping(), ms)
      .then((failure) => failure === undefined)
      .finally(() => {
        this.#pinging = undefined;
      });
    return this.#pinging;
  }
}

/** What it failed of, be it only the time; `undefined` where it did not. */
function failureOf(work: Promise<void>, ms: number): Promise<unknown> {
  const ended = work.catch((error: unknown) => error);
  return within(ms, ended, new DeadlineError(ms, false));
}
