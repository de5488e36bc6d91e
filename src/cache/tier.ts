/** A tier: a place that keeps entries. Redis and PostgreSQL fulfil this contract and pass one suite of tests. */
import { ArgumentError, type TierName } from '../errors.js';
import type { AnyKind, Kind } from '../kinds/kind.js';

export interface Lookup {
  readonly kind: AnyKind;
  readonly key: unknown;
}

export interface Entry extends Lookup {
  readonly value: unknown;
}

/**
 * `away`: the tier cannot be reached, or serves nobody. `unserved`: it answers, but could not do this now, through no
 * fault of the operation. `wrong`: the operation itself is at fault.
 */
export type Verdict = 'away' | 'unserved' | 'wrong';

/** Three answers: a value (`[]` and `''` are values), nothing, or bytes that cannot be read. */
export type Found =
  | { readonly state: 'value'; readonly value: unknown }
  | { readonly state: 'absent' }
  | {
      readonly state: 'corrupt';
      readonly error: unknown;
      /** What was found, where the tier can remove an entry only if it still is that. */
      readonly bytes?: Buffer | undefined;
    };

export const ABSENT: Found = { state: 'absent' };

export interface Tier {
  readonly name: TierName;
  /** One round trip for all look-ups, whatever their kinds; answers in the order of the look-ups. */
  read(tenantId: string, lookups: readonly Lookup[]): Promise<Found[]>;
  /**
   * One round trip, all or nothing where the tier can. Resolves with the entries as they stand afterwards: for a kind
   * that keeps the first value, that may be an older one; for a kind with versions, a newer one.
   */
  write(tenantId: string, entries: readonly Entry[]): Promise<Entry[]>;
  /** Resolves when the tier answers. */
  ping(): Promise<void>;
  /** What an error of an operation says about the tier. */
  judge(error: unknown): Verdict;
  close(): Promise<void>;
}

/** Keeps the types of a look-up together where it is made. */
export function lookup<Key, Value>(kind: Kind<Key, Value>, key: Key): Lookup {
  return { kind, key };
}

export function entry<Key, Value>(kind: Kind<Key, Value>, key: Key, value: Value): Entry {
  return { kind, key, value };
}

export function attempt(decode: () => unknown, bytes?: Buffer): Found {
  try {
    return { state: 'value', value: decode() };
  } catch (error) {
    return { state: 'corrupt', error, bytes };
  }
}

/** An error of our own code or of the caller's arguments, which says nothing about the tier. */
export function isOurs(error: unknown): boolean {
  return error instanceof TypeError || error instanceof RangeError || error instanceof ArgumentError;
}
