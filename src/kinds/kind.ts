/** What a kind of cached fact is. A kind is declared once; the tiers and the hybrid work from the declaration alone. */
import type { Config } from '../config.js';
import { ArgumentError } from '../errors.js';
import type { KindName } from '../metrics.js';

/** A value column of the kind's table. `timestamp` values are milliseconds since the epoch on our side. */
export interface Column {
  readonly name: string;
  readonly type: 'text' | 'integer' | 'bytea' | 'timestamp' | 'json';
}

/** A part of a key: hashes, names and counts. */
export type KeyPart = string | number;

/** What a cell holds on our side. */
export type Cell = string | number | Buffer | null;

interface Table {
  readonly name: string;
  /** The columns that follow tenant and generation in the look-up, in the order of `Kind.key`. */
  readonly key: readonly Column[];
  readonly columns: readonly Column[];
}

export interface Kind<Key, Value> {
  readonly name: KindName;
  /** Which of the configured lifetimes in Redis applies. */
  readonly ttl: keyof Config['ttl'];
  /** Raised whenever `encode` changes, so that no reader meets bytes it cannot read. */
  readonly format: number;
  readonly table: Table;
  /** `replace`: the last writer wins. `keep`: the first one stays, and a later writer is told what stays. */
  readonly onConflict: 'replace' | 'keep';
  /**
   * Set where a key may have several rows, of which the latest counts: the column that tells them apart, its cell, and
   * when a value came to be, in milliseconds since the epoch.
   */
  readonly versions?: { readonly column: string; of(value: Value): string; at(value: Value): number };
  key(key: Key): readonly KeyPart[];
  encode(value: Value): Buffer;
  /** @throws on bytes that `encode` did not make. */
  decode(bytes: Buffer): Value;
  /** `bytes` is the value encoded. */
  toRow(value: Value, bytes: Buffer): readonly Cell[];
  fromRow(cells: readonly Cell[]): Value;
  /** The value encoded, where the row holds it like that. */
  encodedIn?(cells: readonly Cell[]): Buffer;
}

/** A kind whose key and value types do not matter to the one who holds it. */
export type AnyKind = Kind<unknown, unknown>;

/** JSON as the Redis form of a kind whose values are small records. */
export const jsonCodec = <Value>() => ({
  encode: (value: Value): Buffer => Buffer.from(JSON.stringify(value)),
  decode: (bytes: Buffer): Value => {
    const value: unknown = JSON.parse(bytes.toString());
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new RangeError('not a record');
    return value as Value;
  },
});

export const TENANT_ID = /^[A-Za-z0-9._-]{1,100}$/;
export const CONTENT_HASH = /^[0-9a-f]{64}$/;
const MODEL = /^[A-Za-z0-9._@/-]{1,100}$/;

/** Text that PostgreSQL can hold and give back as it was: without a NUL, and without half a surrogate pair. */
export function isSoundText(text: string): boolean {
  return !/\0|\p{Surrogate}/u.test(text);
}

/** @throws {ArgumentError} */
export function checkTenantId(tenantId: unknown): string {
  if (typeof tenantId === 'string' && TENANT_ID.test(tenantId)) return tenantId;
  throw new ArgumentError('tenantId', 'expected 1 to 100 of letters, digits, ".", "_" and "-"');
}

/** @throws {ArgumentError} */
export function checkContentHash(hash: unknown, argument = 'content'): string {
  if (typeof hash === 'string' && CONTENT_HASH.test(hash)) return hash;
  throw new ArgumentError(argument, 'expected the bytes of an image, or its SHA-256 as 64 lower-case hex characters');
}

/** @throws {ArgumentError} */
export function checkModel(model: unknown): string {
  if (typeof model === 'string' && MODEL.test(model)) return model;
  throw new ArgumentError('model', 'expected 1 to 100 of letters, digits, ".", "_", "-", "@" and "/"');
}
