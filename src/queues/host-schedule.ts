/**
 * When a request to a host may begin, over all processes: at most so many at once, and a gap between any two beginnings.
 * What is known of a host lives where the queue lives, since a job that has to wait waits there and in no slot.
 *
 *     enter  asks for a permit; without a free one the job queues up at the host; who began under its permit and was cut
 *            short before it gave it back makes another request, as `again` does
 *     again  one more request under the same permit, a gap later
 *     also   one more at once, which the next one counts from
 *     leave  gives the permit back; with `coolMs` the host has sent the job away: nobody begins before that, and one at a
 *            time until somebody leaves whom it did not send away
 *     look   tells how the job stands
 *     tend   is nobody's: it finds who was given a permit and does not come for it
 *
 * Whoever steps gives free permits to those who wait, each with its own time to begin, and has their jobs woken then:
 * nobody is woken only to be turned away. Tenants take turns in a line, as in the queue (`turns.ts`), and each tenant's
 * jobs are served as they came. Permits are leases: of a job that died, the next step at its host takes it back, and who did
 * not come for one in time is in line again. Whoever knows of a longer gap than those before it keeps it from their
 * beginnings too: the first to read a host's rules has asked for them under another one. Who was booked, and then finds that
 * somebody has begun beside it, as a job that died and comes again, waits for the gap once more.
 *
 * A permit is given in the store, and waking its job is a second thing to do, which fails where the process dies in between,
 * or the store does. So every process that takes jobs tends the hosts that are overdue (`tend`): where nobody came for a
 * permit, its job is woken once more, and where nobody stepped at a line, the first in it gets its permit.
 */
import type { Queue } from 'bullmq';
import { DeferredError } from '../errors.js';
import { within } from '../lifecycle.js';
import { answered } from './index.js';
import type { QueueState } from './state.js';

export interface HostRules {
  /** Requests at once. */
  readonly most: number;
  /** Milliseconds from one beginning to the next. */
  readonly gapMs: number;
  /** Milliseconds after which a request that did not end counts as dead: longer than any lasts. */
  readonly leaseMs: number;
}

/** Whose step it is. */
export interface Visitor {
  readonly job: string;
  /** Whose job it is, which decides its turn; only who enters says so. */
  readonly tenantId?: string;
}

/** How a job stands after a step. */
export interface Standing {
  readonly job: string;
  /** Until it may begin; where it is not booked, until it should ask again if nobody woke it. */
  readonly delayMs: number;
  /** Whether it has a permit. */
  readonly booked: boolean;
}

export type VisitStep = 'enter' | 'again' | 'also' | 'leave' | 'look' | 'tend';

/** The right to make one request at a time to a host. */
export interface Permit {
  /** Books the next request, a gap after the last one began. @throws {DeferredError} where it may not begin yet */
  again(rules: HostRules): Promise<void>;
  /** Counts one more request, at once. @throws {DeferredError} where the permit is another's by now */
  also(rules: HostRules): Promise<void>;
  /** @param coolMs that the host sent the job away, and for how long it is left alone */
  leave(rules: HostRules, coolMs?: number): Promise<void>;
}

/** A step takes a few milliseconds. */
const DEADLINE_MS = 900;
/** Jobs in a long line look up now and then, should what was kept of the line be lost. */
const LONGEST_WAIT_MS = 3_600_000;
/** Who was woken runs within moments, unless every slot is taken. */
const GRACE_MS = 5_000;
/** Hosts that are tended in one go. */
const PAGE = 100;
/** `tend` is nobody's step. */
const NOBODY: Visitor = { job: '' };

export class HostSchedule {
  constructor(
    private readonly state: QueueState,
    private readonly queue: Queue,
  ) {}

