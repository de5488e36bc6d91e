/**
 * Forgetting on purpose. PostgreSQL decides and counts; every process learns of it by its next question (see
 * `coherence.ts`), and what is out of reach by then is deleted afterwards, a batch at a time.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type { Pool } from 'pg';
import { TierUnavailableError } from '../errors.js';
import type { Events } from '../events.js';
import { KINDS } from '../kinds/index.js';
import { type Coherence, POLL_MS } from './coherence.js';
import type { Tiers } from './hybrid.js';
import type { Query } from './query.js';
import { ALL_TENANTS, tenantOf } from './tier.js';

/** Counting a tenant's rows takes longer than a look-up. */
const DEADLINE_MS = 60_000;
/** Between two statements that others have to wait for: a process that stands still then holds them up no longer. */
const IDLE_MS = 2_000;
const BATCH = 1_000;
/** Dead rows to look up at once: only their places come here. */
const LOOK = 20_000;
/** Between two batches, so that others come first. */
const BREATH_MS = 5;
const RETRY_MS = 5_000;

/** Tenants that are deleted from Redis together: each look through its keys passes all there are. */
const MOST_DEAD = 1_000;

const BEGIN = `begin; set local statement_timeout = ${DEADLINE_MS - 5_000};
  set local idle_in_transaction_session_timeout = ${IDLE_MS}`;
const PURGE_NEXT = {
  name: 'purge_next',
  text: `select tenant_id as "tenantId", generation from cache_generations where purged < generation
    order by tenant_id limit ${MOST_DEAD}`,
};
const PURGED = {
  name: 'purged',
  text: `update cache_generations as known set purged = done.generation
    from unnest($1::text[], $2::bigint[]) as done(tenant_id, generation)
    where known.tenant_id = done.tenant_id and known.purged < done.generation`,
};

/** Tenants with the generation before which everything of theirs is dead. */
type Dead = ReadonlyMap<string, number>;

export class Invalidation {
  #purging: Promise<void> | undefined;
  #again = false;
  #deciding: Promise<unknown> = Promise.resolve();
  readonly #stopped = new AbortController();

  constructor(
    private readonly tiers: Tiers,
    private readonly pool: Pool,
    private readonly query: Query,
    private readonly coherence: Coherence,
    private readonly events: Events,
  ) {}

