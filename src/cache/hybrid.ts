/**
 * The one algorithm over both tiers.
 *
 *     read   Redis; what is missing there, PostgreSQL; what PostgreSQL had goes back to Redis in the background
 *     write  PostgreSQL, then Redis
 *
 * A tier that is away is passed over (the guards decide that); what that means for the answer is decided here: without
 * PostgreSQL, "not in Redis" is `unknown` and not a miss.
 */
import { TierUnavailableError } from '../errors.js';
import type { Events } from '../events.js';
import type { Kind } from '../kinds/kind.js';
import type { Guard } from './guard.js';
import type { PostgresTier } from './postgres-tier.js';
import type { RedisTier } from './redis-tier.js';
import { ABSENT, type Entry, entry, type Found, type Lookup, lookup } from './tier.js';

export type Answer<Value = unknown> =
  | { readonly state: 'hit'; readonly value: Value; readonly tier: 'redis' | 'postgres' }
  | { readonly state: 'miss' }
  /** PostgreSQL could not be asked, so nobody can say. */
  | { readonly state: 'unknown' };

export interface Written {
  /** Whether PostgreSQL has committed it. */
  readonly durable: boolean;
  /** The entries as they stand now; see `Tier.write`. */
  readonly entries: readonly Entry[];
}

export interface Tiers {
  readonly redis: { readonly tier: RedisTier; readonly guard: Guard } | null;
  readonly postgres: { readonly tier: PostgresTier; readonly guard: Guard };
}

export class HybridCache {
  /** Backfills under way, so that closing can wait for them. */
  readonly #background = new Set<Promise<void>>();

  constructor(
    private readonly tiers: Tiers,
    private readonly events: Events,
  ) {}

  async read<Key, Value>(tenantId: string, kind: Kind<Key, Value>, key: Key): Promise<Answer<Value>> {
    const [answer] = await this.readMany(tenantId, [lookup(kind, key)]);
    return answer as Answer<Value>;
  }

  /** One round trip per tier, whatever the kinds. Never throws because a tier is away. */
  async readMany(tenantId: string, lookups: readonly Lookup[]): Promise<Answer[]> {
    if (lookups.length === 0) return [];
    const hot = await this.#readRedis(tenantId, lookups);
    const missing = lookups.flatMap((one, index) => (hot[index]?.state === 'value' ? [] : [{ one, index }]));
    const permanent =
      missing.length > 0
        ? await this.#readPostgres(
            tenantId,
            missing.map(({ one }) => one),
          )
        : [];
    const answers = hot.map(
      (found): Answer => (found.state === 'value' ? hit(found.value, 'redis') : { state: 'miss' }),
    );
    missing.forEach(({ index }, i) => {
      answers[index] = answerOf(permanent === null ? null : (permanent[i] ?? ABSENT));
    });
    this.#count(lookups, answers);
    this.#backfill(tenantId, lookups, hot, answers);
    return answers;
  }

  /** PostgreSQL, then Redis. Never throws because a tier is away: `durable` says what happened. */
  async write(tenantId: string, entries: readonly Entry[], options: { hotWithoutDurable: boolean }): Promise<Written> {
    const { guard, tier } = this.tiers.postgres;
    const standing = await unlessAway(guard.run('write', () => tier.write(tenantId, entries)));
    if (standing || options.hotWithoutDurable) await this.#writeRedis(tenantId, standing ?? entries);
    return { durable: standing !== null, entries: standing ?? entries };
  }

  /** Waits for the backfills under way. */
  async close(): Promise<void> {
    await Promise.all(this.#background);
  }

  async #readRedis(tenantId: string, lookups: readonly Lookup[]): Promise<Found[]> {
    const redis = this.tiers.redis;
    const found = redis && (await bestEffort(redis.guard.run('read', () => redis.tier.read(tenantId, lookups))));
    return this.#reported('redis', tenantId, lookups, found ?? lookups.map(() => ABSENT));
  }

  /** `null` where PostgreSQL could not be asked. */
  async #readPostgres(tenantId: string, lookups: readonly Lookup[]): Promise<Found[] | null> {
    const { guard, tier } = this.tiers.postgres;
    const found = await unlessAway(guard.run('read', () => tier.read(tenantId, lookups)));
    return found && this.#reported('postgres', tenantId, lookups, found);
  }

  #reported(tier: 'redis' | 'postgres', tenantId: string, lookups: readonly Lookup[], found: Found[]): Found[] {
    found.forEach((one, i) => {
      const asked = lookups[i];
      if (one.state !== 'corrupt' || !asked) return;
      this.events.corruptEntry(tier, asked.kind.name, [tenantId, ...asked.kind.key(asked.key)].join(':'), one.error);
    });
    return found;
  }

  async #writeRedis(tenantId: string, entries: readonly Entry[]): Promise<void> {
    const redis = this.tiers.redis;
    if (redis) await bestEffort(redis.guard.run('write', () => redis.tier.write(tenantId, entries)));
  }

  /** In the background: the caller has its answer already, and a failure costs the next reader a look at PostgreSQL. */
  #backfill(tenantId: string, lookups: readonly Lookup[], hot: readonly Found[], answers: readonly Answer[]): void {
    const redis = this.tiers.redis;
    if (!redis?.guard.isUp) return;
    const corrupt = lookups.flatMap((one, i) => {
      const seen = hot[i];
      return seen?.state === 'corrupt' && seen.bytes ? [{ ...one, bytes: seen.bytes }] : [];
    });
    const found = lookups.flatMap(({ kind, key }, i) => {
      const answer = answers[i];
      return answer?.state === 'hit' && answer.tier === 'postgres' ? [entry(kind, key, answer.value)] : [];
    });
    if (found.length === 0 && corrupt.length === 0) return;
    const work = redis.guard.run('write', async () => {
      if (corrupt.length > 0) await redis.tier.remove(tenantId, corrupt);
      if (found.length > 0) await redis.tier.backfill(tenantId, found);
      for (const { kind } of found) this.events.backfilled(kind.name);
    });
    const running = bestEffort(work)
      .then(() => undefined)
      .finally(() => this.#background.delete(running));
    this.#background.add(running);
  }

  #count(lookups: readonly Lookup[], answers: readonly Answer[]): void {
    answers.forEach((answer, i) => {
      const kind = lookups[i]?.kind.name;
      if (!kind) return;
      if (answer.state === 'hit') this.events.lookup(kind, `${answer.tier}_hit`);
      else this.events.lookup(kind, answer.state === 'miss' ? 'miss' : 'error');
    });
  }
}

function hit(value: unknown, tier: 'redis' | 'postgres'): Answer {
  return { state: 'hit', value, tier };
}

function answerOf(found: Found | null): Answer {
  if (found === null) return { state: 'unknown' };
  return found.state === 'value' ? hit(found.value, 'postgres') : { state: 'miss' };
}

/** The value, or `null` for a miss. @throws {TierUnavailableError} where nobody can say. */
export function known<Value>(answer: Answer<Value>): Value | null {
  if (answer.state === 'unknown') throw new TierUnavailableError('postgres', 'the entry could not be looked up');
  return answer.state === 'hit' ? answer.value : null;
}

/** `null` where PostgreSQL is away; it is the source of truth, so an error of the statement itself is thrown. */
export async function unlessAway<T>(work: Promise<T>): Promise<T | null> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof TierUnavailableError) return null;
    throw error;
  }
}

/** `null` where Redis is away or refused the command (out of memory, say): its guard has reported it either way. */
function bestEffort<T>(work: Promise<T>): Promise<T | null> {
  return work.catch(() => null);
}
