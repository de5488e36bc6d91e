/**
 * The one algorithm over both tiers.
 *
 *     read   Redis; what is missing or not to be believed there, PostgreSQL; what that had goes back to Redis in the
 *            background
 *     write  PostgreSQL, then Redis; where PostgreSQL is away, Redis and a journal, from which it is replayed
 *
 * A tier that is away is passed over (the guards decide that); what that means for the answer is decided here: without
 * PostgreSQL, "not in Redis" is `unknown` and not a miss.
 */
import { TierUnavailableError } from '../errors.js';
import type { Events } from '../events.js';
import type { Kind } from '../kinds/kind.js';
import { type Answer, hit, MISS, resultOf, UNKNOWN } from './answer.js';
import { Batcher } from './batcher.js';
import type { Coherence } from './coherence.js';
import { Flights } from './flights.js';
import type { Guard } from './guard.js';
import type { Journal } from './journal.js';
import type { LookupCounts } from './lookup-counts.js';
import type { PostgresTier } from './postgres-tier.js';
import type { RedisTier } from './redis-tier.js';
import {
  ABSENT,
  type Entry,
  type Found,
  type FoundValue,
  type Lookup,
  lookup,
  type Overtaken,
  type Stored,
} from './tier.js';

export interface Written {
  /** Whether it will outlive any crash: PostgreSQL has committed it, or the journal has it. */
  readonly durable: boolean;
  /** The entries as they stand now; see `PostgresTier.write`. Those that were overtaken are not among them. */
  readonly entries: readonly Entry[];
}

export interface Tiers {
  readonly redis: { readonly tier: RedisTier; readonly guard: Guard } | null;
  readonly postgres: { readonly tier: PostgresTier; readonly guard: Guard };
}

const isOutage = (error: unknown) => error instanceof TierUnavailableError;
const BATCH = { inFlight: 4, most: 1_000, isEverybodys: isOutage };
/** One statement at PostgreSQL while another's entries are packed here and go to Redis. */
const WRITE_BATCH = {
  inFlight: 2,
  most: 256,
  shareFrom: 32,
  mayBeOnes: (error: unknown) => !isOutage(error),
  isEverybodys: isOutage,
};

export class HybridCache {
  readonly #flights = new Flights((lookups) => this.#ask(lookups));
  readonly #redisReads: Batcher<Lookup, Found>;
  readonly #redisWrites: Batcher<Stored, boolean>;
  /** One for each combination of kinds, so that a table that is locked holds up nobody who does not ask for it. */
  readonly #postgresReads = new Map<string, Batcher<Lookup, Found>>();
  readonly #postgresWrites = new Map<string, Batcher<Entry, Stored | Overtaken>>();
  #hasBegun = false;
  /** Backfills under way, so that closing can wait for them. */
  readonly #background = new Set<Promise<void>>();

  constructor(
    private readonly tiers: Tiers,
    private readonly coherence: Coherence,
    private readonly journal: Journal | null,
    private readonly counts: LookupCounts,
    private readonly events: Events,
  ) {
    this.#redisReads = new Batcher((lookups) => this.#readRedis(lookups), BATCH);
    this.#redisWrites = new Batcher((entries) => this.#writeRedis(entries), BATCH);
  }

  async read<Key, Value>(tenantId: string, kind: Kind<Key, Value>, key: Key): Promise<Answer<Value>> {
    const one = lookup(tenantId, kind, key);
    const begun = this.#begin();
    if (begun) await begun;
    const [answer] = await this.#flights.read([one]);
    return this.#given(one, answer as Answer) as Answer<Value>;
  }

