/** `QueueState` on PostgreSQL: the functions of `queue_state` in `drizzle/`. */
import type { Pool } from 'pg';
import type { HostRules, Standing, Step } from './host-schedule.js';
import type { QueueState } from './state.js';

const VISIT = {
  name: 'host_visit',
  text: `select job, delay_ms::float8 as "delayMs", booked from queue_state.visit($1, $2, $3, $4, $5, $6, $7)`,
};
const TAKE_TURNS = {
  name: 'take_turns',
  text: 'select queue_state.take_turns($1, $2, $3, $4)::float8 as first',
};

export class PostgresQueueState implements QueueState {
  constructor(private readonly pool: Pool) {}

  async visit(
    step: Step,
    host: string,
    job: string,
    { most, gapMs, leaseMs, coolMs = 0 }: HostRules & { coolMs?: number },
  ): Promise<Standing[]> {
    const values = [step, host, job, most, gapMs, leaseMs, coolMs];
    const { rows } = await this.pool.query<Standing>({ ...VISIT, values });
    return rows;
  }

  async takeTurns(queue: string, tenantId: string, wanted: number, present: number): Promise<number> {
    const { rows } = await this.pool.query<{ first: number }>({
      ...TAKE_TURNS,
      values: [queue, tenantId, wanted, present],
    });
    return (rows[0] as { first: number }).first;
  }

  async close(): Promise<void> {
    await this.pool.end();
  }
}
