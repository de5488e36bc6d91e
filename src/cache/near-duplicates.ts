/**
 * Near-duplicate search in stock PostgreSQL, with full recall up to distance 7: two 64-bit hashes at most 7 bits apart
 * have, among four bands of 16 bits, at least one that differs by at most 1 bit; at most 3 bits apart, one that is
 * equal. So 4 x 17 (or 4) probes of the primary key of `perceptual_hash_bands` find every candidate.
 */
import { ArgumentError } from '../errors.js';
import { isTelling } from '../kinds/perceptual-hash.js';
import type { Query } from './query.js';
import { CURRENT } from './statement.js';

/** An image that looks like the one that was asked about. */
export interface NearDuplicate {
  /** SHA-256 of its bytes, 64 lower-case hex characters. */
  readonly contentHash: string;
  /** Its perceptual hash, 16 lower-case hex characters. */
  readonly phash: string;
  /** How many of the 64 bits differ: 0 to 7, since the search goes no further. */
  readonly distance: number;
}

const MAX_DISTANCE = 7;
const DEFAULT_DISTANCE = 6;
const MOST = 20;

const BANDS = [0, 1, 2, 3];
const FLIPS = [0, ...Array.from({ length: 16 }, (_, bit) => 1 << bit)];

/**
 * OFFSET 0 keeps the probes apart: one descent of the key each, and no hash join, whatever the statistics say. Where as
 * many as are asked for have the very same hash, nobody is nearer: a picture that a tenant has a million times (a
 * placeholder, a logo) costs one probe.
 */
const SEARCH = {
  name: 'near_duplicates',
  text: `with live as (
      select ${CURRENT('$1')} as generation
    ), equal as materialized (
      select content_hash, phash from perceptual_hash_bands
      where tenant_id = $1 and generation = (select generation from live)
        and band = ($3::smallint[])[1] and bits = ($4::int[])[1] and phash = $2::bigint
        and content_hash is distinct from $6
      order by content_hash limit ${MOST}
    ), candidates as (
      select content_hash, phash, 0 as distance from equal
      where (select count(*) from equal) = ${MOST}
      union
      select found.content_hash, found.phash, bit_count((found.phash # $2::bigint)::bit(64))::int
      from unnest($3::smallint[], $4::int[]) as probe(band, bits)
      cross join lateral (
        select content_hash, phash from perceptual_hash_bands
        where tenant_id = $1 and generation = (select generation from live) and band = probe.band and bits = probe.bits
        offset 0
      ) as found
      where (select count(*) from equal) < ${MOST}
    )
    select content_hash as "contentHash", lpad(to_hex(phash), 16, '0') as phash, distance
    from candidates
    where distance <= $5 and content_hash is distinct from $6
    order by distance, content_hash limit ${MOST}`,
};

export interface SearchOptions {
  /** 0 to 7; the default is 6. */
  readonly maxDistance?: number | undefined;
  /** The content to leave out: the one that is asked about. */
  readonly except?: string | undefined;
}

/**
 * The tenant's images whose hashes differ by at most `maxDistance` bits, nearest first, at most 20. A hash that is not
 * indexed, because it tells nothing of its image or is not 16 hex characters, has none.
 *
 * @throws {ArgumentError}
 * @throws {TierUnavailableError}
 */
export async function searchNearDuplicates(
  query: Query,
  tenantId: string,
  phash: string,
  options: SearchOptions = {},
): Promise<NearDuplicate[]> {
  const maxDistance = options.maxDistance ?? DEFAULT_DISTANCE;
  if (!Number.isInteger(maxDistance) || maxDistance < 0 || maxDistance > MAX_DISTANCE) {
    throw new ArgumentError('maxDistance', `expected a whole number from 0 to ${MAX_DISTANCE}`);
  }
  if (!isTelling(phash)) return [];
  const number = BigInt.asIntN(64, BigInt(`0x${phash}`));
  const probes = probesOf(phash, maxDistance);
  const bands = probes.map(({ band }) => band);
  const bits = probes.map((probe) => probe.bits);
  const values = [tenantId, number.toString(), bands, bits, maxDistance, options.except ?? null];
  const { rows } = await query<NearDuplicate>({ ...SEARCH, values });
  return rows;
}

function probesOf(phash: string, maxDistance: number): { band: number; bits: number }[] {
  const flips = maxDistance < BANDS.length ? [0] : FLIPS;
  return BANDS.flatMap((band) => {
    const own = Number.parseInt(phash.slice(4 * band, 4 * band + 4), 16);
    return flips.map((flip) => ({ band, bits: own ^ flip }));
  });
}