  /**
   * One round trip per tier, whatever the kinds. Never throws because a tier is away. `counted: false` is for whoever shows
   * a person what is there: looking must not change the hit rate that is looked at.
   */
  async readMany(lookups: readonly Lookup[], { counted = true } = {}): Promise<Answer[]> {
    if (lookups.length === 0) return [];
    const begun = this.#begin();
    if (begun) await begun;
    const answers = await this.#flights.read(lookups);
    return lookups.map((one, i) => this.#given(one, answers[i] as Answer, counted));
  }

  /** PostgreSQL, then Redis. Never throws because a tier is away: `durable` says what happened. */
  async write(entries: readonly Entry[], options: { hotWithoutDurable: boolean }): Promise<Written> {
    if (entries.length === 0) return { durable: true, entries };
    const begun = this.#begin();
    if (begun) await begun;
    const told = await unlessAway(this.#postgresWriter(entries).add(entries));
    if (!told) {
      const durable = options.hotWithoutDurable && (await this.#writeWithoutPostgres(entries));
      return { durable, entries };
    }
    const standing = told.filter((one): one is Stored => !this.#isOvertaken(one));
    if (standing.length > 0) await this.toRedis(standing);
    return { durable: true, entries: standing };
  }

  /** Brings to Redis what PostgreSQL has committed, and says to `coherence` whether it arrived. */
  async toRedis(standing: readonly Stored[]): Promise<void> {
    for (const { tenantId, generation } of standing) this.coherence.learn(tenantId, generation);
    if (this.tiers.redis) {
      const [arrived] = await this.#redisWrites.add(standing);
      if (arrived) this.coherence.confirmed(standing);
      else this.coherence.unconfirmed(standing);
    }
    this.#flights.end(standing);
  }

  /** The tenant's generation as this process knows it, to be compared by `reaches` with what was read since. */
  generationOf(tenantId: string): number {
    return this.coherence.generationOf(tenantId);
  }

  /** Whether what was read in this generation may still be told. */
  reaches(tenantId: string, generation: number): boolean {
    return this.coherence.reaches(tenantId, generation);
  }

  /** Waits for the backfills under way. */
  async close(): Promise<void> {
    await Promise.all(this.#background);
  }

  #isOvertaken(one: Stored | Overtaken): boolean {
    if (!('overtakenBy' in one)) return false;
    this.coherence.learn(one.tenantId, one.overtakenBy);
    return true;
  }

  /** What has to happen before the first answer, and is undefined from then on. */
  #begin(): Promise<void> | undefined {
    if (!this.#hasBegun) this.journal?.begin();
    this.#hasBegun = true;
    return this.coherence.begin();
  }

  async #ask(lookups: readonly Lookup[]): Promise<Answer[]> {
    const hot = this.tiers.redis ? await this.#redisReads.add(lookups) : lookups.map(() => ABSENT);
    const answers = hot.map((found) => (found.state === 'value' ? hit(found, 'redis') : MISS));
    if (answers.includes(MISS)) await this.#askPostgres(lookups, hot, answers);
    return answers;
  }

  /** Puts what PostgreSQL says in the place of the misses, and brings it to Redis. */
  async #askPostgres(lookups: readonly Lookup[], hot: readonly Found[], answers: Answer[]): Promise<void> {
    const missing = lookups.filter((_, i) => answers[i] === MISS);
    const permanent = await unlessAway(this.#postgresReader(missing).add(missing));
    const found = new Map(missing.map((one, i) => [one.id, permanent?.[i] ?? ABSENT]));
    lookups.forEach(({ id }, i) => {
      if (answers[i] !== MISS) return;
      const one = found.get(id);
      if (one?.state === 'value') answers[i] = hit(one, 'postgres');
      else if (!permanent) answers[i] = UNKNOWN;
    });
    this.#backfill(lookups, hot, permanent && found);
  }

  /** What Redis has and may be believed; nothing where it is away. Never rejects. */
  async #readRedis(lookups: readonly Lookup[]): Promise<Found[]> {
    const redis = this.tiers.redis;
    const tenants = this.coherence.doubted(lookups);
    const answer = redis && (await bestEffort(redis.guard.run('read', () => redis.tier.read(lookups, tenants))));
    if (!answer) return lookups.map(() => ABSENT);
    for (const [tenant, generation] of answer.generations) this.coherence.hear(tenant, generation);
    return answer.found.map((found, i) => this.#believed(lookups[i] as Lookup, found));
  }

  #believed(one: Lookup, found: Found): Found {
    if (found.state === 'value') return this.coherence.believes(one, found) ? found : ABSENT;
    this.#report('redis', one, found);
    return found;
  }

  #postgresReader(lookups: readonly Lookup[]): Batcher<Lookup, Found> {
    return batcherFor(this.#postgresReads, lookups, (batch) => this.#readPostgres(batch), BATCH);
  }

  async #readPostgres(lookups: readonly Lookup[]): Promise<Found[]> {
    const { guard, tier } = this.tiers.postgres;
    const read = () => guard.run('read', () => tier.read(lookups, this.coherence.known));
    const relied = this.coherence.isFresh;
    let found = await read();
    // Where the server was frozen meanwhile, what was relied upon may be over by now.
    if (relied && !this.coherence.isFresh) found = await read();
    found.forEach((one, i) => {
      this.#report('postgres', lookups[i] as Lookup, one);
    });
    return found;
  }

  #postgresWriter(entries: readonly Entry[]): Batcher<Entry, Stored | Overtaken> {
    const { guard, tier } = this.tiers.postgres;
    return batcherFor(
      this.#postgresWrites,
      entries,
      (batch) => guard.run('write', () => tier.write(batch)),
      WRITE_BATCH,
    );
  }

