/** The perceptual hash of a content: opaque text of at most 128 characters; 16 hex characters are also indexed. */
import { checkContentHash, type Kind } from './kind.js';

/** Throws on what is not UTF-8, and keeps all that is. */
const TEXT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

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
