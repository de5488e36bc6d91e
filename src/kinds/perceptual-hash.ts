/** The perceptual hash of a content: opaque text of at most 128 characters; 16 hex characters are also indexed. */
import { checkContentHash, type Kind } from './kind.js';

/** Throws on what is not UTF-8, and keeps all that is. */
const TEXT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * How many of the 64 bits are set in a hash that tells images apart. The median puts 32 of them above itself. Where many
 * coefficients are exactly zero, the median is zero too, and about half of the others are set: none or one in a flat
 * image, at most 8 in a gradient along one axis (7 frequencies and the mean), about 8 in an image symmetric both ways
 * (16 coefficients). Two such images are near each other by accident alone. The index holds no others than these: the SQL
 * function `perceptual_hash_number` knows the same two numbers.
 */
const TELLING_BITS = { least: 12, most: 52 };

/** Whether a hash is indexed, and searched for: 16 lower-case hex characters that say something of their image. */
export function isTelling(phash: string): boolean {
  if (!/^[0-9a-f]{16}$/.test(phash)) return false;
  const bits = BigInt(`0x${phash}`).toString(2).replaceAll('0', '').length;
  return bits >= TELLING_BITS.least && bits <= TELLING_BITS.most;
}

export const perceptualHashes: Kind<string, string> = {
  name: 'perceptual_hash',
  ttl: 'phash',
  format: 1,
  table: {
    name: 'perceptual_hash_cache',
    key: [{ name: 'content_hash', type: 'text' }],
    columns: [{ name: 'phash', type: 'text' }],
  },
  onConflict: 'replace',
  key: (contentHash) => [checkContentHash(contentHash)],
  encode: (phash) => Buffer.from(phash),
  decode: (bytes) => TEXT.decode(bytes),
  toRow: (phash) => [phash],
  fromRow: ([phash]) => phash as string,
};
