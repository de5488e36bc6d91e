/**
 * Writes that were made while PostgreSQL was away, kept in the queue's Redis until it is back: that server evicts
 * nothing and writes to disk, where the cache's may do neither. A stream, in the order of the writing.
 */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { TierUnavailableError } from '../errors.js';
import type { Events } from '../events.js';
import { KINDS } from '../kinds/index.js';
import { Periodic, within } from '../lifecycle.js';
import type { Logger } from '../logger.js';
import { factsOf, type RedisFacts } from '../redis-info.js';
import type { Guard } from './guard.js';
import type { PostgresTier } from './postgres-tier.js';
import { RedisConnection } from './redis-connection.js';
import { type Entry, idOf, type Stamp, type Stored } from './tier.js';

const BATCH = 100;
const RETRY_MS = 2_000;
/** As long as the cache's Redis: the caller waits. */
const DEADLINE_MS = 250;
const WRITTEN_POLL_MS = 10;

/** For a replay that is under way. */
const CLOSE_MS = 1_000;

const MOST_REFUSED = 10_000;
/** Of the memory of a Redis that refuses writes when it is full: the rest is the queue's, which lives there. */
const SHARE = 0.9;

type Stamped = Entry & Stamp;

interface Record {
  readonly id: string;
  readonly fields: readonly Buffer[];
  readonly entry: Stamped | undefined;
}

interface Options {
  readonly url: string;
  /** First part of the stream's name. */
  readonly prefix: string;
}

export class Journal {
  readonly #connection: RedisConnection;
  readonly #key: string;
  readonly #periodic: Periodic;
  #replaying: Promise<void> | undefined;
  #warned = false;
  #isFull = false;
  #looking: Promise<unknown> | undefined;
  #nextLook: Promise<RedisFacts> | undefined;

  constructor(
    options: Options,
    private readonly postgres: { tier: PostgresTier; guard: Guard },
    /** Brings what PostgreSQL has now to Redis. */
    private readonly replayed: (entries: readonly Stored[]) => Promise<void>,
    private readonly events: Events,
    log: Logger,
  ) {
    this.#connection = new RedisConnection(options.url, log);
    this.#key = `${options.prefix}:replay`;
    this.#periodic = new Periodic(RETRY_MS, () => this.replay());
    postgres.guard.onChange((up) => {
      if (up) this.replay();
    });
  }

  /** Replays what an earlier process may have left, and from then on whatever is there. */
  begin(): void {
    this.#periodic.start();
    // Where it is away nothing can be said yet; the first write that is not kept says it then.
    this.facts().then(
      (facts) => this.#keeps(facts) && this.#hasRoom(facts),
      () => undefined,
    );
  }

