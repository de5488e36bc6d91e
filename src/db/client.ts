/** The PostgreSQL pool, with the settings that keep a frozen server from holding our connections for ever. */
import { Client, type ClientConfig, Pool } from 'pg';
import type { PostgresConfig } from '../config.js';
import { within } from '../lifecycle.js';
import type { Logger } from '../logger.js';

/** The most connections of a pool, by what it is for; those of a queue and of its worker only where queues are here. */
export const POOL_SIZES = {
  cache: 10,
  probes: 2,
  queueState: 3,
  queue: 3,
  worker: (concurrency: number) => 2 + Math.ceil(concurrency / 4),
} as const;

export interface PoolOptions {
  readonly max: number;
  /** Longest time for a statement, in milliseconds; after it the connection is given up. */
  readonly timeoutMs?: number;
}

const LATE = Symbol('late');

/**
 * A connection that keeps the time of `query_timeout` itself, and ends when a query takes longer. pg 8 does it by a timer
 * alone: after a process stood still it threw away answers that lay in the socket, as if PostgreSQL had been away.
 */
export class SocketsFirstClient extends Client {
  readonly #timeoutMs: number;

  constructor({ query_timeout: timeoutMs = 0, ...config }: ClientConfig = {}) {
    super(config);
    this.#timeoutMs = timeoutMs;
  }

  /** As pg's: answers to a callback, or with a promise. `never`, since it stands for every signature. */
  override query(...args: unknown[]): never {
    const [config] = args as [{ query_timeout?: number } | string];
    const ownMs = typeof config === 'object' ? config.query_timeout : undefined;
    if (ownMs !== undefined) args[0] = { ...(config as object), query_timeout: undefined };
    const over = this.#timer(ownMs ?? this.#timeoutMs);
    const at = args.findIndex((one) => typeof one === 'function');
    const callback = args[at] as ((...answer: unknown[]) => void) | undefined;
    if (callback) {
      args[at] = (...answer: unknown[]) => {
        over();
        callback(...answer);
      };
    }
    const asked = super.query(...(args as Parameters<Client['query']>)) as unknown as Promise<unknown> | undefined;
    if (!callback) asked?.then(over, over);
    return asked as never;
  }

  /** @returns what tells it that the query is over */
  #timer(ms: number): () => void {
    let over = () => {};
    const ended = new Promise<void>((resolve) => {
      over = resolve;
    });
    const giveUp = () => this.connection.stream.destroy(new Error('Query read timeout'));
    if (ms > 0) within(ms, ended, LATE).then((end) => end === LATE && giveUp());
    return over;
  }
}

export function createPool(postgres: PostgresConfig, log: Logger, options: PoolOptions): Pool {
  const timeoutMs = options.timeoutMs ?? 10_000;
  const pool = new Pool({
    ...postgres,
    Client: SocketsFirstClient,
    max: options.max,
    connectionTimeoutMillis: 5_000,
    idleTimeoutMillis: 30_000,
    // The server ends what runs too long; our side gives up a connection whose server does not even do that.
    statement_timeout: timeoutMs,
    query_timeout: timeoutMs + 1_000,
    keepAlive: true,
    application_name: 'hybrid-cache-service',
    allowExitOnIdle: true,
  });
  hearLostConnections(pool, (error) => log.debug({ err: error }, 'database connection lost'));
  return pool;
}

interface LosingConnections {
  on(event: 'error', listener: (error: Error) => void): unknown;
  on(
    event: 'connect',
    listener: (client: { on(event: 'error', listener: (error: Error) => void): unknown }) => void,
  ): unknown;
}

/**
 * A connection that loses its server says so by an event, and an event nobody hears ends the process. The pool hears its
 * idle connections alone: one that is taken out, and between two queries, has to be heard itself.
 */
export function hearLostConnections(pool: LosingConnections, heard: (error: Error) => void): void {
  pool.on('error', heard);
  pool.on('connect', (client) => client.on('error', heard));
}
