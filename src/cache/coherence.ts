/**
 * What this process knows of the truth in PostgreSQL, so that it can tell which of Redis' answers to believe.
 *
 *     generations  of the tenants that were ever invalidated: what was written under an older one is dead
 *     repairs      overwrites that Redis has not confirmed: what is older than they are is not believed, and is dropped
 *     incarnation  of the database: where a backup was restored, what was known before is forgotten, and what Redis has
 *                  from before is dead
 *
 * One query every 400 ms asks for what has changed. While PostgreSQL cannot be asked, Redis' copy of a generation counts
 * too. Answers are compared when they are given, not when they were asked for.
 */
import { performance } from 'node:perf_hooks';
import type { Events } from '../events.js';
import { Periodic } from '../lifecycle.js';
import type { Guard } from './guard.js';
import type { Query } from './query.js';
import { type RedisTier, SCRIPT_BATCH } from './redis-tier.js';
import { ALL_TENANTS, type FoundValue, type Lookup, type Stored } from './tier.js';

/** Two rounds fit into the second after which no process may serve what was invalidated. */
export const POLL_MS = 400;
/** Knowledge older than this is not relied upon. */
const FRESH_MS = 900;
/** An overwrite is given this long to be confirmed by its own writer: longer than Redis' deadline. */
const CONFIRM_MS = 300;
/** Overwrites to remember. Where there are more, Redis is not believed at all until they are worked off. */
const MOST_REPAIRS = 10_000;

const CHANGES = {
  name: 'coherence',
  text: `select
      (select coalesce(json_agg(json_build_array(tenant_id, generation)), '[]')
         from cache_generations where changed_xid >= $1::text::xid8) as generations,
      (select coalesce(json_agg(json_build_array(tenant_id, entry, version)), '[]') from (
         select tenant_id, entry, version from redis_repairs
         where written_at < clock_timestamp() - interval '${CONFIRM_MS} ms'
         order by written_at limit $2) as pending) as repairs,
      pg_snapshot_xmin(pg_current_snapshot())::text as horizon,
      (select row_to_json(history) from cache_history() as history) as history`,
};

const BEGIN_INCARNATION = { name: 'coherence_begin', text: 'select begin_cache_incarnation($1, $2)' };

/** A row that somebody has locked is being overwritten or removed by him: nobody here waits for that. */
const CONFIRM = {
  name: 'coherence_confirm',
  text: `delete from redis_repairs where ctid = any(array(
      select r.ctid from redis_repairs as r
        join unnest($1::text[], $2::text[], $3::bigint[]) as done(tenant_id, entry, version)
          on r.tenant_id = done.tenant_id and r.entry = done.entry and r.version <= done.version
        for update of r skip locked))`,
};

const TIDY_MS = 300_000;
const TIDY = {
  name: 'coherence_tidy',
  text: `delete from redis_repairs where ctid = any(array(
      select ctid from redis_repairs where written_at < now() - make_interval(secs => $1) for update skip locked))`,
};

type Repair = readonly [tenantId: string, entry: string, version: number];

interface Changes {
  readonly generations: readonly (readonly [tenantId: string, generation: number])[];
  readonly repairs: readonly Repair[];
  /** Transactions from here on may have been invisible to the query: the next one asks from here. */
  readonly horizon: string;
  readonly history: History;
}

/** See `cache_history` in `drizzle/`. */
interface History {
  readonly incarnation: string;
  readonly begun_under: string | null;
  readonly started_at: string | null;
  readonly started_from: string | null;
  readonly timeline: string | null;
  readonly log_position: string | null;
}

export class Coherence {
  readonly #generations = new Map<string, number>();
  /** What Redis says of generations: it counts until PostgreSQL tells the next time. */
  readonly #hearsay = new Map<string, number>();
  /** The versions below which an entry is not believed. */
  #repairs = new Map<string, number>();
  /** Overwrites of our own that Redis did not confirm, with when that was; until a query has seen them. */
  readonly #unconfirmed = new Map<string, { version: number; at: number }>();
  #confirmed: Repair[] = [];
  #horizon = '0';
  #history: History | undefined;
  #asked = Number.NEGATIVE_INFINITY;
  #overwhelmed = false;
  #polling: Promise<void> | undefined;
  #begun: Promise<void> | undefined;
  #closed = false;
  #heard: () => void = () => undefined;
  #periodic: Periodic | undefined;
  #tidied = performance.now();

