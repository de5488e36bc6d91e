/** The hot tier: entries under `<prefix>:<kind>:<tenant>:<key…>`, each in its envelope and with a lifetime. */
import type { Redis } from 'ioredis';
import type { Config } from '../config.js';
import { Periodic } from '../lifecycle.js';
import type { Logger } from '../logger.js';
import { KIND_NAMES } from '../metrics.js';
import { factsOf, type RedisFacts } from '../redis-info.js';
import { evaluate, isReply } from '../redis-script.js';
import { head, open, seal, stampOf, TOMBSTONE, UNJOURNALED } from './envelope.js';
import { fewest, MemoryBudget, sizesOf } from './memory-budget.js';
import { RedisConnection, type RedisServer } from './redis-connection.js';
import { DROP, FORGET, NEXT_VERSIONS, RAISE, WRITE } from './redis-scripts.js';
import {
  ABSENT,
  ALL_TENANTS,
  type Entry,
  type Found,
  isOurs,
  type Lookup,
  type Stamp,
  type Tier,
  tenantOf,
  type Verdict,
} from './tier.js';

/** Lifetimes vary by this share, so that entries written together do not all expire together. */
const TTL_JITTER = 0.1;
/** How long nothing older may take the place of an entry that was dropped: longer than any backfill is under way. */
const TOMBSTONE_MS = 10_000;
/** Entries that a script looks at in one go: meanwhile Redis serves nobody else. */
export const SCRIPT_BATCH = 500;
/** How often a process that writes looks whether the queue beside the cache needs memory back. */
const YIELD_EVERY_MS = 500;
/** Pages that are looked through for entries to drop, in one round. */
const YIELD_PAGES = 20;
/** After this time a tenant's generation is told again with the next write. */
const TELL_AGAIN_MS = 60_000;
/** Tenants to remember as told, before starting over. */
const MOST_TOLD = 100_000;

const NO_GENERATIONS: ReadonlyMap<string, number> = new Map();
/** Where a generation's copy stands in the place of a kind. */
const GENERATION = 'generation';
/** Names the copy of the database's incarnation. */
const INCARNATION = 'incarnation';
const NAMES: ReadonlySet<string> = new Set([...KIND_NAMES, GENERATION]);

export interface RedisTierOptions {
  readonly url: string;
  readonly ttl: Config['ttl'];
  /** First part of every key. Tests take their own. */
  readonly prefix?: string | undefined;
}

export interface RedisAnswer {
  /** In the order of the look-ups. */
  readonly found: Found[];
  /** The generations that Redis knows, of the tenants that were asked about. */
  readonly generations: ReadonlyMap<string, number>;
}

type Arg = number | Buffer;
type Written = Entry & Stamp & { readonly overwrote?: boolean };

export interface Dropped {
  readonly id: string;
  /** What is older than this goes. */
  readonly version: number;
}

export class RedisTier implements Tier {
  readonly name = 'redis';
  readonly #connection: RedisConnection;
  readonly #budget: MemoryBudget;
  readonly #ttl: Config['ttl'];
  readonly #prefix: string;
  readonly #yielding: Periodic;
  /** Where the search for entries to drop goes on. */
  #cursor = '0';
  /** The run of the server that was last written to, and the tenants whose generation it was told, with what and when. */
  #met: { server: RedisServer; told: Map<string, { generation: number; at: number }> } | undefined;

  constructor(options: RedisTierOptions, log: Logger) {
    this.#budget = new MemoryBudget(() => this.facts());
    this.#ttl = options.ttl;
    this.#prefix = options.prefix ?? 'hc';
    this.#connection = new RedisConnection(options.url, log, this.keyOf(INCARNATION));
    this.#yielding = new Periodic(YIELD_EVERY_MS, (stopped) => this.#yield(stopped));
  }

