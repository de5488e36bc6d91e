/** The hot tier: compact binary values under `<prefix>:<kind>:<format>:<tenant>:<key…>`, each with a lifetime. */
import { Redis } from 'ioredis';
import type { Config } from '../config.js';
import type { Logger } from '../logger.js';
import { ABSENT, attempt, type Entry, type Found, isOurs, type Lookup, type Tier } from './tier.js';

/** Lifetimes vary by this share, so that entries written together do not all expire together. */
const TTL_JITTER = 0.1;

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

  constructor(options: RedisTierOptions, log: Logger) {
    this.#redis = connect(options.url, log);
    this.#ttl = options.ttl;
    this.#prefix = options.prefix ?? 'hc';
  }

  async read(tenantId: string, lookups: readonly Lookup[]): Promise<Found[]> {
    await this.#connected();
    const keys = lookups.map((one) => this.keyOf(tenantId, one));
    const values = await this.#redis.mgetBuffer(...keys);
    return values.map((bytes, i) => (bytes ? attempt(() => lookups[i]?.kind.decode(bytes)) : ABSENT));
  }

  async write(tenantId: string, entries: readonly Entry[]): Promise<Entry[]> {
    await this.#set(tenantId, entries, false);
    return [...entries];
  }

  /** Fills what is missing: an entry that is there by now is as new as ours, or newer. */
  async backfill(tenantId: string, entries: readonly Entry[]): Promise<void> {
    await this.#set(tenantId, entries, true);
  }

  async remove(tenantId: string, lookups: readonly Lookup[]): Promise<void> {
    await this.#connected();
    await this.#redis.unlink(...lookups.map((one) => this.keyOf(tenantId, one)));
  }

  async ping(): Promise<void> {
    await this.#connected();
    await this.#redis.ping();
  }

  /** An error that the server itself answered with is about the command, unless it says that the server cannot serve. */
  isOutage(error: unknown): boolean {
    if (!(error instanceof Error) || error.name !== 'ReplyError') return !isOurs(error);
    return /^(LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOAUTH|WRONGPASS|READONLY)\b/.test(error.message);
  }

  async close(): Promise<void> {
    this.#redis.disconnect();
  }

  keyOf(tenantId: string, { kind, key }: Lookup): string {
    return [this.#prefix, kind.name, kind.format, tenantId, ...kind.key(key)].join(':');
  }

  async #set(tenantId: string, entries: readonly Entry[], onlyIfAbsent: boolean): Promise<void> {
    await this.#connected();
    const pipeline = this.#redis.pipeline();
    for (const one of entries) {
      const key = this.keyOf(tenantId, one);
      const bytes = one.kind.encode(one.value);
      const ttl = this.#jittered(this.#ttl[one.kind.ttl]);
      if (onlyIfAbsent) pipeline.set(key, bytes, 'PX', ttl, 'NX');
      else pipeline.set(key, bytes, 'PX', ttl);
    }
    const answers = (await pipeline.exec()) ?? [];
    const failed = answers.find(([error]) => error);
    if (failed?.[0]) throw failed[0];
  }

  /** Milliseconds from a lifetime in seconds. */
  #jittered(seconds: number): number {
    return Math.round(seconds * 1000 * (1 + TTL_JITTER * (2 * Math.random() - 1)));
  }

  /** Opens the connection at the first use: constructing a cache does no I/O. */
  async #connected(): Promise<void> {
    if (this.#redis.status === 'wait') await this.#redis.connect();
  }
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