  /**
   * Makes everything of the tenant unreachable, in a time that does not depend on Redis. When it resolves, this process
   * serves none of it any more, and every other one stops within a second.
   *
   * @returns how many rows of PostgreSQL it made unreachable
   * @throws {TierUnavailableError} when PostgreSQL is away; nothing is done then
   */
  async invalidate(tenantId: string): Promise<number> {
    const { generation, invalidated } = await this.#decide<{ generation: string; invalidated: string }>(
      'select new_generation as generation, invalidated from invalidate_tenant_cache($1)',
      [tenantId],
    );
    await this.#spread(tenantId, Number(generation));
    this.purge();
    return Number(invalidated);
  }

  /**
   * Deletes every cached fact of every tenant from both tiers: neither queues nor objects.
   *
   * @returns whether both are empty; where Redis is away, what it still has is out of reach, and `false`
   * @throws {TierUnavailableError} when PostgreSQL is away; nothing is done then
   */
  async clear(): Promise<boolean> {
    const { generation } = await this.#decide<{ generation: string }>(
      'select new_generation as generation from clear_all_cache()',
      [],
    );
    await this.#spread(ALL_TENANTS, Number(generation));
    return this.#clearRedis(new Map([[ALL_TENANTS, Number(generation)]]));
  }

  /** Deletes what is out of reach, in the background; also what a process that died has left. */
  purge(): void {
    this.#again = true;
    this.#purging ??= this.#purge()
      .catch((error: unknown) => this.events.troubled('deleting what was invalidated', error))
      .finally(() => {
        this.#purging = undefined;
      });
  }

  async close(): Promise<void> {
    this.#stopped.abort();
    await this.#purging;
  }

  /**
   * In a transaction of its own, with time enough; unless PostgreSQL turns out to be away. One after the other: there they
   * would wait for one another too, each with a connection that reads have to do without.
   */
  async #decide<Row>(text: string, values: unknown[]): Promise<Row> {
    const { guard } = this.tiers.postgres;
    const decide = async () => {
      const client = await this.pool.connect();
      let failed = true;
      // A connection in the middle of a transaction is nobody else's: ended, PostgreSQL takes all back when it wakes up.
      const stopWatching = guard.onChange((up) => {
        if (!up) client.end().catch(() => undefined);
      });
      try {
        await client.query(BEGIN);
        const decision = { text, values, query_timeout: DEADLINE_MS };
        const { rows } = await client.query(decision);
        await client.query('commit');
        failed = false;
        return rows[0] as Row;
      } finally {
        stopWatching();
        client.release(failed);
      }
    };
    const decision = this.#deciding.then(() => guard.run('query', decide, DEADLINE_MS));
    this.#deciding = decision.catch(() => undefined);
    return decision;
  }

  async #spread(tenantId: string, generation: number): Promise<void> {
    this.coherence.learn(tenantId, generation);
    const redis = this.tiers.redis;
    if (!redis) return;
    const told = redis.guard.run('write', () => redis.tier.tellGeneration(tenantId, generation));
    // Redis would tell a process that cannot ask PostgreSQL. Without it, all are given the time to ask PostgreSQL now.
    await told.catch(() => pause(1.5 * POLL_MS));
  }

  /** One look through Redis, for whomever it is. @returns whether nothing that is dead is left. */
  async #clearRedis(dead: Dead): Promise<boolean> {
    const redis = this.tiers.redis;
    if (!redis) return true;
    const [only] = dead.keys();
    const whose = dead.size === 1 && only ? only : ALL_TENANTS;
    try {
      let cursor = '0';
      do {
        const page = await redis.guard.run('query', () => redis.tier.scan(whose, cursor));
        const outdated = page.ids.flatMap((id) => {
          const before = dead.get(tenantOf(id)) ?? dead.get(ALL_TENANTS);
          return before === undefined ? [] : [{ id, before }];
        });
        if (outdated.length > 0) await redis.guard.run('write', () => redis.tier.forget(outdated));
        cursor = page.cursor;
        await pause(BREATH_MS);
      } while (cursor !== '0' && !this.#stopped.signal.aborted);
      return cursor === '0';
    } catch {
      return false;
    }
  }

  async #purge(): Promise<void> {
    while (this.#again && !this.#stopped.signal.aborted) {
      this.#again = false;
      try {
        await this.#purgeAll();
      } catch (error) {
        if (!(error instanceof TierUnavailableError)) throw error;
        // What is out of reach is in nobody's way: it can wait.
        this.#again = true;
        await pause(RETRY_MS, undefined, { signal: this.#stopped.signal }).catch(() => undefined);
      }
    }
  }

  async #purgeAll(): Promise<void> {
    while (!this.#stopped.signal.aborted) {
      const { rows } = await this.query<{ tenantId: string; generation: string }>(PURGE_NEXT);
      if (rows.length === 0) return;
      for (const { tenantId, generation } of rows) {
        for (const { table } of KINDS) await this.#purgeTable(table.name, tenantId, generation);
      }
      // Where Redis is away, lifetimes do it.
      await this.#clearRedis(new Map(rows.map(({ tenantId, generation }) => [tenantId, Number(generation)])));
      // What was cut short is for the next one to end.
      if (this.#stopped.signal.aborted) return;
      const done = [rows.map(({ tenantId }) => tenantId), rows.map(({ generation }) => generation)];
      await this.query({ ...PURGED, values: done }, 'write');
    }
  }

  /**
   * Until a look finds no dead row: how many a batch deleted tells nothing, since another process may have been first.
   * One look serves many batches, since it passes all that was deleted and that vacuum has not come by to remove.
   */
  async #purgeTable(table: string, tenantId: string, generation: string): Promise<void> {
    const dead = 'tenant_id = $1 and generation < $2';
    const values = [tenantId, generation];
    const look = { name: `purge_look ${table}`, text: `select ctid from ${table} where ${dead} limit ${LOOK}`, values };
    // Since the look, vacuum may have given a dead row's place to a new one.
    const text = `with batch as materialized (
        select ctid as place, tenant_id, generation from ${table} where ctid = any($3::tid[])
      ) delete from ${table} where ctid = any(array(select place from batch where ${dead}))`;
    while (!this.#stopped.signal.aborted) {
      const { rows } = await this.query<{ ctid: string }>(look);
      if (rows.length === 0) return;
      for (let i = 0; i < rows.length && !this.#stopped.signal.aborted; i += BATCH) {
        const places = rows.slice(i, i + BATCH).map(({ ctid }) => ctid);
        await this.query({ name: `purge ${table}`, text, values: [...values, places] }, 'write');
        await pause(BREATH_MS);
      }
    }
  }
}
