/**
 * How the look-ups of all processes were answered lately. Each process knows its own alone; so each adds what is new to
 * counts in the cache's Redis, one hash a minute, which whoever shows them sums up. A process that ends takes nothing of
 * them along, and a Redis that is away gets it all when it is back.
 */
import { Redis } from 'ioredis';
import { Periodic } from '../lifecycle.js';
import type { KindName, LookupResult } from '../metrics.js';
import { LONGEST_SILENCE_MS } from './redis-connection.js';

export type LookupTable = Readonly<Record<KindName, Readonly<Record<LookupResult, number>>>>;

/** How far back they reach. */
export const SHARED_MINUTES = 15;
const MINUTE_MS = 60_000;
const EVERY_MS = 2_000;
const DEADLINE_MS = 1_000;

export class SharedLookups {
  readonly #redis: Redis;
  #opening: Promise<void> | undefined;
  readonly #told = new Map<string, number>();
  readonly #telling = new Periodic(EVERY_MS, () => this.#tell());

  constructor(
    url: string,
    private readonly keyOf: (id: string) => string,
    private readonly own: LookupTable,
  ) {
    this.#redis = new Redis(url, {
      lazyConnect: true,
      enableOfflineQueue: false,
      maxRetriesPerRequest: 0,
      // What was sent and not answered may have been counted; to send it again would count it twice.
      autoResendUnfulfilledCommands: false,
      commandTimeout: DEADLINE_MS,
      connectTimeout: LONGEST_SILENCE_MS,
      socketTimeout: LONGEST_SILENCE_MS,
      retryStrategy: (times) => Math.min(100 * times, 2_000),
    });
    // Without a listener a lost connection would end the process. The guard of the tier reports the outage.
    this.#redis.on('error', () => undefined);
  }

  /** Tells the others of this process's look-ups from now on. */
  start(): void {
    this.#telling.start();
  }

  /** The look-ups of all processes within the last 15 minutes. @throws where Redis is away */
  async read(): Promise<LookupTable> {
    await this.#connected();
    const minute = minuteNow();
    const pipeline = this.#redis.pipeline();
    for (let ago = 0; ago < SHARED_MINUTES; ago++) pipeline.hgetall(this.#key(minute - ago));
    const sums = structuredClone(this.own) as Record<KindName, Record<LookupResult, number>>;
    for (const counts of Object.values(sums)) Object.assign(counts, NOTHING);
    for (const [error, minuteOf] of (await pipeline.exec()) ?? []) {
      if (error) throw error;
      for (const [field, count] of Object.entries(minuteOf as Record<string, string>)) {
        const [kind, result] = field.split(':') as [KindName, LookupResult];
        // A process of another version may know other kinds.
        if (sums[kind]?.[result] !== undefined) sums[kind][result] += Number(count);
      }
    }
    return sums;
  }

  async close(): Promise<void> {
    await this.#telling.stop();
    // What the last jobs looked up; nobody waits for a Redis that is away.
    if (this.#redis.status === 'ready') await this.#tell().catch(() => undefined);
    this.#redis.disconnect();
  }

  async #tell(): Promise<void> {
    const news: [field: string, count: number, now: number][] = [];
    for (const [kind, counts] of Object.entries(this.own)) {
      for (const [result, now] of Object.entries(counts)) {
        const field = `${kind}:${result}`;
        const count = now - (this.#told.get(field) ?? 0);
        if (count > 0) news.push([field, count, now]);
      }
    }
    if (news.length === 0) return;
    await this.#connected();
    const key = this.#key(minuteNow());
    const change = this.#redis.multi();
    for (const [field, count] of news) change.hincrby(key, field, count);
    change.pexpire(key, (SHARED_MINUTES + 1) * MINUTE_MS);
    await change.exec();
    for (const [field, , now] of news) this.#told.set(field, now);
  }

  /** Whoever comes while the first connection is being made waits for it; later ones are waited for by nobody. */
  async #connected(): Promise<void> {
    if (this.#redis.status === 'wait') this.#opening = this.#redis.connect().catch(() => undefined);
    await this.#opening;
  }

  #key(minute: number): string {
    return this.keyOf(`lookups:${minute}`);
  }
}

const NOTHING: Readonly<Record<LookupResult, number>> = { redis_hit: 0, postgres_hit: 0, miss: 0, error: 0 };

function minuteNow(): number {
  return Math.floor(Date.now() / MINUTE_MS);
}