  /** Answers for each entry whether Redis has it now, or nothing that is older. Never rejects. */
  async #writeRedis(entries: readonly Stored[]): Promise<boolean[]> {
    const redis = this.tiers.redis;
    const refused = redis && (await bestEffort(redis.guard.run('write', () => redis.tier.write(entries))));
    if (refused) this.events.redisFull(refused);
    return entries.map(() => refused !== null);
  }

  /**
   * Into Redis, under a version later than what is there, and into the journal: first into the journal, so that what
   * Redis serves on as durable is. @returns whether the journal has it.
   */
  async #writeWithoutPostgres(entries: readonly Entry[]): Promise<boolean> {
    const redis = this.tiers.redis;
    if (!redis) return false;
    const { guard, tier } = redis;
    // What this process knew of generations may be outdated by now: who wrote under one that is over, wrote in vain.
    const tenants = this.coherence.tenantsOf(entries);
    const asking = () => Promise.all([tier.nextVersions(entries), tier.read([], tenants)]);
    const asked = await bestEffort(guard.run('read', asking));
    if (!asked) return false;
    const [versions, { generations }] = asked;
    for (const [tenant, generation] of generations) this.coherence.hear(tenant, generation);
    const stamped = entries.map((one, i) => ({
      ...one,
      generation: this.coherence.generationOf(one.tenantId),
      version: versions[i] as number,
      overwrote: true,
    }));
    const durable = (await this.journal?.keep(stamped)) ?? false;
    const arrived = await bestEffort(guard.run('write', () => tier.write(stamped, { unjournaled: !durable })));
    // Until PostgreSQL has it, this process at least serves nothing older.
    if (arrived === null && durable) this.coherence.unconfirmed(stamped);
    this.#flights.end(entries);
    return durable;
  }

  /** In the background: the caller has its answer already, and a failure costs the next reader a look at PostgreSQL. */
  #backfill(lookups: readonly Lookup[], hot: readonly Found[], permanent: ReadonlyMap<string, Found> | null): void {
    const redis = this.tiers.redis;
    if (!redis?.guard.isUp || !permanent) return;
    const fill = lookups.flatMap((one) => {
      const found = permanent.get(one.id);
      return found?.state === 'value' ? [asStored(one, found)] : [];
    });
    // What is damaged and newer than what PostgreSQL has, or not there at all, would stay until it expires.
    const drop = lookups.flatMap((one, i) => {
      const seen = hot[i];
      if (seen?.state !== 'corrupt') return [];
      const known = permanent.get(one.id);
      const refilled = known?.state === 'value' && known.version >= seen.version;
      return refilled ? [] : [{ id: one.id, version: seen.version + 1 }];
    });
    if (fill.length > 0) this.#inBackground(this.#fill(fill));
    if (drop.length > 0) this.#inBackground(bestEffort(redis.guard.run('write', () => redis.tier.drop(drop))));
  }

  async #fill(entries: readonly Stored[]): Promise<void> {
    const arrived = await this.#redisWrites.add(entries);
    entries.forEach(({ kind }, i) => {
      if (arrived[i]) this.events.backfilled(kind.name);
    });
  }

  #inBackground(work: Promise<unknown>): void {
    const running = work.then(() => undefined).finally(() => this.#background.delete(running));
    this.#background.add(running);
  }

  #report(tier: 'redis' | 'postgres', { kind, id }: Lookup, found: Found): void {
    if (found.state === 'corrupt') this.events.corruptEntry(tier, kind.name, id, found.error);
  }

  /** The answer as it is given: the tenant may have been invalidated since the tiers were asked. */
  #given({ tenantId, kind }: Lookup, answer: Answer, counted = true): Answer {
    const alive = answer.state !== 'hit' || this.coherence.reaches(tenantId, answer.generation);
    // What PostgreSQL has and we do not know the generation of is no miss.
    const otherwise = answer.state === 'hit' && answer.tier === 'postgres' && !this.coherence.isFresh ? UNKNOWN : MISS;
    const given = alive ? answer : otherwise;
    if (!counted) return given;
    const result = resultOf(given);
    this.events.lookup(kind.name, result);
    this.counts.count(kind.name, result);
    return given;
  }
}

function batcherFor<Item extends Lookup, Result>(
  batchers: Map<string, Batcher<Item, Result>>,
  items: readonly Item[],
  run: (items: readonly Item[]) => Promise<Result[]>,
  options: typeof WRITE_BATCH | typeof BATCH,
): Batcher<Item, Result> {
  const [first] = items as [Item];
  const kinds = items.length === 1 ? first.kind.name : [...new Set(items.map(({ kind }) => kind.name))].sort().join();
  let batcher = batchers.get(kinds);
  if (!batcher) {
    batcher = new Batcher(run, options);
    batchers.set(kinds, batcher);
  }
  return batcher;
}

function asStored(one: Lookup, { value, bytes, generation, version }: FoundValue): Stored {
  return { ...one, value, bytes: bytes ?? one.kind.encode(value), generation, version, overwrote: false };
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
