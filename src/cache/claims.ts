/**
 * Claims: a temporary right to work on something, so that many workers do a thing once. They live in PostgreSQL, whose
 * clock decides; a claim belongs to a job and not to a process, so that a job's retry re-enters its own.
 *
 * Claims spare work; they guarantee nothing. A holder that outlives its lease meets the primary keys of the records.
 */
import { DeferredError } from '../errors.js';
import type { Query } from './query.js';

export interface Claim {
  readonly tenantId: string;
  /** What is claimed, such as `url:<hash>`. */
  readonly subject: string;
  /** Identity of the job. */
  readonly holder: string;
}

/** Who claims. */
export type Owner = Pick<Claim, 'tenantId' | 'holder'>;

type Taken =
  /** `since` tells this taking from a later one of the same job. */
  { readonly taken: true; readonly since: string } | { readonly taken: false; readonly heldForMs: number };

const TAKE = {
  name: 'claim_take',
  text: `with won as (
      insert into claims (tenant_id, subject, holder, claimed_at, expires_at)
      values ($1, $2, $3, now(), now() + make_interval(secs => $4::float8 / 1000))
      on conflict (tenant_id, subject) do update
        set holder = excluded.holder, claimed_at = excluded.claimed_at, expires_at = excluded.expires_at
        where claims.holder = excluded.holder or claims.expires_at <= now()
      returning claimed_at
    )
    select (select claimed_at::text from won) as since,
      (select extract(epoch from now() - claimed_at)::float8 * 1000
         from claims where tenant_id = $1 and subject = $2) as held_for_ms`,
};

// A run that lost its job without knowing does not give back what the job's next run has taken.
const RELEASE = {
  name: 'claim_release',
  text: `delete from claims using unnest($3::text[], $4::timestamptz[]) as taken(subject, since)
    where tenant_id = $1 and holder = $2 and claims.subject = taken.subject and claimed_at = since`,
};

const RELEASE_ALL = {
  name: 'claim_release_all',
  text: 'delete from claims where tenant_id = $1 and holder = $2',
};

/** What a job claims as its work goes on; it asks for no more than it needs next. */
export interface Holding {
  /** @throws {DeferredError} where another holder has it: the caller should come back, and not wait in a slot */
  take(subject: string): Promise<void>;
  /** Before the work is done. */
  giveBack(subject: string): Promise<void>;
}

export class Claims {
  constructor(private readonly query: Query) {}

  /**
   * Runs `work`, which takes claims as it goes on; each for at most `leaseMs`. At its end all are given back together,
   * unless it ends because one was refused: such work goes on when that one is free, and keeps what it has meanwhile. So
   * whoever takes several takes them in one order, or two jobs wait for each other until their leases end.
   *
   * @throws {DeferredError} where another holder has what `work` needs
   * @throws {TierUnavailableError}
   */
  async during<T>(owner: Owner, leaseMs: number, work: (holding: Holding) => Promise<T>): Promise<T> {
    const taken = new Map<string, string>();
    let refusal: DeferredError | undefined;
    // A claim that could not be given back holds nobody up for longer than its lease, and its own job not at all.
    const release = (some: ReadonlyMap<string, string>) => this.release(owner, some).catch(() => undefined);
    const holding: Holding = {
      take: async (subject) => {
        const answer = await this.take({ ...owner, subject }, leaseMs);
        if (answer.taken) return void taken.set(subject, answer.since);
        refusal = new DeferredError(comeBackAfter(answer.heldForMs), `${subject} is claimed`);
        throw refusal;
      },
      giveBack: async (subject) => {
        const since = taken.get(subject);
        if (since === undefined) return;
        taken.delete(subject);
        await release(new Map([[subject, since]]));
      },
    };
    try {
      return await work(holding);
    } catch (error) {
      if (error === refusal) taken.clear(); // it stays the job's own
      throw error;
    } finally {
      if (taken.size > 0) await release(taken);
    }
  }

  /**
   * Takes the claim for `leaseMs`, unless another holder has it and its lease runs.
   *
   * @throws {TierUnavailableError}
   */
  async take({ tenantId, subject, holder }: Claim, leaseMs: number): Promise<Taken> {
    const values = [tenantId, subject, holder, leaseMs];
    const { rows } = await this.query<{ since: string | null; held_for_ms: number | null }>(
      { ...TAKE, values },
      'claim',
    );
    const { since = null, held_for_ms: heldForMs = null } = rows[0] ?? {};
    return since === null ? { taken: false, heldForMs: heldForMs ?? 0 } : { taken: true, since };
  }

  /**
   * Gives back what was taken; nothing happens where another holder, or a later run of the same, has it by now.
   *
   * @param taken of each subject, since when
   */
  async release({ tenantId, holder }: Owner, taken: ReadonlyMap<string, string>): Promise<void> {
    await this.query({ ...RELEASE, values: [tenantId, holder, [...taken.keys()], [...taken.values()]] }, 'claim');
  }

  /** Gives back whatever the holder has: also what it no longer knows of. */
  async releaseAll({ tenantId, holder }: Owner): Promise<void> {
    await this.query({ ...RELEASE_ALL, values: [tenantId, holder] }, 'claim');
  }

  /** Forgets claims whose leases ended an hour ago; they hold nobody up, but take space. */
  async forgetExpired(): Promise<void> {
    const text = "delete from claims where expires_at < now() - interval '1 hour'";
    await this.query({ text }, 'claim');
  }
}

/** As long again as the claim has been held: soon for work that just began, seldom for work that takes its time. */
function comeBackAfter(heldForMs: number): number {
  return Math.round(Math.min(Math.max(heldForMs, 200), 5_000) * (0.75 + Math.random() / 2));
}
