/** The hot tier: compact binary values under `<prefix>:<kind>:<format>:<tenant>:<key…>`, each with a lifetime. */
import { type ChainableCommander, Redis } from 'ioredis';
import type { Config } from '../config.js';
import type { Logger } from '../logger.js';
import { ABSENT, attempt, type Entry, type Found, isOurs, type Lookup, type Tier, type Verdict } from './tier.js';

/** Lifetimes vary by this share, so that entries written together do not all expire together. */
const TTL_JITTER = 0.1;

const REMOVE_IF_SAME =
  "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('unlink', KEYS[1]) end return 0";

export interface RedisTierOptions {
  readonly url: string;
  readonly ttl: Config['ttl'];
  /** First part of every key. Tests take their own. */
  readonly prefix?: string | undefined;
}

export class RedisTier implements Tier {
  readonly name = 'redis';
  readonly #redis: Redis;
  readonly #ttl: Config['ttl'];
  readonly #prefix: string;
  #connecting: Promise<void> | undefined;
  /** Why there is no connection, where its end said so. */
  #trouble: Error | undefined;

  constructor(options: RedisTierOptions, log: Logger) {
    this.#redis = connect(options.url, log);
    this.#redis.on('error', (error) => {
      this.#trouble = error;
    });
    this.#redis.on('ready', () => {
      this.#trouble = undefined;
    });
    this.#ttl = options.ttl;
    this.#prefix = options.prefix ?? 'hc';
  }

  async read(tenantId: string, lookups: readonly Lookup[]): Promise<Found[]> {
    const keys = lookups.map((one) => this.keyOf(tenantId, one));
    const values = await this.#connected((redis) => redis.mgetBuffer(...keys));
    return values.map((bytes, i) => (bytes ? attempt(() => lookups[i]?.kind.decode(bytes), bytes) : ABSENT));
  }

  async write(tenantId: string, entries: readonly Entry[]): Promise<Entry[]> {
    await this.#set(tenantId, entries, false);
    return [...entries];
  }

  /** Fills what is missing: an entry that is there by now is as new as ours, or newer. */
  async backfill(tenantId: string, entries: readonly Entry[]): Promise<void> {
    await this.#set(tenantId, entries, true);
  }

  /** Removes entries; one that comes with `bytes` only if it has not been written anew since they were read. */
  async remove(tenantId: string, entries: readonly (Lookup & { readonly bytes?: Buffer })[]): Promise<void> {
    const pipeline = this.#redis.pipeline();
    for (const one of entries) {
      const key = this.keyOf(tenantId, one);
      if (one.bytes) pipeline.eval(REMOVE_IF_SAME, 1, key, one.bytes);
      else pipeline.unlink(key);
    }
    await this.#connected(() => executed(pipeline));
  }

  async ping(): Promise<void> {
    await this.#connected((redis) => redis.ping());
  }

  /** An error that is no answer of the server is about the connection. */
  judge(error: unknown): Verdict {
    if (!isReply(error)) return isOurs(error) ? 'wrong' : 'away';
    if (/^(LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|NOAUTH|WRONGPASS)\b/.test(error.message)) return 'away';
    return /^(OOM|READONLY|MISCONF|TRYAGAIN)\b/.test(error.message) ? 'unserved' : 'wrong';
  }

  async close(): Promise<void> {
    this.#redis.disconnect();
  }

  keyOf(tenantId: string, { kind, key }: Lookup): string {
    return [this.#prefix, kind.name, kind.format, tenantId, ...kind.key(key)].join(':');
  }

  async #set(tenantId: string, entries: readonly Entry[], onlyIfAbsent: boolean): Promise<void> {
    const pipeline = this.#redis.pipeline();
    for (const one of entries) {
      const key = this.keyOf(tenantId, one);
      const bytes = one.kind.encode(one.value);
      const ttl = this.#jittered(this.#ttl[one.kind.ttl]);
      if (onlyIfAbsent) pipeline.set(key, bytes, 'PX', ttl, 'NX');
      else pipeline.set(key, bytes, 'PX', ttl);
    }
    await this.#connected(() => executed(pipeline));
  }

  /** Milliseconds from a lifetime in seconds. */
  #jittered(seconds: number): number {
    return Math.round(seconds * 1000 * (1 + TTL_JITTER * (2 * Math.random() - 1)));
  }

  /**
   * Runs commands on the connection, which opens at the first use: constructing a cache does no I/O. Where there is none
   * it throws why, since the driver's own words for that are about its options.
   */
  async #connected<T>(commands: (redis: Redis) => Promise<T>): Promise<T> {
    if (this.#redis.status === 'wait') {
      this.#connecting = this.#redis.connect().finally(() => {
        this.#connecting = undefined;
      });
    }
    // Whoever comes while the first connection is being made waits for it; a later one is waited for by nobody.
    await this.#connecting?.catch(() => undefined);
    if (this.#redis.status !== 'ready') throw this.#lost();
    try {
      return await commands(this.#redis);
    } catch (error) {
      throw isReply(error) || isOurs(error) ? error : this.#lost();
    }
  }

  #lost(): Error {
    return this.#trouble ?? new Error('the connection was lost');
  }
}

function isReply(error: unknown): error is Error {
  return error instanceof Error && error.name === 'ReplyError';
}

/** Throws the first error among the answers, which a pipeline keeps to itself. */
async function executed(pipeline: ChainableCommander): Promise<void> {
  const answers = (await pipeline.exec()) ?? [];
  const failed = answers.find(([error]) => error);
  if (failed?.[0]) throw failed[0];
}

function connect(url: string, log: Logger): Redis {
  const redis = new Redis(url, {
    lazyConnect: true,
    // A command either goes out now or fails now: the guard decides what that means.
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    // A write that its caller has given up on must not land after a newer one.
    autoResendUnfulfilledCommands: false,
    connectTimeout: 2000,
    retryStrategy: (times) => Math.min(50 * times, 1000),
  });
  // Without a listener a lost connection would end the process. The guard reports outages; this is for the curious.
  redis.on('error', (error) => log.debug({ err: error }, 'cache connection error'));
  return redis;
}
