/**
 * Every table of this service. `npm run db:generate` turns a change here into a migration under `drizzle/`; what SQL
 * alone can say (functions, triggers, storage settings) stands in a hand-written migration beside the generated ones.
 *
 * Every primary key is led by `tenant_id`, so that no query can reach another tenant by leaving something out.
 */
import {
  bigint,
  customType,
  index,
  integer,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
} from 'drizzle-orm/pg-core';

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' });

const tenantId = () => text('tenant_id').notNull();
const contentHash = () => text('content_hash').notNull();
/** When the row was first written, and last. */
const times = () => ({
  createdAt: timestamp('created_at', { withTimezone: true }).notNull().defaultNow(),
  updatedAt: timestamp('updated_at', { withTimezone: true }).notNull().defaultNow(),
});

export const faceEmbeddingsCache = pgTable(
  'face_embeddings_cache',
  {
    tenantId: tenantId(),
    contentHash: contentHash(),
    model: text('model').notNull(),
    faces: integer('faces').notNull(),
    /** The records as `kinds/face-codec.ts` packs them; the same bytes as in Redis. */
    payload: bytea('payload').notNull(),
    ...times(),
  },
  (t) => [
    primaryKey({ columns: [t.tenantId, t.contentHash, t.model] }),
    index('face_embeddings_cache_created_at_idx').on(t.createdAt),
  ],
);

export const faceDetectionCache = pgTable(
  'face_detection_cache',
  {
    tenantId: tenantId(),
    contentHash: contentHash(),
    model: text('model').notNull(),
    faces: integer('faces').notNull(),
    payload: bytea('payload').notNull(),
    ...times(),
  },
  (t) => [
    primaryKey({ columns: [t.tenantId, t.contentHash, t.model] }),
    index('face_detection_cache_created_at_idx').on(t.createdAt),
  ],
);

export const perceptualHashCache = pgTable(
  'perceptual_hash_cache',
  { tenantId: tenantId(), contentHash: contentHash(), phash: text('phash').notNull(), ...times() },
  (t) => [
    primaryKey({ columns: [t.tenantId, t.contentHash] }),
    index('perceptual_hash_cache_created_at_idx').on(t.createdAt),
  ],
);

/**
 * The near-duplicate index: each 64-bit hash as four bands of 16 bits. Two hashes at most 7 bits apart share a band
 * within 1 bit (pigeonhole), which 4 x 17 equality probes of the primary key find. Kept by a trigger on
 * `perceptual_hash_cache`, so that no writer can forget it.
 */
export const perceptualHashBands = pgTable(
  'perceptual_hash_bands',
  {
    tenantId: tenantId(),
    band: smallint('band').notNull(),
    bits: integer('bits').notNull(),
    phash: bigint('phash', { mode: 'bigint' }).notNull(),
    contentHash: contentHash(),
  },
  (t) => [primaryKey({ columns: [t.tenantId, t.band, t.bits, t.phash, t.contentHash] })],
);

/** One row per version that a URL served: its newest row is what the URL is known as. */
export const crawlCache = pgTable(
  'crawl_cache',
  {
    tenantId: tenantId(),
    urlHash: text('url_hash').notNull(),
    contentHash: contentHash(),
    url: text('url').notNull(),
    sourceUrl: text('source_url'),
    rawKey: text('raw_key').notNull(),
    thumbnailKey: text('thumbnail_key'),
    jobId: text('job_id'),
    fetchedAt: timestamp('fetched_at', { withTimezone: true }).notNull(),
    ...times(),
  },
  (t) => [
    primaryKey({ columns: [t.tenantId, t.urlHash, t.contentHash] }),
    index('crawl_cache_content_idx').on(t.tenantId, t.contentHash),
    index('crawl_cache_created_at_idx').on(t.createdAt),
  ],
);

/** One row per tenant and content: the image itself. Its objects exist before it does. */
export const crawlContentCache = pgTable(
  'crawl_content_cache',
  {
    tenantId: tenantId(),
    contentHash: contentHash(),
    rawKey: text('raw_key').notNull(),
    thumbnailKey: text('thumbnail_key'),
    mimeType: text('mime_type'),
    byteSize: integer('byte_size'),
    width: integer('width'),
    height: integer('height'),
    jobId: text('job_id'),
    storedAt: timestamp('stored_at', { withTimezone: true }).notNull(),
    ...times(),
  },
  (t) => [
    primaryKey({ columns: [t.tenantId, t.contentHash] }),
    index('crawl_content_cache_created_at_idx').on(t.createdAt, t.tenantId, t.contentHash),
  ],
);

/** Lasting refusals, of a URL or of a content; `subject_hash` is the SHA-256 of either. */
export const rejectionCache = pgTable(
  'rejection_cache',
  {
    tenantId: tenantId(),
    subjectHash: text('subject_hash').notNull(),
    reason: text('reason').notNull(),
    detail: text('detail').notNull(),
    jobId: text('job_id'),
    rejectedAt: timestamp('rejected_at', { withTimezone: true }).notNull(),
    expiresAt: timestamp('expires_at', { withTimezone: true }).notNull(),
    ...times(),
  },
  (t) => [
    primaryKey({ columns: [t.tenantId, t.subjectHash] }),
    index('rejection_cache_created_at_idx').on(t.createdAt),
  ],
);

/** Who works on what right now. Unlogged (see the hand-written migration): a crash forgets claims, never records. */
export const claims = pgTable(
  'claims',
  {
    tenantId: tenantId(),
    subject: text('subject').notNull(),
    holder: text('holder').notNull(),
    claimedAt: timestamp('claimed_at', { withTimezone: true }).notNull(),
    expiresAt: timestamp('expires_at', { withTimezone: true }).notNull(),
  },
  (t) => [primaryKey({ columns: [t.tenantId, t.subject] }), index('claims_expires_at_idx').on(t.expiresAt)],
);
