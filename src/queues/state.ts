/** What the queues need to know beside BullMQ's own records, kept where they are kept. */
import type { Job } from 'bullmq';
import type { HostRules, Standing, Visitor, VisitStep } from './host-schedule.js';
import type { Comer, RenumberStep, TakenTurns, TurnRules } from './turns.js';

export interface OverdueHosts {
  readonly hosts: string[];
  /** Whether there may be further ones. */
  readonly more: boolean;
}

export interface QueueState {
  /**
   * One step of a host's schedule, at once: answers with the standing of the job itself (not after `leave` and `tend`), of the
   * jobs that were given a permit by it, and to `tend` of all that did not come for theirs yet.
   */
  visit(
    step: VisitStep,
    host: string,
    visitor: Visitor,
    rules: HostRules & { readonly coolMs?: number },
  ): Promise<Standing[]>;
  /**
   * Hosts where somebody should have come for a permit, or stepped at a line, at least `graceMs` ago; at most so many, and
   * each is told to one who asks. Forgets on the way what means nothing any more.
   */
  overdueHosts(graceMs: number, most: number): Promise<OverdueHosts>;
  /** Has a delayed job run now. Whatever else it is, it stays. */
  promote(job: Job): Promise<void>;
  /** Turns for jobs on their way into a queue, at once, see `turns.ts`; a new numbering begins here where one is due. */
  takeTurns(queue: string, jobs: readonly Comer[], rules: TurnRules): Promise<TakenTurns>;
  /**
   * Renumbers one page of jobs, lowest first, and leases the work to `owner`.
   *
   * @param from where to go on; empty to begin a pass
   * @returns `null` where every job has its number, or somebody else is at it
   */
  renumber(queue: string, owner: string, from: string, rules: TurnRules): Promise<RenumberStep | null>;
  /** Gives back the lease; with `ended`, every job has its number, and the next numbering may begin when it is due. */
  leaveNumbering(queue: string, owner: string, ended: boolean): Promise<void>;
  close(): Promise<void>;
}