  /**
   * Resolves with a permit, which has to be given back.
   *
   * @throws {DeferredError} where the job has to wait; it keeps its place in the line
   * @throws {QueueUnavailableError}
   */
  async enter(host: string, job: string, tenantId: string, rules: HostRules): Promise<Permit> {
    const visitor = { job, tenantId };
    await this.#admit('enter', host, visitor, rules);
    return {
      again: (next) => this.#admit('again', host, visitor, next),
      also: (next) => this.#admit('also', host, visitor, next),
      leave: (last, coolMs) => this.leave(host, job, last, coolMs),
    };
  }

  /** Gives up what the job has at the host, be it a permit or a place in the line. @throws {QueueUnavailableError} */
  async leave(host: string, job: string, rules: HostRules, coolMs?: number): Promise<void> {
    await this.#step('leave', host, { job }, { ...rules, coolMs });
  }

  /**
   * Looks at the hosts that are overdue: where, for `graceMs`, nobody came for a permit, or nobody stepped at a line.
   *
   * @throws {QueueUnavailableError}
   */
  async tend(rules: HostRules, signal: AbortSignal, graceMs = GRACE_MS): Promise<void> {
    for (let more = true; more; ) {
      const overdue = await answered(this.state.overdueHosts(graceMs, PAGE), DEADLINE_MS);
      for (const host of overdue.hosts) {
        if (signal.aborted) return;
        // One permit is enough to have the line go on: its holder gives the others.
        await this.#step('tend', host, NOBODY, { ...rules, most: 1 });
      }
      more = overdue.more;
    }
  }

  async #admit(step: 'enter' | 'again' | 'also', host: string, visitor: Visitor, rules: HostRules): Promise<void> {
    const own = await this.#step(step, host, visitor, rules);
    if (!own || (own.booked && own.delayMs === 0)) return;
    const delayMs = own.booked ? own.delayMs : Math.min(own.delayMs, LONGEST_WAIT_MS);
    // Whoever gave it a permit in the meantime found it where it was not to be woken yet.
    const settled = async () => {
      const now = await this.#step('look', host, visitor, rules);
      if (now?.booked && (!own.booked || now.delayMs > delayMs)) await this.#wake(host, now, rules);
    };
    throw new DeferredError(delayMs, `${host} is busy`, settled);
  }

  /** @returns how the job itself stands */
  async #step(
    step: VisitStep,
    host: string,
    visitor: Visitor,
    rules: HostRules & { coolMs?: number | undefined },
  ): Promise<Standing | undefined> {
    const visited = this.state.visit(step, host, visitor, whole(rules));
    // A late answer, which nobody waits for any more, has given permits too.
    const woken = visited.then((standings) =>
      Promise.all(standings.filter(({ job }) => job !== visitor.job).map((other) => this.#wake(host, other, rules))),
    );
    woken.catch(() => undefined); // `visited` tells
    const standings = await answered(visited, DEADLINE_MS);
    await within(DEADLINE_MS, woken, undefined);
    return standings.find(({ job }) => job === visitor.job);
  }

  /** What fails here, `tend` makes good. */
  async #wake(host: string, { job: id, delayMs }: Standing, rules: HostRules): Promise<void> {
    const job = await this.queue.getJob(id).catch(() => null);
    if (job === undefined || job?.finishedOn) {
      // Nobody will ever use its permit: the next one in line does. Where thousands are gone, one after the other
      // finds that out, for which the job that came by does not wait.
      void this.leave(host, id, rules).catch(() => undefined);
    } else if (job) {
      // Where it is not delayed yet, it looks for itself once it is; where it runs already, it has its permit.
      await (delayMs > 0 ? job.changeDelay(delayMs) : this.state.promote(job)).catch(() => undefined);
    }
  }
}

/** Stores count whole milliseconds (a delay of 2.01 s is some of them and a bit), and 0 where nobody was sent away. */
function whole({ most, gapMs, leaseMs, coolMs }: HostRules & { coolMs?: number | undefined }) {
  const cool = coolMs === undefined ? 0 : Math.max(Math.ceil(coolMs), 1);
  return { most, gapMs: Math.ceil(gapMs), leaseMs: Math.ceil(leaseMs), coolMs: cool };
}