  constructor(
    private readonly postgres: { query: Query; guard: Guard },
    private readonly redis: { tier: RedisTier; guard: Guard } | null,
    private readonly events: Events,
    /** No entry lives longer in Redis, in seconds. */
    private readonly longestSeconds: number,
  ) {
    for (const guard of [postgres.guard, redis?.guard]) {
      guard?.onChange((up) => {
        if (up && this.#begun) this.poll();
      });
    }
  }

  /** Whether PostgreSQL has told lately what is true. */
  get isFresh(): boolean {
    return performance.now() - this.#asked < FRESH_MS;
  }

  /** Resolves when PostgreSQL has been asked for the first time; `undefined` from then on. */
  begin(): Promise<void> | undefined {
    if (this.#periodic) return undefined;
    this.#begun ??= this.#firstAnswer().then(() => {
      this.#periodic ??= new Periodic(POLL_MS, () => this.poll()).start();
    });
    return this.#begun;
  }

  /** The tenant's generation, 0 where nobody could tell yet. */
  generationOf(tenantId: string): number {
    let greatest = 0;
    for (const generations of [this.#generations, this.#hearsay]) {
      greatest = Math.max(greatest, generations.get(tenantId) ?? 0, generations.get(ALL_TENANTS) ?? 0);
    }
    return greatest;
  }

  /** The tenant's generation, where it may be relied upon. */
  readonly known = (tenantId: string): number | null => (this.isFresh ? this.generationOf(tenantId) || null : null);

  /** PostgreSQL tells of a generation; they only rise. */
  learn(tenantId: string, generation: number): void {
    raise(this.#generations, tenantId, generation);
  }

  /** Redis tells of one. PostgreSQL may have been set back since, and knows better once it can be asked. */
  hear(tenantId: string, generation: number): void {
    raise(this.#hearsay, tenantId, generation);
  }

  /** The tenants whose generation Redis should be asked for together with their entries. */
  doubted(lookups: readonly Lookup[]): string[] {
    return this.isFresh ? [] : this.tenantsOf(lookups);
  }

  /** Whose generations decide about these entries. */
  tenantsOf(lookups: readonly Lookup[]): string[] {
    return [...new Set([ALL_TENANTS, ...lookups.map(({ tenantId }) => tenantId)])];
  }

  /** Whether what Redis has may be served. */
  believes({ tenantId, id }: Lookup, found: FoundValue): boolean {
    if (found.unjournaled && this.isFresh && this.postgres.guard.isUp) return false;
    if (!this.reaches(tenantId, found.generation)) return false;
    if (this.#overwhelmed) return false;
    if (this.#repairs.size === 0) return true;
    return found.version >= (this.#repairs.get(id) ?? 0);
  }

  /** Whether an entry of this generation is alive. Who knows nothing believes only who knew nothing either. */
  reaches(tenantId: string, generation: number): boolean {
    const current = this.generationOf(tenantId);
    return current === 0 ? generation === 0 : generation >= current;
  }

  /** Redis has these entries, or nothing that is older. */
  confirmed(entries: readonly Stored[]): void {
    for (const { tenantId, id, version, overwrote } of entries) {
      if (overwrote) this.#confirmed.push([tenantId, id, version]);
    }
  }

  /** Redis did not say whether it has these entries. */
  unconfirmed(entries: readonly Stored[]): void {
    for (const { id, version, overwrote } of entries) {
      if (!overwrote) continue;
      this.#unconfirmed.set(id, { version, at: performance.now() });
      this.#repairs.set(id, version);
    }
  }

  /** Asks PostgreSQL for what has changed, and works off what Redis has not confirmed. Never rejects. */
  poll(): Promise<void> {
    this.#polling ??= this.#poll().finally(() => {
      this.#polling = undefined;
    });
    return this.#polling;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#begun;
    await this.#periodic?.stop();
    await this.#polling;
    await this.#forget(this.#confirmed.splice(0)).catch(() => undefined);
  }

  async #poll(): Promise<void> {
    if (!this.postgres.guard.isUp) return;
    try {
      let more = true;
      while (more && !this.#closed) {
        await this.#forget(this.#confirmed.splice(0));
        const repairs = await this.#ask();
        this.#heard();
        more = (await this.#repair(repairs)) && repairs.length > MOST_REPAIRS;
      }
      await this.#tidy();
    } catch {
      // Without PostgreSQL knowledge grows old, which `isFresh` tells; the guard has reported it.
    }
  }

  /** What there is to repair, which may take long, goes on behind it. */
  #firstAnswer(): Promise<void> {
    const heard = new Promise<void>((resolve) => {
      this.#heard = resolve;
    });
    return Promise.race([heard, this.poll()]);
  }

  async #ask(): Promise<readonly Repair[]> {
    const started = performance.now();
    // Without Redis there is nothing to repair.
    const most = this.redis ? MOST_REPAIRS + 1 : 0;
    const { rows } = await this.postgres.query<Changes>({ ...CHANGES, values: [this.#horizon, most] });
    const [changes] = rows;
    if (!changes) return [];
    const ended = this.#history && endedBy(this.#history, changes.history);
    if (ended !== undefined) {
      await this.#beginAfter(ended);
      return this.#ask();
    }
    // What a standby hides is told again by the primary that it may become.
    if (changes.history.started_at !== null) this.#history = changes.history;
    this.#history ??= changes.history;
    this.redis?.tier.adopt(changes.history.incarnation);
    for (const [tenantId, generation] of changes.generations) this.learn(tenantId, generation);
    // After a crash the numbers of transactions may be given out again.
    this.#horizon = BigInt(changes.horizon) < BigInt(this.#horizon) ? '0' : changes.horizon;
    this.#overwhelmed = changes.repairs.length > MOST_REPAIRS;
    this.#replaceRepairs(changes.repairs, started);
    this.#hearsay.clear();
    this.#asked = started;
    return changes.repairs;
  }

  /**
   * A backup was restored: what this process knew is forgotten, generations that were not given out yet among it, and what
   * Redis has from before is dead, since PostgreSQL may never have had it.
   */
  async #beginAfter(ended: string): Promise<void> {
    let greatest = 0;
    for (const generation of this.#generations.values()) greatest = Math.max(greatest, generation);
    await this.postgres.query({ ...BEGIN_INCARNATION, values: [ended, greatest] }, 'write');
    this.#history = undefined;
    this.#horizon = '0';
    this.#asked = Number.NEGATIVE_INFINITY;
    this.#generations.clear();
    this.events.setBack();
  }

  #replaceRepairs(pending: readonly Repair[], started: number): void {
    for (const [id, { at }] of this.#unconfirmed) {
      // By now the query would have found it, unless somebody has worked it off.
      if (started - at > CONFIRM_MS) this.#unconfirmed.delete(id);
    }
    const repairs = new Map(pending.map(([, entry, version]) => [entry, version]));
    for (const [id, { version }] of this.#unconfirmed) repairs.set(id, Math.max(version, repairs.get(id) ?? 0));
    this.#repairs = repairs;
  }

  /** @returns whether Redis has dropped what is older. */
  async #repair(repairs: readonly Repair[]): Promise<boolean> {
    if (!this.redis?.guard.isUp || repairs.length === 0) return false;
    const { tier, guard } = this.redis;
    const outdated = repairs.map(([, id, version]) => ({ id, version }));
    try {
      for (let i = 0; i < outdated.length; i += SCRIPT_BATCH) {
        await guard.run('write', () => tier.drop(outdated.slice(i, i + SCRIPT_BATCH)));
      }
    } catch {
      return false;
    }
    this.events.repaired(repairs.length);
    await this.#forget(repairs);
    return true;
  }

  async #forget(repairs: readonly Repair[]): Promise<void> {
    if (repairs.length === 0) return;
    const values = [0, 1, 2].map((column) => repairs.map((repair) => repair[column]));
    await this.postgres.query({ ...CONFIRM, values }, 'write');
  }

  /** Where no process has a Redis, nobody confirms. What such a row warns of has expired by now. */
  async #tidy(): Promise<void> {
    if (performance.now() - this.#tidied < TIDY_MS) return;
    this.#tidied = performance.now();
    await this.postgres.query({ ...TIDY, values: [this.longestSeconds] }, 'write');
  }
}

function raise(generations: Map<string, number>, tenantId: string, generation: number): void {
  if (generation > (generations.get(tenantId) ?? 0)) generations.set(tenantId, generation);
}

/**
 * The incarnation that has ended by what PostgreSQL tells: the known one, where somebody has begun another since; the one
 * that is told, where it came with a backup, since Redis may know it from long ago.
 */
function endedBy(known: History, told: History): string | undefined {
  const isSame = told.incarnation === known.incarnation;
  if (isSetBack(known, told) && (isSame || told.begun_under !== told.started_at)) return told.incarnation;
  return isSame ? undefined : known.incarnation;
}

/** Whether it is not as far in its log any more, or was started where it was not. */
function isSetBack(known: History, told: History): boolean {
  if (told.started_at === null || known.started_at === null) return false;
  const restarted = told.started_at !== known.started_at;
  // Who hides his log may have been started on anything.
  if (known.log_position === null || told.log_position === null || told.started_from === null) return restarted;
  const place = restarted ? told.started_from : told.log_position;
  return told.timeline !== known.timeline || BigInt(place) < BigInt(known.log_position);
}
