/** A connection to Redis that opens at its first use, fails fast, and knows which run of the server it talks to. */
import { Redis } from 'ioredis';
import type { Logger } from '../logger.js';
import { factsOf, type RedisFacts } from '../redis-info.js';
import { isReply } from '../redis-script.js';
import { runToken } from './envelope.js';
import { isOurs } from './tier.js';

/** A connection that leaves a command without an answer for so long is replaced. */
export const LONGEST_SILENCE_MS = 2_000;

export interface RedisServer {
  /** Of this run of the server and this incarnation of the database; see `envelope.ts`. */
  readonly run: Buffer;
  /** As of the moment the connection was made. */
  readonly facts: RedisFacts;
}

class SetBackError extends Error {
  override readonly name = 'SetBackError';
  constructor() {
    super('the database was set back meanwhile, so that what Redis says is not believed');
  }
}

export class RedisConnection {
  readonly #redis: Redis;
  #server: RedisServer | undefined;
  /** Of the database; empty until somebody has told it. */
  #incarnation = '';
  #opening: Promise<void> | undefined;
  /** Why there is no connection, where its end said so. */
  #trouble: Error | undefined;

  constructor(
    url: string,
    log: Logger,
    /** Where Redis has a copy of the incarnation, for processes that cannot ask PostgreSQL. */
    private readonly incarnationKey?: string,
  ) {
    this.#redis = create(url, log);
    this.#redis.on('error', (error) => {
      this.#trouble = error;
    });
    // Another run of the server may be behind the same address: until it has said which it is, nothing is asked of it.
    this.#redis.on('close', () => {
      this.#server = undefined;
    });
    this.#redis.on('ready', () => {
      this.#trouble = undefined;
      this.#opening = this.#introduce();
    });
  }

  /**
   * Runs commands. Where there is no connection it throws why, since the driver's own words for that are about its
   * options.
   */
  async use<T>(commands: (redis: Redis, server: RedisServer) => Promise<T>): Promise<T> {
    if (!this.#server) await this.#opened();
    const server = this.#server;
    if (!server) throw this.#lost();
    const incarnation = this.#incarnation;
    try {
      const answer = await commands(this.#redis, server);
      if (incarnation && incarnation !== this.#incarnation) throw new SetBackError();
      return answer;
    } catch (error) {
      throw isReply(error) || isOurs(error) || error instanceof SetBackError ? error : this.#lost();
    }
  }

  get incarnation(): string {
    return this.#incarnation;
  }

  /** From now on nothing is believed that was written in another incarnation of the database. */
  adopt(incarnation: string): void {
    if (incarnation === this.#incarnation) return;
    this.#incarnation = incarnation;
    if (this.#server) this.#server = serverOf(this.#server.facts, incarnation);
  }

  close(): void {
    this.#redis.disconnect();
  }

  /** Whoever comes while the connection is being made waits for it; a reconnection is waited for by nobody. */
  async #opened(): Promise<void> {
    if (this.#redis.status === 'wait') {
      this.#opening = this.#redis
        .connect()
        .then(() => this.#opening)
        .catch(() => undefined);
    } else if (this.#redis.status === 'ready' && !this.#opening) {
      this.#opening = this.#introduce();
    }
    await this.#opening;
  }

  async #introduce(): Promise<void> {
    try {
      const facts = factsOf(await this.#redis.info());
      if (!facts.runId) throw new Error('INFO does not tell the run_id, without which a restart goes unnoticed');
      if (facts.loading) throw new Error('it is still loading its data');
      const copy = this.incarnationKey ? await this.#redis.get(this.incarnationKey) : null;
      this.#incarnation ||= copy ?? '';
      this.#server = serverOf(facts, this.#incarnation);
    } catch (error) {
      this.#trouble = error as Error;
    } finally {
      this.#opening = undefined;
    }
  }

  #lost(): Error {
    return this.#trouble ?? new Error('the connection was lost');
  }
}

function serverOf(facts: RedisFacts, incarnation: string): RedisServer {
  return { run: runToken(facts.runId, incarnation), facts };
}

function create(url: string, log: Logger): Redis {
  const redis = new Redis(url, {
    lazyConnect: true,
    // A command either goes out now or fails now: the guard decides what that means.
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    // A write that its caller has given up on must not land after a newer one.
    autoResendUnfulfilledCommands: false,
    // The introduction asks for more.
    enableReadyCheck: false,
    connectTimeout: LONGEST_SILENCE_MS,
    // A connection whose packets are lost says nothing at all: unless we end it, it takes the kernel minutes.
    socketTimeout: LONGEST_SILENCE_MS,
    retryStrategy: (times) => Math.min(50 * times, 1000),
  });
  // Without a listener a lost connection would end the process. The guard reports outages; this is for the curious.
  redis.on('error', (error) => log.debug({ err: error }, 'cache connection error'));
  return redis;
}
