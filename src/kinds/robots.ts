/** What an origin allows crawlers (RFC 9309). */
import { jsonCodec, type Kind } from './kind.js';

export interface Robots {
  /** Such as `https://example.com:8443`. */
  readonly origin: string;
  /** Those for us, as the text of a robots.txt of one group; empty where everything is allowed. */
  readonly rules: string;
  /** Why it could not be had, and nothing is allowed until `expiresAt`; else `null`. */
  readonly trouble: string | null;
  /** Milliseconds since the epoch. */
  readonly fetchedAt: number;
  /** From here on it is asked for anew. */
  readonly expiresAt: number;
}

/** Keyed by the SHA-256 of the origin. */
export const robotsFiles: Kind<string, Robots> = {
  name: 'robots',
  ttl: 'crawl',
  format: 1,
  table: {
    name: 'robots_cache',
    key: [{ name: 'origin_hash', type: 'text' }],
    columns: [
      { name: 'origin', type: 'text' },
      { name: 'rules', type: 'text' },
      { name: 'trouble', type: 'text' },
      { name: 'fetched_at', type: 'timestamp' },
      { name: 'expires_at', type: 'timestamp' },
    ],
  },
  onConflict: 'replace',
  key: (originHash) => [originHash],
  ...jsonCodec<Robots>(),
  toRow: (r) => [r.origin, r.rules, r.trouble, r.fetchedAt, r.expiresAt],
  fromRow: (cells) => {
    const [origin, rules, trouble, fetchedAt, expiresAt] = cells as [string, string, string | null, number, number];
    return { origin, rules, trouble, fetchedAt, expiresAt };
  },
};
