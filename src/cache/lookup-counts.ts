/** How this service's own look-ups were answered since it began: what a server's figures, shared by many, cannot tell. */
import { KIND_NAMES, type KindName, type LookupResult } from '../metrics.js';

/** Look-ups by how they were answered. Rates are percent of all requests with two decimals, `null` where there were none. */
export interface LookupStatistics {
  /** Answered by Redis. */
  readonly redisHits: number;
  /** Answered by PostgreSQL, since Redis did not know or could not tell. */
  readonly postgresHits: number;
  /** Unknown to every tier that could be asked. */
  readonly misses: number;
  /** Asked while no tier could tell. */
  readonly errors: number;
  /** Of both tiers together. */
  readonly totalHits: number;
  /** Hits, misses and errors: a batch counts once for each of its elements. */
  readonly totalRequests: number;
  /** `totalHits` in percent of `totalRequests`. */
  readonly hitRate: number | null;
  /** `redisHits` in percent of `totalRequests`. */
  readonly redisHitRate: number | null;
  /** `postgresHits` in percent of `totalRequests`. */
  readonly postgresHitRate: number | null;
}

/** The look-ups of one service, all kinds together, since it began or was reset. */
export interface ServiceStatistics extends LookupStatistics {
  /** The same of each kind by itself. */
  readonly byKind: Readonly<Record<KindName, LookupStatistics>>;
}

type Counts = Record<LookupResult, number>;

export class LookupCounts {
  #counts = byKind(nothing);

  /** Once a look-up: no more than an addition. */
  count(kind: KindName, result: LookupResult): void {
    this.#counts[kind][result]++;
  }

  reset(): void {
    this.#counts = byKind(nothing);
  }

  snapshot(): ServiceStatistics {
    const sum = nothing();
    for (const counts of Object.values(this.#counts)) {
      for (const result of Object.keys(sum) as LookupResult[]) sum[result] += counts[result];
    }
    return { ...withRates(sum), byKind: byKind((kind) => withRates(this.#counts[kind])) };
  }
}

/** Percent with two decimals; `null` of nothing. */
export function percentage(part: number, whole: number): number | null {
  return whole === 0 ? null : Math.round((part / whole) * 10_000) / 100;
}

function nothing(): Counts {
  return { redis_hit: 0, postgres_hit: 0, miss: 0, error: 0 };
}

function byKind<T>(make: (kind: KindName) => T): Record<KindName, T> {
  return Object.fromEntries(KIND_NAMES.map((kind) => [kind, make(kind)])) as Record<KindName, T>;
}

function withRates({ redis_hit: redisHits, postgres_hit: postgresHits, miss: misses, error: errors }: Counts) {
  const totalHits = redisHits + postgresHits;
  const totalRequests = totalHits + misses + errors;
  return {
    redisHits,
    postgresHits,
    misses,
    errors,
    totalHits,
    totalRequests,
    hitRate: percentage(totalHits, totalRequests),
    redisHitRate: percentage(redisHits, totalRequests),
    postgresHitRate: percentage(postgresHits, totalRequests),
  };
}
