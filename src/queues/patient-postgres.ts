/**
 * BullMQ's PostgreSQL backend, with what it lacks: it forgets that PostgreSQL was away, hears its connections end, goes by
 * the server's clock, and does not read all completed jobs whenever one completes.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { createPostgresBackend } from 'bullmq';
import { Client, type Pool, type QueryResult } from 'pg';
import { hearLostConnections } from '../db/client.js';
import { ServerClock } from '../server-clock.js';

/** What BullMQ's backend and its connection both keep: their first answer to whether PostgreSQL is ready. */
interface Readiness {
  readyPromise?: Promise<void> | undefined;
  waitUntilReady(): Promise<void>;
}

interface Connection extends Readiness {
  readonly pool: Pool;
  readonly isClosing: unknown;
  /** Where it takes the client from that listens. */
  pgModule?: { readonly Client: typeof Client } | undefined;
}

/**
 * BullMQ 6.7 hears its listening client neither in the moment it has connected nor while it closes: a server that ends the
 * connection then would end the process. This one is heard from its first moment to its last.
 */
class HeardClient extends Client {
  constructor(...args: ConstructorParameters<typeof Client>) {
    super(...args);
    this.#hear();
  }

  override removeAllListeners(event?: string | symbol): this {
    super.removeAllListeners(event);
    return this.#hear();
  }

  #hear(): this {
    return this.listeners('error').includes(ignore) ? this : this.on('error', ignore);
  }
}

/** Whoever uses a connection is told by its query. */
const ignore = () => undefined;

/** Keeps a worker's loop, which asks again at once, from asking thousands of times a second. */
const NOT_READY_PAUSE_MS = 100;

interface Commands {
  /** Runs one of BullMQ's SQL commands. */
  run(command: string, params: unknown[]): Promise<QueryResult<Record<string, unknown>>>;
  query(text: string, params: unknown[]): Promise<QueryResult>;
}

/** Which parameters of BullMQ's commands are times, in milliseconds since the epoch. */
const TIMES: Readonly<Record<string, readonly number[]>> = {
  move_to_active: [3],
  move_to_completed: [4],
  move_to_completed_fetch: [4, 9],
  move_to_failed: [5],
  move_to_failed_fetch: [5, 10],
  move_to_delayed: [3],
  change_delay: [3],
  extend_lock: [4],
  extend_locks: [4],
  move_stalled_jobs_to_wait: [2],
  next_signal: [2],
};

export const createPatientBackend: typeof createPostgresBackend = (...args) => {
  const backend = createPostgresBackend(...args);
  const { connection } = backend as unknown as { connection: Connection };
  hearLostConnections(connection.pool, ignore);
  if (connection.pgModule) connection.pgModule = { Client: HeardClient };
  for (const part of [connection, backend as unknown as Readiness]) forgetUnready(part);
  goByServerClock(backend as unknown as Commands, connection);
  trimSeldom(backend as unknown as Commands);
  return backend;
};

/**
 * BullMQ 6.7 keeps that answer for ever, also when it was "no": a queue that was made while PostgreSQL was away stayed
 * dead, and a worker's loop spun on it without letting a timer or a socket have its turn. Here a "no" is forgotten.
 */
function forgetUnready(part: Readiness): void {
  const ready = part.waitUntilReady.bind(part);
  part.waitUntilReady = async () => {
    try {
      await ready();
    } catch (error) {
      part.readyPromise = undefined;
      await pause(NOT_READY_PAUSE_MS);
      throw error;
    }
  };
}

/**
 * BullMQ 6.7 tells PostgreSQL the time by its own clock: a worker that is minutes fast took the jobs of living ones for
 * stalled, and the locks of one that is slow had ended when they began. So whatever it says of times is put right on its
 * way, and on its way back what it is told about the next delayed job, and when a job began: it renews locks by that.
 */
function goByServerClock(backend: Commands, connection: Connection): void {
  const clock = new ServerClock(async () => {
    const text = 'select extract(epoch from clock_timestamp())::float8 as seconds';
    const { rows } = await connection.pool.query<{ seconds: number }>(text);
    return (rows[0] as { seconds: number }).seconds;
  });
  const run = backend.run.bind(backend);
  backend.run = async (command, params) => {
    const times = TIMES[command] ?? [];
    if (times.length === 0 && command !== 'next_delay') return run(command, params);
    await connection.waitUntilReady();
    const aheadMs = await clock.aheadMs().catch((error: unknown) => {
      if (connection.isClosing) return 0; // BullMQ lets such a command rest
      throw error;
    });
    const told = params.map((value, i) => (times.includes(i) ? Number(value) + aheadMs : value));
    const result = await run(command, told);
    for (const row of result.rows) {
      for (const time of ['next_delay', 'processed_at_ms']) {
        if (typeof row[time] === 'string') row[time] = String(Number(row[time]) - aheadMs);
      }
    }
    return result;
  };
}

/** Of BullMQ's commands: which parameter says how many jobs are to be kept. */
const KEPT: Readonly<Record<string, number>> = { move_to_completed: 7, move_to_completed_fetch: 7 };
/** So many are counted now and then alone. */
const MANY = 1_000;
const TRIM_AFTER = 1_000;
const TRIM = `delete from job where queue = $1 and state = 'completed' and finished_at_ms <= (
  select finished_at_ms from job where queue = $1 and state = 'completed' order by finished_at_ms desc offset $2 limit 1)`;

/**
 * To keep no more than 100,000 completed jobs, BullMQ 6.7 reads all of them whenever one completes, in its transaction.
 * Here they are counted after every thousandth that this process completes, by an index.
 */
function trimSeldom(backend: Commands): void {
  let completed = 0;
  const run = backend.run.bind(backend);
  backend.run = async (command, params) => {
    const at = KEPT[command] ?? -1;
    const kept = params[at];
    if (typeof kept !== 'number' || kept < MANY) return run(command, params);
    const result = await run(command, params.with(at, null));
    completed += 1;
    // Where that fails, the next thousandth does it.
    if (completed % TRIM_AFTER === 0) backend.query(TRIM, [params[0], kept]).catch(ignore);
    return result;
  };
}
