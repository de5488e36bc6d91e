/** The crawl job in memory: what its runs come to, and what they leave behind, whatever dies or goes away. */

export const TENANTS = ['a', 'b'] as const;
export const URLS = [0, 1, 2] as const;
export const CONTENTS = [0, 1, 2] as const;
/** What a URL serves that is no image. */
export const NO_IMAGE = CONTENTS.length;
/** What each URL serves at first. */
export const FIRST: readonly number[] = [0, 1, NO_IMAGE];
/** What a process may have done last, in the order of the job. */
export const STEPS = [
  'claimed',
  'fetched',
  'content claimed',
  'objects put',
  'committed',
  'in Redis',
  'embedding enqueued',
] as const;
export type Step = (typeof STEPS)[number];
/** What happens to a run right after a step: its process is gone, or a tier is. */
export interface Fault {
  readonly after: Step;
  readonly what: 'death' | 'redis' | 'postgres';
}
/** How a run ended. */
export type End =
  | 'stored'
  | 'skipped url'
  | 'skipped content'
  | 'rejected not-an-image'
  | 'deferred'
  | 'unavailable'
  | 'dead';
/** It runs again. */
export const NO_ENDS: readonly End[] = ['deferred', 'unavailable', 'dead'];

export interface Job {
  readonly id: string;
  readonly tenant: string;
  readonly url: number;
  readonly force: boolean;
  /** How often it ran before, and died. */
  runs: number;
  deaths: number;
  /** As the queue keeps it for the next run. */
  remembered: Record<string, unknown>;
}

/** What there is, as far as a tenant can tell. */
export class TenantModel {
  readonly urls = new Map<number, { content: number; job: string | null }>();
  /** URLs of which the last thing known is that they served no image. */
  readonly refused = new Set<number>();
  /** Which job stored it. */
  readonly contents = new Map<number, string>();
  readonly objects = new Set<number>();
  /** Whose embedding was asked for, as far as the queue knows. */
  readonly embeddings = new Set<number>();
  /** By subject: `u0`, `c2`. */
  readonly claims = new Map<string, string>();
  /** Subjects of claims whose leases have ended. */
  readonly expired = new Set<string>();

  remember(url: number, content: number, job: string | null): void {
    this.urls.set(url, { content, job });
    this.refused.delete(url);
  }

  releaseAll({ id }: Job): void {
    for (const [subject, holder] of this.claims) if (holder === id) this.claims.delete(subject);
  }
}

export class Model {
  readonly tenants = new Map(TENANTS.map((name) => [name as string, new TenantModel()]));
  readonly served = [...FIRST];
  readonly requests: number[] = URLS.map(() => 0);
  /** Jobs that died or were put off. */
  readonly unfinished: Job[] = [];
  /** What a job that was put off knows of the bytes. */
  readonly fetched = new Map<string, number>();
  redisIsUp = true;
  postgresIsUp = true;
  /** Jobs that ran without PostgreSQL, and could not give back what they had claimed. */
  readonly unreleased = new Set<string>();

  endLeases(): void {
    for (const { claims, expired } of this.tenants.values()) for (const subject of claims.keys()) expired.add(subject);
  }

  run(job: Job, fault: Fault | null): End {
    const tenant = this.tenants.get(job.tenant) as TenantModel;
    const mayHoldMore = job.deaths > 0 || this.fetched.has(job.id);
    const end = this.#crawl(tenant, job, fault);
    if (mayHoldMore && !NO_ENDS.includes(end)) this.#releaseAll(tenant, job);
    return end;
  }