  /** One round trip, whatever the kinds and tenants. */
  async read(lookups: readonly Lookup[], tenants: readonly string[] = []): Promise<RedisAnswer> {
    const keys = lookups.map((one) => this.keyOf(one.id));
    for (const tenant of tenants) keys.push(this.#generationKey(tenant));
    const { run, values } = await this.#connection.use((redis, server) => valuesOf(redis, server, keys));
    const found = lookups.map((one, i) => {
      const bytes = values[i];
      return bytes ? open(run, one, bytes) : ABSENT;
    });
    if (tenants.length === 0) return { found, generations: NO_GENERATIONS };
    const generations = new Map<string, number>();
    tenants.forEach((tenant, i) => {
      const bytes = values[lookups.length + i];
      const stamp = bytes && stampOf(run, bytes);
      if (stamp) generations.set(tenant, stamp.generation);
    });
    return { found, generations };
  }

  /**
   * Writes entries, each unless a newer one is there. Where memory is short an entry is dropped instead, so that no
   * older one stays in its place. @returns how many were dropped.
   */
  async write(entries: readonly Written[], options: { unjournaled?: boolean } = {}): Promise<number> {
    return await this.#connection.use(async (redis, server) => {
      this.#meet(server);
      const flags = options.unjournaled ? UNJOURNALED : 0;
      const fitting: string[] = [];
      const args: [lifetime: number, bytes: Buffer][] = [];
      let refused: Written[] = [];
      for (const one of entries) {
        const bytes = seal(server.run, one, flags);
        if (this.#budget.take(bytes.length)) {
          fitting.push(one.id);
          args.push([this.#lifetime(one), bytes]);
        } else {
          refused.push(one);
        }
      }
      try {
        await this.#tellGenerations(redis, server, entries);
        const alone = entries.length === 1 && !entries[0]?.overwrote && refused.length === 0;
        const [first] = args;
        const done = alone && first && (await this.#writeFirst(redis, fitting[0] as string, first));
        if (!done) await this.#run(redis, WRITE, fitting, [], args);
      } catch (error) {
        if (!isOutOfMemory(error)) throw error;
        this.#budget.exhaust();
        refused = [...entries];
      }
      if (refused.length > 0) await this.drop(refused);
      return refused.length;
    });
  }

  /** Where nothing is there, nothing has to be compared: half the way of the script. */
  async #writeFirst(redis: Redis, id: string, [lifetime, bytes]: [number, Buffer]): Promise<boolean> {
    return (await redis.set(this.keyOf(id), bytes, 'PX', lifetime, 'NX')) === 'OK';
  }

  /** Removes what is older than the versions given, and keeps it from coming back. */
  async drop(entries: readonly Dropped[]): Promise<void> {
    if (entries.length === 0) return;
    await this.#connection.use(async (redis, { run }) => {
      const ids = entries.map(({ id }) => id);
      const heads = entries.map(({ version }) => [head(run, { generation: 0, version }, TOMBSTONE, 0)]);
      await this.#run(redis, DROP, ids, [TOMBSTONE_MS], heads);
    });
  }

  /** Versions that are later than what Redis has under these entries, for writes that PostgreSQL cannot order. */
  async nextVersions(entries: readonly Lookup[]): Promise<number[]> {
    return this.#connection.use(async (redis, { run }) => {
      const ids = entries.map(({ id }) => id);
      return (await this.#run(redis, NEXT_VERSIONS, ids, [run])).flat() as number[];
    });
  }

  /** From now on nothing is believed that was written in another incarnation of the database; see `coherence.ts`. */
  adopt(incarnation: string): void {
    this.#connection.adopt(incarnation);
  }

  /** Makes the generation known to processes that cannot ask PostgreSQL. */
  async tellGeneration(tenantId: string, generation: number): Promise<void> {
    await this.#connection.use((redis, server) => this.#raise(redis, server, new Map([[tenantId, generation]])));
  }

  /**
   * A page of the names of entries, of one tenant or of all, generations included: never all keys at once, so that Redis
   * serves others in between. The cursor of the first page and of the one behind the last is `0`.
   */
  async scan(tenantId: string, cursor: string): Promise<{ cursor: string; ids: string[] }> {
    const pattern = `${this.#prefix}:*:${tenantId}*`;
    const [next, keys] = await this.#connection.use((redis) => redis.scan(cursor, 'MATCH', pattern, 'COUNT', 500));
    const ids = keys.map((key) => key.slice(this.#prefix.length + 1));
    return { cursor: next, ids: ids.filter((id) => NAMES.has(id.split(':')[0] ?? '') && isOf(tenantId, id)) };
  }

  /** Removes those of the entries that are of another run of Redis, or of a generation `before` the one that is given. */
  async forget(entries: readonly { id: string; before: number }[]): Promise<void> {
    await this.#connection.use(async (redis, { run }) => {
      const ids = entries.map(({ id }) => id);
      const generations = entries.map(({ before }) => [before]);
      await this.#run(redis, FORGET, ids, [run], generations);
    });
  }

  async facts(): Promise<RedisFacts> {
    return factsOf(await this.info());
  }

  /** The text of `INFO`. */
  info(): Promise<string> {
    return this.#connection.use((redis) => redis.info());
  }

  async ping(): Promise<void> {
    await this.#connection.use((redis) => redis.ping());
  }

  /** An error that is no answer of the server is about the connection. */
  judge(error: unknown): Verdict {
    if (!isReply(error)) return isOurs(error) ? 'wrong' : 'away';
    if (/^(LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|NOAUTH|WRONGPASS)\b/.test(error.message)) return 'away';
    return /^(OOM|READONLY|MISCONF|TRYAGAIN)\b/.test(error.message) ? 'unserved' : 'wrong';
  }

  async close(): Promise<void> {
    this.#connection.close();
    await this.#yielding.stop();
  }

  keyOf(id: string): string {
    return `${this.#prefix}:${id}`;
  }

  #generationKey(tenantId: string): string {
    return this.keyOf(`${GENERATION}:${tenantId}`);
  }

  /** Runs a script over entries, a batch at a time: `common` arguments first, then those of `each`. @returns its answers */
  async #run(
    redis: Redis,
    script: string,
    ids: readonly string[],
    common: readonly Arg[],
    each: readonly Arg[][] = [],
  ) {
    const answers: unknown[] = [];
    for (let i = 0; i < ids.length; i += SCRIPT_BATCH) {
      const keys = ids.slice(i, i + SCRIPT_BATCH).map((id) => this.keyOf(id));
      const args = [...common, ...each.slice(i, i + SCRIPT_BATCH).flat()];
      answers.push(await evaluate(redis, script, keys, args));
    }
    return answers;
  }

  /**
   * Whoever finds an entry finds its tenant's generation too, in the same run of the server and for longer. So it is
   * told to a tenant's first write, and to later ones every minute, since a server may evict what is seldom asked for.
   */
  async #tellGenerations(redis: Redis, server: RedisServer, entries: readonly (Lookup & Stamp)[]): Promise<void> {
    const { told } = this.#meet(server);
    const due = new Map<string, number>();
    for (const { tenantId, generation } of entries) {
      const last = told.get(tenantId);
      const known = last && last.generation >= generation && Date.now() - last.at < TELL_AGAIN_MS;
      if (!known && generation > (due.get(tenantId) ?? 0)) due.set(tenantId, generation);
    }
    if (due.size > 0) await this.#raise(redis, server, due);
  }

  async #raise(redis: Redis, server: RedisServer, generations: ReadonlyMap<string, number>): Promise<void> {
    const heads = [...generations.values()].map((generation) => [
      head(server.run, { generation, version: 0 }, TOMBSTONE, 0),
    ]);
    const ids = [...generations.keys()].map((tenantId) => `${GENERATION}:${tenantId}`);
    await this.#run(redis, RAISE, ids, [this.#longest()], heads);
    const { incarnation } = this.#connection;
    if (incarnation) await redis.set(this.keyOf(INCARNATION), incarnation, 'PX', this.#longest());
    const { told } = this.#meet(server);
    if (told.size > MOST_TOLD) told.clear();
    for (const [tenantId, generation] of generations) told.set(tenantId, { generation, at: Date.now() });
  }

  /** A server that was restarted knows nothing of what it was told, and says anew how much memory it has. */
  #meet(server: RedisServer) {
    if (this.#met?.server === server) return this.#met;
    this.#budget.learn(server.facts);
    this.#met = { server, told: new Map() };
    this.#yielding.start();
    return this.#met;
  }

  /** Without a server nothing is done; `Periodic` goes on. */
  async #yield(stopped: AbortSignal): Promise<void> {
    let excess = this.#budget.learn(factsOf(await this.#connection.use((redis) => redis.info('memory'))));
    for (let page = 0; excess > 0 && page < YIELD_PAGES && !stopped.aborted; page++) {
      const { cursor, ids } = await this.scan(ALL_TENANTS, this.#cursor);
      this.#cursor = cursor;
      const entries = ids.filter((id) => !id.startsWith(`${GENERATION}:`));
      const keys = entries.map((id) => this.keyOf(id));
      const sizes = await this.#connection.use((redis, { run }) => sizesOf(redis, run, keys));
      const { dropped, bytes } = fewest(entries, sizes, excess);
      await this.drop(dropped);
      excess -= bytes;
    }
  }

  /** Milliseconds: twice as long as any entry lives. */
  #longest(): number {
    return Math.ceil(2 * Math.max(...Object.values(this.#ttl)) * 1000 * (1 + TTL_JITTER));
  }

  /** Milliseconds from a lifetime in seconds. */
  #lifetime({ kind }: Lookup): number {
    return Math.round(this.#ttl[kind.ttl] * 1000 * (1 + TTL_JITTER * (2 * Math.random() - 1)));
  }
}

/** Of a key that holds something else than text, MGET says that nothing is there, where GET is an error. */
async function valuesOf(redis: Redis, { run }: RedisServer, keys: readonly string[]) {
  const values = keys.length === 1 ? [await valueOf(redis, keys[0] as string)] : await redis.mgetBuffer([...keys]);
  return { run, values };
}

function valueOf(redis: Redis, key: string): Promise<Buffer | null> {
  return redis.getBuffer(key).catch((error: unknown) => {
    if (isReply(error) && error.message.startsWith('WRONGTYPE')) return null;
    throw error;
  });
}

function isOutOfMemory(error: unknown): boolean {
  return isReply(error) && /^OOM\b|\bOOM command not allowed\b/.test(error.message);
}

function isOf(tenantId: string, id: string): boolean {
  return tenantId === ALL_TENANTS || tenantOf(id) === tenantId;
}
