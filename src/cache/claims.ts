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
  text: `delete from claims
    where tenant_id = $1 and subject = $2 and holder = $3 and claimed_at = $4::timestamptz`,
};

const RELEASE_ALL = {
  name: 'claim_release_all',
  text: 'delete from claims where tenant_id = $1 and holder = $2',
};

export class Claims {
  constructor(private readonly query: Query) {}

  /**
   * Runs `work` while the claim is held, for at most `leaseMs`.
   *
   * @throws {DeferredError} where another holder has it: the caller should come back, and not wait in a slot
   * @throws {TierUnavailableError}
   */
  async hold<T>(claim: Claim, leaseMs: number, work: () => Promise<T>): Promise<T> {
    const answer = await this.take(claim, leaseMs);
    if (!answer.taken) throw new DeferredError(comeBackAfter(answer.heldForMs), `${claim.subject} is claimed`);
    try {
      return await work();
    } finally {
      // A claim that could not be given back holds nobody up for longer than its lease, and its own job not at all.
      await this.release(claim, answer.since).catch(() => undefined);
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

  /** Gives back what was taken; nothing happens where another holder, or a later run of the same, has it by now. */
  async release({ tenantId, subject, holder }: Claim, since: string): Promise<void> {
    await this.query({ ...RELEASE, values: [tenantId, subject, holder, since] }, 'claim');
  }

  /** Gives back whatever the holder has: also what it no longer knows of. */
  async releaseAll({ tenantId, holder }: Pick<Claim, 'tenantId' | 'holder'>): Promise<void> {
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
