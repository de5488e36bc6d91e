/** A tier: a place that keeps entries. What both tiers speak of, and what they promise, stands here. */
import { ArgumentError, type TierName } from '../errors.js';
import { type AnyKind, checkTenantId, type KeyPart, type Kind } from '../kinds/kind.js';

/** Names an entry: the tenant is part of it, so that no operation can leave it out. */
export interface Lookup {
  readonly tenantId: string;
  readonly kind: AnyKind;
  readonly parts: readonly KeyPart[];
  /** Kind, tenant and parts in one: the entry's Redis key without the prefix. */
  readonly id: string;
}

export interface Entry extends Lookup {
  readonly value: unknown;
  /** The value encoded. */
  readonly bytes: Buffer;
  /** What was read and is written again stands in the generation it was read in, or not at all. */
  readonly onlyIn?: number;
}

/** Where an entry stands in time. */
export interface Stamp {
  /** The tenant's generation under which it was written. An invalidation begins a new one. */
  readonly generation: number;
  /** Orders the values of a key in both tiers: microseconds since the epoch, always more than the one before. */
  readonly version: number;
}

export interface Stored extends Entry, Stamp {
  /** Whether an older value may still be in Redis. */
  readonly overwrote: boolean;
}

/**
 * `away`: the tier cannot be reached, or serves nobody. `unserved`: it answers, but could not do this now, through no
 * fault of the operation. `wrong`: the operation itself is at fault.
 */
export type Verdict = 'away' | 'unserved' | 'wrong';

/** An entry that was not written: a later generation than its `onlyIn` has begun. */
export interface Overtaken extends Lookup {
  readonly overtakenBy: number;
}

export interface FoundValue extends Stamp {
  readonly state: 'value';
  readonly value: unknown;
  /** Written to Redis alone, while PostgreSQL was away and nothing could promise that it would get there. */
  readonly unjournaled?: boolean;
  /** The value encoded, where the tier has it like that. */
  readonly bytes?: Buffer | undefined;
}

/** Three answers: a value (`[]` and `''` are values), nothing, or bytes that cannot be read. */
export type Found =
  | FoundValue
  | { readonly state: 'absent' }
  | { readonly state: 'corrupt'; readonly error: unknown; readonly version: number };

export const ABSENT: Found = { state: 'absent' };

/** What the guard needs of a tier. */
export interface Tier {
  readonly name: TierName;
  /** Resolves when the tier answers. */
  ping(): Promise<void>;
  /** What an error of an operation says about the tier. */
  judge(error: unknown): Verdict;
  close(): Promise<void>;
}

/** In the place of a tenant: all of them. No tenant can be called that. */
export const ALL_TENANTS = '*';

/** No part holds a colon, so two entries never share a name. */
export function idOf(kindName: string, tenantId: string, parts: readonly KeyPart[]): string {
  return `${kindName}:${tenantId}:${parts.join(':')}`;
}

export function tenantOf(id: string): string {
  return id.split(':', 2)[1] ?? '';
}

/** @throws {ArgumentError} */
export function lookup<Key, Value>(tenantId: string, kind: Kind<Key, Value>, key: Key): Lookup {
  const parts = kind.key(key);
  return { tenantId: checkTenantId(tenantId), kind, parts, id: idOf(kind.name, tenantId, parts) };
}

/** @throws {ArgumentError} */
export function entry<Key, Value>(tenantId: string, kind: Kind<Key, Value>, key: Key, value: Value): Entry {
  return { ...lookup(tenantId, kind, key), value, bytes: kind.encode(value) };
}

/** An error of our own code or of the caller's arguments, which says nothing about the tier. */
export function isOurs(error: unknown): boolean {
  return error instanceof TypeError || error instanceof RangeError || error instanceof ArgumentError;
}