  /** @returns whether the entries are kept, so that PostgreSQL will get them. */
  async keep(entries: readonly Stamped[]): Promise<boolean> {
    const kept = this.#connection.use(async (redis, { facts }) => {
      if (!this.#keeps(facts)) return false;
      if (this.#isFull && !this.#hasRoom(await this.#look(redis))) return false;
      const transaction = redis.multi();
      for (const one of entries) transaction.xadd(this.#key, '*', ...fieldsOf(one));
      const answers = (await transaction.exec()) ?? [];
      return answers.length > 0 && answers.every(([error]) => !error) && this.#written(redis);
    });
    return within(
      DEADLINE_MS,
      kept.catch(() => false),
      false,
    );
  }

  /**
   * Taken is not written: while an fsync is slow, Redis holds back what it appends, and its end would lose it. Nor is it
   * kept where the server was told to evict meanwhile.
   */
  async #written(redis: Redis): Promise<boolean> {
    for (const end = performance.now() + DEADLINE_MS; performance.now() < end; await pause(WRITTEN_POLL_MS)) {
      const facts = await this.#look(redis);
      if (!this.#keeps(facts)) return false;
      this.#hasRoom(facts);
      if (facts.heldBackBytes === 0) return true;
    }
    return false;
  }

  /** One look for all whose records were taken before it began. */
  #look(redis: Redis): Promise<RedisFacts> {
    this.#nextLook ??= (this.#looking ?? Promise.resolve()).then(() => {
      this.#nextLook = undefined;
      const facts = redis.info().then(factsOf);
      this.#looking = facts.catch(() => undefined);
      return facts;
    });
    return this.#nextLook;
  }

  #keeps({ policy, appendOnly }: RedisFacts): boolean {
    const keeps = policy === 'noeviction' && appendOnly;
    if (!keeps && !this.#warned) this.events.notJournaled(policy, appendOnly);
    this.#warned = !keeps;
    return keeps;
  }

  #hasRoom({ usedMemory, memoryLimit }: RedisFacts): boolean {
    const isFull = usedMemory > SHARE * memoryLimit;
    if (isFull && !this.#isFull) this.events.journalFull(usedMemory, memoryLimit);
    this.#isFull = isFull;
    return !isFull;
  }

  /** How many writes wait for PostgreSQL. */
  async pending(): Promise<number> {
    return this.#connection.use((redis) => redis.xlen(this.#key));
  }

  /** What the queue's Redis says of itself now. */
  async facts(): Promise<RedisFacts> {
    return this.#connection.use(async (redis) => factsOf(await redis.info()));
  }

  /** Never rejects. Several processes may do it at once: stamps make the second of two a no-op. */
  replay(): Promise<void> {
    this.#replaying ??= this.#replay()
      .catch(() => undefined)
      .finally(() => {
        this.#replaying = undefined;
      });
    return this.#replaying;
  }

  async close(): Promise<void> {
    const done = this.#periodic.stop().then(() => this.#replaying);
    // A server that is frozen holds nobody up; what is half replayed is replayed again.
    await within(CLOSE_MS, done, undefined);
    this.#connection.close();
    await done;
  }

  async #replay(): Promise<void> {
    while (this.postgres.guard.isUp) {
      const found = await this.#connection.use((redis) => redis.xrangeBuffer(this.#key, '-', '+', 'COUNT', BATCH));
      if (found.length === 0) return;
      const records = found.map(([id, fields]) => ({ id: id.toString(), fields, entry: entryOf(fields) }));
      await this.#restore(records);
      await this.#connection.use((redis) => redis.xdel(this.#key, ...records.map(({ id }) => id)));
    }
  }

  async #restore(records: readonly Record[]): Promise<void> {
    const { tier, guard } = this.postgres;
    try {
      const entries = records.map(({ entry }) => {
        if (entry) return entry;
        throw new RangeError('a record that this version of the service cannot read');
      });
      const stored = await guard.run('write', () => tier.restore(entries));
      this.events.replayed(records.length, stored.length);
      await this.replayed(stored);
    } catch (error) {
      if (error instanceof TierUnavailableError) throw error;
      const [only, ...others] = records;
      // One that PostgreSQL will never take must not hold up the rest.
      if (only && others.length === 0) await this.#refuse(only, error);
      else for (const one of records) await this.#restore([one]);
    }
  }

  /** Kept aside, for a person to look at. */
  async #refuse({ id, fields }: Record, error: unknown): Promise<void> {
    const refused = `${this.#key}:refused`;
    await this.#connection.use((redis) => redis.xadd(refused, 'MAXLEN', '~', MOST_REFUSED, '*', ...fields));
    this.events.replayRefused(id, refused, error);
  }
}

function fieldsOf({ kind, tenantId, parts, generation, version, bytes }: Stamped): (string | Buffer)[] {
  const head = { kind: kind.name, format: kind.format, tenantId, parts, generation, version };
  return ['entry', JSON.stringify(head), 'bytes', bytes];
}

/** `undefined` for a record of another version of this service that we cannot read. */
function entryOf(fields: readonly Buffer[]): Stamped | undefined {
  try {
    const [, text, , bytes] = fields as [Buffer, Buffer, Buffer, Buffer];
    const { kind: name, format, tenantId, parts, generation, version } = JSON.parse(text.toString());
    const kind = KINDS.find((one) => one.name === name && one.format === format);
    if (!kind) return undefined;
    const id = idOf(name, tenantId, parts);
    return { tenantId, kind, parts, id, generation, version, bytes, value: kind.decode(bytes) };
  } catch {
    return undefined;
  }
}
