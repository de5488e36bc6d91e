/**
 * Whose job runs next: start-time fair queuing (Goyal, Vin, Cheng, SIGCOMM 1996, doi:10.1145/248156.248171) over tenants,
 * so that one's 100,000 jobs do not starve another's ten. A job gets its turn when it is enqueued, and jobs run in the
 * order of their turns:
 *
 *     turn = the later of the one after its tenant's last, and the present turn
 *
 * The present turn is the latest that a job has come to: of those that run, of the one that ended last, and of the one
 * that is next. It never goes back, so a job that is held back or retried comes before all later ones. A tenant's last
 * turn counts while that job waits (or is on its way into the queue): what was done or removed puts nobody behind. Where
 * that one job was removed and earlier ones of its tenant still wait, its next jobs run beside those, not behind them.
 * A job whose twin waits or runs takes no turn.
 *
 * A turn is a place in time that grows for ever; BullMQ's priority ends at 2,097,151. So turns are numbered from a base:
 *
 *     priority = 2 * (turn - base) + numbering % 2
 *
 * When the present turn has come to the middle of the range, a new numbering begins there, at once and for everybody; the
 * lowest bit tells to which one a priority belongs. Jobs of the former one are then renumbered page by page, lowest first,
 * so that none overtakes another of its tenant, while producers and workers go on. Turns beyond the range share the last
 * number, first come, first served; they get numbers of their own from the next numbering.
 *
 * What is counted lives where the queue lives (`turns-redis.ts`, and `queue_state` in `drizzle/`), and is read off BullMQ's
 * own records there in the same step: `prioritized`, `active` and so on in Redis, the table `job` in PostgreSQL, which are
 * the same for its clients in every language.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import type { QueueState } from './state.js';

export interface TurnRules {
  /** Turns that have a number of their own. */
  readonly most: number;
  /** From taking turns until all jobs that take them are in the queue, at the longest. */
  readonly inFlightMs: number;
  /** Jobs that are renumbered in one step. */
  readonly page: number;
  /** After which others renumber where whoever was at it has died: longer than `inFlightMs`, which it sits out. */
  readonly leaseMs: number;
}

const HIGHEST_PRIORITY = 2 ** 21 - 1;

export const TURN_RULES: TurnRules = {
  most: (HIGHEST_PRIORITY - 1) / 2,
  inFlightMs: 60_000,
  page: 200,
  leaseMs: 90_000,
};

/** A job on its way into its queue. */
export interface Comer {
  readonly tenantId: string;
  /** The same as that of its twins. */
  readonly identity: string;
}

export interface TakenTurns {
  /** BullMQ's priorities, in the order of the jobs. */
  readonly priorities: number[];
  /** Whether jobs wait to be renumbered. */
  readonly outdated: boolean;
}

/** One step of renumbering. */
export interface RenumberStep {
  /** Where to go on; `null` after the last page. */
  readonly next: string | null;
  readonly renumbered: number;
  /** Since when the present numbering is in use. */
  readonly ageMs: number;
}

export class Turns {
  readonly #owner = randomUUID();
  readonly #stopping = new AbortController();
  readonly #renumbering = new Map<string, Promise<void>>();
  readonly #again = new Set<string>();

  constructor(
    private readonly state: QueueState,
    private readonly rules: TurnRules,
  ) {}

  /** @returns the jobs' priorities, in their order */
  async take(queue: string, jobs: readonly Comer[]): Promise<number[]> {
    const { priorities, outdated } = await this.state.takeTurns(queue, jobs, this.rules);
    if (outdated) this.#renumber(queue);
    return priorities;
  }

  /** Ends what runs in the background; another process goes on with it. */
  async close(): Promise<void> {
    this.#stopping.abort();
    await Promise.all(this.#renumbering.values());
  }

  /** Where it fails, or ends with this process, the next producer finds out that something is left. */
  #renumber(queue: string): void {
    if (this.#stopping.signal.aborted) return;
    if (this.#renumbering.has(queue)) {
      this.#again.add(queue); // a new numbering may have begun just as the last one ended
      return;
    }
    const over = this.#renumberAll(queue)
      .catch(() => undefined)
      .finally(() => {
        this.#renumbering.delete(queue);
        if (this.#again.delete(queue)) this.#renumber(queue);
      });
    this.#renumbering.set(queue, over);
  }

  async #renumberAll(queue: string): Promise<void> {
    let ended = false;
    try {
      ended = await this.#passes(queue);
    } finally {
      await this.state.leaveNumbering(queue, this.#owner, ended);
    }
  }

  /**
   * Jobs change places while a pass goes through them, and producers may still enqueue under the former numbering: it ends
   * with a pass that began after that time, and found nothing.
   *
   * @returns whether it has ended, rather than that somebody else is at it
   */
  async #passes(queue: string): Promise<boolean> {
    for (;;) {
      const pass = await this.#pass(queue);
      if (!pass) return false;
      if (pass.renumbered > 0) continue;
      const restMs = this.rules.inFlightMs - pass.ageMs;
      if (restMs < 0) return true;
      await pause(restMs + 1, undefined, { signal: this.#stopping.signal, ref: false });
    }
  }

  /** `null` where there is nothing to do here any more. */
  async #pass(queue: string): Promise<{ renumbered: number; ageMs: number } | null> {
    let renumbered = 0;
    let ageMs: number | undefined;
    for (let from: string | null = ''; from !== null; ) {
      this.#stopping.signal.throwIfAborted();
      const step: RenumberStep | null = await this.state.renumber(queue, this.#owner, from, this.rules);
      if (!step) return null;
      renumbered += step.renumbered;
      ageMs ??= step.ageMs;
      from = step.next;
    }
    return { renumbered, ageMs: ageMs ?? 0 };
  }
}
