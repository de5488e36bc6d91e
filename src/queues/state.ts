/** What the queues need to know beside BullMQ's own records, kept where they are kept. */
import type { HostRules, Standing, Step } from './host-schedule.js';

export interface QueueState {
  /**
   * One step of a host's schedule, at once: answers with the standing of the job itself (not after `leave`), and of the
   * jobs that were given a permit by it.
   */
  visit(step: Step, host: string, job: string, rules: HostRules & { readonly coolMs?: number }): Promise<Standing[]>;
  /**
   * The next `wanted` turns of a tenant in a queue, behind its own last one and not before `present`.
   *
   * @returns the first of them
   */
  takeTurns(queue: string, tenantId: string, wanted: number, present: number): Promise<number>;
  close(): Promise<void>;
}
