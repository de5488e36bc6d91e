/** What both tiers together say of an entry. */
import { TierUnavailableError } from '../errors.js';
import type { LookupResult } from '../metrics.js';
import type { FoundValue, Stamp } from './tier.js';

export type Answer<Value = unknown> =
  | (Stamp & { readonly state: 'hit'; readonly value: Value; readonly tier: 'redis' | 'postgres' })
  | { readonly state: 'miss' }
  /** PostgreSQL could not be asked, so nobody can say. */
  | { readonly state: 'unknown' };

export const MISS: Answer = { state: 'miss' };
export const UNKNOWN: Answer = { state: 'unknown' };

export function hit({ value, generation, version }: FoundValue, tier: 'redis' | 'postgres'): Answer {
  return { state: 'hit', value, tier, generation, version };
}

/** The value, or `null` for a miss. @throws {TierUnavailableError} where nobody can say. */
export function known<Value>(answer: Answer<Value>): Value | null {
  if (answer.state === 'unknown') throw new TierUnavailableError('postgres', 'the entry could not be looked up');
  return answer.state === 'hit' ? answer.value : null;
}

export function resultOf(answer: Answer): LookupResult {
  if (answer.state !== 'hit') return answer.state === 'miss' ? 'miss' : 'error';
  return answer.tier === 'redis' ? 'redis_hit' : 'postgres_hit';
}