  #releaseAll(tenant: TenantModel, job: Job): void {
    if (this.postgresIsUp) tenant.releaseAll(job);
  }

  /** Of a tier that goes: PostgreSQL; without Redis a run goes on as if nothing had been. @returns whether the run is over */
  #suffers(fault: Fault | null, after: Step): 'dead' | 'unavailable' | null {
    if (fault?.after !== after) return null;
    if (fault.what === 'death') return 'dead';
    if (fault.what === 'redis') {
      this.redisIsUp = false;
      return null;
    }
    this.postgresIsUp = false;
    return 'unavailable';
  }

  /**
   * A claim is given back, unless nobody can any more, or its holder is put off because it cannot have a further one, or has
   * a refusal to note first.
   */
  #claimed<E>(
    { tenant, job, fault }: { tenant: TenantModel; job: Job; fault: Fault | null },
    subject: string,
    work: () => E,
  ): E | End {
    if (!this.postgresIsUp) return 'unavailable';
    const holder = tenant.claims.get(subject);
    if (holder !== undefined && holder !== job.id && !tenant.expired.has(subject)) return 'deferred';
    tenant.claims.set(subject, job.id);
    tenant.expired.delete(subject);
    const end = this.#suffers(fault, subject.startsWith('u') ? 'claimed' : 'content claimed') ?? work();
    const isKept = end === 'dead' || end === 'deferred' || end === 'no image';
    if (!isKept && this.postgresIsUp) tenant.claims.delete(subject);
    return end;
  }

  /** What is committed is, also where PostgreSQL goes right then. */
  #diesCommitted(fault: Fault | null): boolean {
    const ends = [this.#suffers(fault, 'committed'), this.#suffers(fault, 'in Redis')];
    return ends.includes('dead');
  }

  #refuse(tenant: TenantModel, job: Job, fault: Fault | null): End {
    tenant.refused.add(job.url);
    if (this.#diesCommitted(fault)) return 'dead';
    if (this.postgresIsUp) tenant.claims.delete(`c${NO_IMAGE}`);
    return 'rejected not-an-image';
  }

  #crawl(tenant: TenantModel, job: Job, fault: Fault | null): End {
    if (tenant.refused.has(job.url) && !job.force) return 'rejected not-an-image';
    const known = tenant.urls.get(job.url);
    if (known && (known.job === job.id || (job.runs > 0 && tenant.contents.get(known.content) === job.id))) {
      this.#releaseAll(tenant, job);
      return this.#told(tenant, job, known.content, fault);
    }
    if (known && !job.force) return 'skipped url';
    return this.#claimed({ tenant, job, fault }, `u${job.url}`, () => {
      const end = this.#visit(tenant, job, fault);
      return end === 'no image' ? this.#refuse(tenant, job, fault) : end;
    });
  }

  #visit(tenant: TenantModel, job: Job, fault: Fault | null): End | 'no image' {
    const before = this.fetched.get(job.id);
    if (before === undefined) return this.#fetch(tenant, job, fault);
    return (
      this.#knownContent(tenant, job, before, fault) ??
      this.#claimed({ tenant, job, fault }, `c${before}`, () => this.#fetch(tenant, job, fault))
    );
  }

  #fetch(tenant: TenantModel, job: Job, fault: Fault | null): End | 'no image' {
    const content = this.served[job.url] as number;
    this.requests[job.url] = (this.requests[job.url] as number) + 1;
    const before = this.fetched.get(job.id);
    if (before !== undefined && before !== content) {
      this.fetched.delete(job.id);
      tenant.claims.delete(`c${before}`);
    }
    const end = this.#suffers(fault, 'fetched');
    if (end) return end;
    return this.#knownContent(tenant, job, content, fault) ?? this.#store(tenant, job, content, fault);
  }

  #knownContent(tenant: TenantModel, job: Job, content: number, fault: Fault | null): End | null {
    if (!tenant.contents.has(content)) return null;
    tenant.remember(job.url, content, job.id);
    if (this.#diesCommitted(fault)) return 'dead';
    return this.#told(tenant, job, content, fault);
  }

  #store(tenant: TenantModel, job: Job, content: number, fault: Fault | null): End | 'no image' {
    const end = this.#claimed({ tenant, job, fault }, `c${content}`, (): End | 'no image' => {
      if (content === NO_IMAGE) return 'no image';
      tenant.objects.add(content);
      const end = this.#suffers(fault, 'objects put');
      if (end) return end;
      tenant.contents.set(content, job.id);
      tenant.remember(job.url, content, job.id);
      if (this.#diesCommitted(fault)) return 'dead';
      return this.#told(tenant, job, content, fault);
    });
    if (end === 'deferred') this.fetched.set(job.id, content);
    return end;
  }

  /** The end of a job whose record is there. */
  #told(tenant: TenantModel, job: Job, content: number, fault: Fault | null): End {
    if (tenant.contents.get(content) !== job.id) return 'skipped content';
    tenant.embeddings.add(content);
    const end = this.#suffers(fault, 'embedding enqueued');
    if (end) return end;
    // Its near-duplicates are not known without PostgreSQL.
    return this.postgresIsUp ? 'stored' : 'unavailable';
  }
}
