/** `QueueState` on PostgreSQL: the functions of `queue_state` in `drizzle/`. */
import type { Job } from 'bullmq';
import { escapeIdentifier, type Pool } from 'pg';
import type { HostRules, Standing, Visitor, VisitStep } from './host-schedule.js';
import type { OverdueHosts, QueueState } from './state.js';
import type { Comer, RenumberStep, TakenTurns, TurnRules } from './turns.js';

const VISIT = {
  name: 'host_visit',
  text: `select job, delay_ms::float8 as "delayMs", booked from queue_state.visit($1, $2, $3, $4, $5, $6, $7, $8)`,
};
const OVERDUE_HOSTS = {
  name: 'overdue_hosts',
  text: `select coalesce(hosts, '{}') as hosts, more from queue_state.overdue_hosts($1, $2)`,
};
const TAKE_TURNS = {
  name: 'take_turns',
  text: 'select priorities, outdated from queue_state.take_turns($1, $2, $3, $4, $5, $6)',
};
const RENUMBER = {
  name: 'renumber',
  text: `select next, renumbered::float8, age_ms::float8 as "ageMs" from queue_state.renumber($1, $2, $3, $4, $5, $6, $7)`,
};
const LEAVE_NUMBERING = { name: 'leave_numbering', text: 'select queue_state.leave_numbering($1, $2, $3)' };

export class PostgresQueueState implements QueueState {
  /** @param schema BullMQ's */
  constructor(
    private readonly pool: Pool,
    private readonly schema: string,
  ) {}

  async visit(
    step: VisitStep,
    host: string,
    { job, tenantId = '' }: Visitor,
    { most, gapMs, leaseMs, coolMs = 0 }: HostRules & { coolMs?: number },
  ): Promise<Standing[]> {
    const values = [step, host, job, tenantId, most, gapMs, leaseMs, coolMs];
    const { rows } = await this.pool.query<Standing>({ ...VISIT, values });
    return rows;
  }

  async overdueHosts(graceMs: number, most: number): Promise<OverdueHosts> {
    const { rows } = await this.pool.query<OverdueHosts>({ ...OVERDUE_HOSTS, values: [graceMs, most] });
    return rows[0] as OverdueHosts;
  }

  /**
   * BullMQ 6.7 looks at the state first and changes it afterwards, so that of two who promote a job the second may put it
   * back when it runs already, and it runs twice. Here its row is held in between.
   */
  async promote({ queueName, id }: Job): Promise<void> {
    const schema = escapeIdentifier(this.schema);
    await this.pool.query({
      name: 'promote',
      text:
        `select ${schema}.promote($1, $2) from ` +
        `(select from ${schema}.job where queue = $1 and id = $2 and state = 'delayed' for update) as held`,
      values: [queueName, id],
    });
  }

  async takeTurns(queue: string, jobs: readonly Comer[], rules: TurnRules): Promise<TakenTurns> {
    const tenants = jobs.map(({ tenantId }) => tenantId);
    const identities = jobs.map(({ identity }) => identity);
    const values = [this.schema, queue, rules.most, rules.inFlightMs, tenants, identities];
    const { rows } = await this.pool.query<TakenTurns>({ ...TAKE_TURNS, values });
    return rows[0] as TakenTurns;
  }

  async renumber(queue: string, owner: string, from: string, rules: TurnRules): Promise<RenumberStep | null> {
    const values = [this.schema, queue, rules.most, owner, rules.leaseMs, rules.page, from];
    const { rows } = await this.pool.query<RenumberStep>({ ...RENUMBER, values });
    return rows[0] ?? null;
  }

  async leaveNumbering(queue: string, owner: string, ended: boolean): Promise<void> {
    await this.pool.query({ ...LEAVE_NUMBERING, values: [queue, owner, ended] });
  }

  async close(): Promise<void> {
    await this.pool.end();
  }
}
