/** What this service's own look-ups found, by kind: what `getCacheStats` tells, and `resetCacheStats` begins anew. */
import { KIND_NAMES, type KindName, type LookupResult } from '../metrics.js';

export type CountsByResult = Record<LookupResult, number>;

const NONE: CountsByResult = { redis_hit: 0, postgres_hit: 0, miss: 0, error: 0 };

export class LookupCounts {
  #counts = fresh();

  count(kind: KindName, result: LookupResult): void {
    this.#counts[kind][result] += 1;
  }

  reset(): void {
    this.#counts = fresh();
  }

  snapshot(): Record<KindName, CountsByResult> {
    return structuredClone(this.#counts);
  }
}

function fresh(): Record<KindName, CountsByResult> {
  return Object.fromEntries(KIND_NAMES.map((kind) => [kind, { ...NONE }])) as Record<KindName, CountsByResult>;
}
