/** What crawling found out: which content a URL serves, which image a content is, and what was refused for good. */
import type { RejectReason } from '../errors.js';
import { type Cell, checkContentHash, jsonCodec, type Kind } from './kind.js';

/** A URL was fetched and stored. Never in Redis before PostgreSQL has it: a skip rests on a committed record. */
export interface CrawlUrl {
  /** Canonical. */
  readonly url: string;
  readonly contentHash: string;
  readonly rawKey: string;
  readonly thumbnailKey: string | null;
  /** The page that showed the image. */
  readonly sourceUrl: string | null;
  /** Identity of the job that wrote the record: its own retry says `stored` again. */
  readonly jobId: string | null;
  /** What the origin calls this version of the bytes (RFC 9110 section 8.8), to ask whether they still are the same. */
  readonly etag: string | null;
  readonly lastModified: string | null;
  /** When the origin was last asked, in milliseconds since the epoch. */
  readonly fetchedAt: number;
}

/** Keyed by the SHA-256 of the canonical URL. */
export const crawlUrls: Kind<string, CrawlUrl> = {
  name: 'crawl_url',
  ttl: 'crawl',
  format: 2,
  table: {
    name: 'crawl_cache',
    key: [{ name: 'url_hash', type: 'text' }],
    columns: [
      { name: 'url', type: 'text' },
      { name: 'content_hash', type: 'text' },
      { name: 'raw_key', type: 'text' },
      { name: 'thumbnail_key', type: 'text' },
      { name: 'source_url', type: 'text' },
      { name: 'job_id', type: 'text' },
      { name: 'etag', type: 'text' },
      { name: 'last_modified', type: 'text' },
      { name: 'fetched_at', type: 'timestamp' },
    ],
  },
  onConflict: 'replace',
  // Changed bytes under a known URL are a new version; both are kept, and the latest is what the URL is known as.
  versions: { column: 'content_hash', of: (record) => record.contentHash, at: (record) => record.fetchedAt },
  key: (urlHash) => [urlHash],
  ...jsonCodec<CrawlUrl>(),
  toRow: (r) => [
    ...[r.url, r.contentHash, r.rawKey, r.thumbnailKey, r.sourceUrl, r.jobId],
    ...[r.etag, r.lastModified, r.fetchedAt],
  ],
  fromRow: (cells) => {
    const [url, contentHash, rawKey, thumbnailKey, sourceUrl, jobId, etag, lastModified, fetchedAt] = cells as [
      ...[string, string, string],
      ...[string | null, string | null, string | null],
      ...[string | null, string | null, number],
    ];
    return { url, contentHash, rawKey, thumbnailKey, sourceUrl, jobId, etag, lastModified, fetchedAt };
  },
};

/** The image behind a content hash; its objects exist before it does. */
export interface CrawlContent {
  readonly rawKey: string;
  readonly thumbnailKey: string | null;
  readonly mimeType: string | null;
  readonly byteSize: number | null;
  /** Pixels of the upright image. */
  readonly width: number | null;
  readonly height: number | null;
  readonly jobId: string | null;
  readonly storedAt: number;
}

export const crawlContents: Kind<string, CrawlContent> = {
  name: 'crawl_content',
  ttl: 'crawl',
  format: 1,
  table: {
    name: 'crawl_content_cache',
    key: [{ name: 'content_hash', type: 'text' }],
    columns: [
      { name: 'raw_key', type: 'text' },
      { name: 'thumbnail_key', type: 'text' },
      { name: 'mime_type', type: 'text' },
      { name: 'byte_size', type: 'integer' },
      { name: 'width', type: 'integer' },
      { name: 'height', type: 'integer' },
      { name: 'job_id', type: 'text' },
      { name: 'stored_at', type: 'timestamp' },
    ],
  },
  // One record per tenant and content, whoever else raced for it.
  onConflict: 'keep',
  key: (contentHash) => [checkContentHash(contentHash)],
  ...jsonCodec<CrawlContent>(),
  toRow: (r) => [r.rawKey, r.thumbnailKey, r.mimeType, r.byteSize, r.width, r.height, r.jobId, r.storedAt],
  fromRow: (cells) => {
    const [rawKey, thumbnailKey, mimeType, byteSize, width, height, jobId, storedAt] = cells as [
      ...[string, string | null, string | null, number | null],
      ...[number | null, number | null, string | null, number],
    ];
    return { rawKey, thumbnailKey, mimeType, byteSize, width, height, jobId, storedAt };
  },
};

/** What is remembered of a URL or an image that could not be had: lasting facts, and a name that nobody knows. */
export type RefusalReason = RejectReason | 'dns';

export interface Rejection {
  readonly reason: RefusalReason;
  readonly detail: string;
  readonly jobId: string | null;
  readonly rejectedAt: number;
  /** From here on the subject counts as unknown again. */
  readonly expiresAt: number;
}

/** Keyed by what was refused: the SHA-256 of a canonical URL, or of an image's bytes. */
export const rejections: Kind<string, Rejection> = {
  name: 'rejection',
  ttl: 'crawl',
  format: 1,
  table: {
    name: 'rejection_cache',
    key: [{ name: 'subject_hash', type: 'text' }],
    columns: [
      { name: 'reason', type: 'text' },
      { name: 'detail', type: 'text' },
      { name: 'job_id', type: 'text' },
      { name: 'rejected_at', type: 'timestamp' },
      { name: 'expires_at', type: 'timestamp' },
    ],
  },
  onConflict: 'replace',
  key: (subjectHash) => [subjectHash],
  ...jsonCodec<Rejection>(),
  toRow: (r): Cell[] => [r.reason, r.detail, r.jobId, r.rejectedAt, r.expiresAt],
  fromRow: (cells) => {
    const [reason, detail, jobId, rejectedAt, expiresAt] = cells as [
      RefusalReason,
      string,
      string | null,
      number,
      number,
    ];
    return { reason, detail, jobId, rejectedAt, expiresAt };
  },
};

const HOUR = 3_600_000;
const DAY = 24 * HOUR;

/** How long a refusal is believed, in milliseconds. What a site or our own rules may change soon is asked again sooner. */
export const REJECTION_LIFETIME: Record<RefusalReason, number> = {
  gone: 30 * DAY,
  'not-an-image': 30 * DAY,
  corrupt: 30 * DAY,
  unsupported: 30 * DAY,
  'too-large': 30 * DAY,
  'too-small': 30 * DAY,
  'blocked-address': DAY,
  forbidden: 7 * DAY,
  robots: DAY,
  'unknown-image': HOUR,
  dns: HOUR,
};
