/**
 * Every table of this service. `npm run db:generate` turns a change here into a migration under `drizzle/`; what SQL
 * alone can say (functions, triggers, storage settings) stands in a hand-written migration beside the generated ones.
 *
 * Every primary key is led by `tenant_id`, so that no query can reach another tenant by leaving something out.
 */
import { sql } from 'drizzle-orm';
import {
  bigint,
  boolean,
  customType,
  doublePrecision,
  index,
  integer,
  pgSchema,
  pgSequence,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
  uuid,
} from 'drizzle-orm/pg-core';

const bytea = customType<{ data: Buffer }>({ dataType: () => 'bytea' });
/** As text on our side: `json` keeps it as it was given, where `jsonb` would not. */
const json = customType<{ data: string }>({ dataType: () => 'json' });
const xid8 = customType<{ data: string }>({ dataType: () => 'xid8' });

const tenantId = () => text('tenant_id').notNull();
const contentHash = () => text('content_hash').notNull();
/** The tenant's generation under which the row was written: rows of an older one are out of every query's reach. */
const generation = () => bigint('generation', { mode: 'number' }).notNull();
/** Orders the values of a key in both tiers: microseconds since the epoch, and always more than the one before. */
const version = () => bigint('version', { mode: 'number' }).notNull();
/** When the row was first written, and last. */
const times = () => ({
  createdAt: timestamp('created_at', { withTimezone: true }).notNull().defaultNow(),
  updatedAt: timestamp('updated_at', { withTimezone: true }).notNull().defaultNow(),
});

export const faceEmbeddingsCache = pgTable(
  'face_embeddings_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    contentHash: contentHash(),
    model: text('model').notNull(),
    faces: integer('faces').notNull(),
    /** The records as `kinds/face-codec.ts` packs them; the same bytes as in Redis. */
    payload: bytea('payload').notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'face_embeddings_cache_pk', columns: [t.tenantId, t.generation, t.contentHash, t.model] }),
    index('face_embeddings_cache_created_at_idx').on(t.createdAt),
  ],
);

export const faceDetectionCache = pgTable(
  'face_detection_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    contentHash: contentHash(),
    model: text('model').notNull(),
    faces: integer('faces').notNull(),
    payload: bytea('payload').notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'face_detection_cache_pk', columns: [t.tenantId, t.generation, t.contentHash, t.model] }),
    index('face_detection_cache_created_at_idx').on(t.createdAt),
  ],
);

export const perceptualHashCache = pgTable(
  'perceptual_hash_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    contentHash: contentHash(),
    phash: text('phash').notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'perceptual_hash_cache_pk', columns: [t.tenantId, t.generation, t.contentHash] }),
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
    generation: generation(),
    band: smallint('band').notNull(),
    bits: integer('bits').notNull(),
    phash: bigint('phash', { mode: 'bigint' }).notNull(),
    contentHash: contentHash(),
  },
  (t) => [
    primaryKey({
      name: 'perceptual_hash_bands_pk',
      columns: [t.tenantId, t.generation, t.band, t.bits, t.phash, t.contentHash],
    }),
  ],
);

/** One row per version that a URL served: its newest row is what the URL is known as. */
export const crawlCache = pgTable(
  'crawl_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    urlHash: text('url_hash').notNull(),
    contentHash: contentHash(),
    url: text('url').notNull(),
    sourceUrl: text('source_url'),
    rawKey: text('raw_key').notNull(),
    thumbnailKey: text('thumbnail_key'),
    jobId: text('job_id'),
    etag: text('etag'),
    lastModified: text('last_modified'),
    fetchedAt: timestamp('fetched_at', { withTimezone: true }).notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'crawl_cache_pk', columns: [t.tenantId, t.generation, t.urlHash, t.contentHash] }),
    index('crawl_cache_content_idx').on(t.tenantId, t.generation, t.contentHash, t.createdAt),
    index('crawl_cache_created_at_idx').on(t.createdAt),
  ],
);

/** One row per tenant and content: the image itself. Its objects exist before it does. */
export const crawlContentCache = pgTable(
  'crawl_content_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    contentHash: contentHash(),
    rawKey: text('raw_key').notNull(),
    thumbnailKey: text('thumbnail_key'),
    mimeType: text('mime_type'),
    byteSize: integer('byte_size'),
    width: integer('width'),
    height: integer('height'),
    jobId: text('job_id'),
    storedAt: timestamp('stored_at', { withTimezone: true }).notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'crawl_content_cache_pk', columns: [t.tenantId, t.generation, t.contentHash] }),
    index('crawl_content_cache_created_at_idx').on(t.createdAt, t.tenantId, t.contentHash),
    index('crawl_content_cache_newest_idx').on(t.tenantId, t.generation, t.createdAt),
  ],
);

/** Lasting refusals, of a URL or of a content; `subject_hash` is the SHA-256 of either. */
export const rejectionCache = pgTable(
  'rejection_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    subjectHash: text('subject_hash').notNull(),
    reason: text('reason').notNull(),
    detail: text('detail').notNull(),
    jobId: text('job_id'),
    rejectedAt: timestamp('rejected_at', { withTimezone: true }).notNull(),
    expiresAt: timestamp('expires_at', { withTimezone: true }).notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'rejection_cache_pk', columns: [t.tenantId, t.generation, t.subjectHash] }),
    index('rejection_cache_created_at_idx').on(t.createdAt),
    index('rejection_cache_expires_at_idx').on(t.expiresAt),
  ],
);

/** What an origin's robots.txt said. */
export const robotsCache = pgTable(
  'robots_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    originHash: text('origin_hash').notNull(),
    origin: text('origin').notNull(),
    rules: text('rules').notNull(),
    trouble: text('trouble'),
    fetchedAt: timestamp('fetched_at', { withTimezone: true }).notNull(),
    expiresAt: timestamp('expires_at', { withTimezone: true }).notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'robots_cache_pk', columns: [t.tenantId, t.generation, t.originHash] }),
    index('robots_cache_created_at_idx').on(t.createdAt),
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

/** What a face search found; `topK` is part of the question. */
export const searchResultsCache = pgTable(
  'search_results_cache',
  {
    tenantId: tenantId(),
    generation: generation(),
    contentHash: contentHash(),
    topK: integer('top_k').notNull(),
    results: json('results').notNull(),
    version: version(),
    ...times(),
  },
  (t) => [
    primaryKey({ name: 'search_results_cache_pk', columns: [t.tenantId, t.generation, t.contentHash, t.topK] }),
    index('search_results_cache_created_at_idx').on(t.createdAt),
  ],
);

/** Numbers of generations: one row of them for all tenants, so that the greater of two is the later one. */
export const cacheGeneration = pgSequence('cache_generation', { startWith: 2 });

/**
 * The generation of each tenant that was ever invalidated; the row `*` is that of all tenants, and the greater of both
 * counts. See `cache/coherence.ts`.
 */
export const cacheGenerations = pgTable(
  'cache_generations',
  {
    tenantId: tenantId().primaryKey(),
    generation: generation(),
    /** Orders changes for those who ask "what changed since?": see `pg_snapshot_xmin`. */
    changedXid: xid8('changed_xid').notNull().default(sql`pg_current_xact_id()`),
    changedAt: timestamp('changed_at', { withTimezone: true }).notNull().default(sql`clock_timestamp()`),
    /** Rows below this generation are deleted. */
    purged: bigint('purged', { mode: 'number' }).notNull().default(0),
    /**
     * Of the row of all tenants: which history of the database is told on. It changes when a process finds that what it
     * knew is not there any more, since a backup was restored.
     */
    incarnation: uuid('incarnation'),
    /** When the server had been started, under which that incarnation began, in seconds since the epoch. */
    begunUnder: text('begun_under'),
  },
  (t) => [
    index('cache_generations_changed_xid_idx').on(t.changedXid),
    index('cache_generations_unpurged_idx').on(t.tenantId).where(sql`purged < generation`),
  ],
);

/**
 * Entries that Redis may still hold in an older version than `version`: written in the transaction that overwrites or
 * deletes a row, removed once Redis has confirmed. `entry` is the Redis key without its prefix.
 */
export const redisRepairs = pgTable(
  'redis_repairs',
  {
    tenantId: tenantId(),
    entry: text('entry').notNull(),
    version: version(),
    writtenAt: timestamp('written_at', { withTimezone: true }).notNull().default(sql`clock_timestamp()`),
  },
  (t) => [
    primaryKey({ name: 'redis_repairs_pk', columns: [t.tenantId, t.entry] }),
    index('redis_repairs_written_at_idx').on(t.writtenAt),
  ],
);

/**
 * What the queues need to know beside BullMQ's own tables, where they are on PostgreSQL; on Redis it is there. Times are
 * milliseconds since the epoch by the server's clock, as BullMQ's are. Nothing here belongs to a tenant's facts.
 */
export const queueState = pgSchema('queue_state');

/** When the next request to a host may begin, see `queues/host-schedule.ts`. */
export const hosts = queueState.table(
  'hosts',
  {
    host: text('host').primaryKey(),
    nextAt: bigint('next_at', { mode: 'number' }).notNull().default(0),
    /** When the last request began. */
    beganAt: bigint('began_at', { mode: 'number' }).notNull().default(0),
    cooledUntil: bigint('cooled_until', { mode: 'number' }).notNull().default(0),
    /** The place that its line has come to. */
    place: bigint('place', { mode: 'number' }).notNull().default(0),
    /** When somebody should have come to it, or, where nobody is to come, nothing of this is meant any more. */
    dueAt: bigint('due_at', { mode: 'number' }).notNull().default(0),
  },
  (t) => [index('hosts_due_at_idx').on(t.dueAt)],
);

/** Requests to a host that are under way, or booked. */
export const hostPermits = queueState.table(
  'host_permits',
  {
    host: text('host').notNull(),
    job: text('job').notNull(),
    startsAt: bigint('starts_at', { mode: 'number' }).notNull(),
    begun: boolean('begun').notNull().default(false),
    expiresAt: bigint('expires_at', { mode: 'number' }).notNull(),
  },
  (t) => [primaryKey({ name: 'host_permits_pk', columns: [t.host, t.job] })],
);

/** Jobs that wait for a permit, in the order of `place`. */
export const hostWaiting = queueState.table(
  'host_waiting',
  {
    host: text('host').notNull(),
    job: text('job').notNull(),
    tenantId: tenantId(),
    /** One behind its tenant's last; jobs of several tenants have the same. */
    place: bigint('place', { mode: 'number' }).notNull(),
    /** Orders those of one place. */
    arrival: bigint('arrival', { mode: 'number' }).notNull().generatedAlwaysAsIdentity(),
  },
  (t) => [
    primaryKey({ name: 'host_waiting_pk', columns: [t.host, t.job] }),
    index('host_waiting_line_idx').on(t.host, t.place, t.arrival),
    index('host_waiting_tenant_idx').on(t.host, t.tenantId, t.place),
  ],
);

/**
 * How far each tenant's turns in a queue are given out, and which job the last one went to, see `queues/turns.ts`; under
 * `:present` stands the queue's present turn. Unlogged (see the hand-written migration): it can be forgotten.
 */
export const tenantTurns = queueState.table(
  'tenant_turns',
  {
    queue: text('queue').notNull(),
    tenantId: tenantId(),
    lastTurn: bigint('last_turn', { mode: 'number' }).notNull(),
    takenAt: bigint('taken_at', { mode: 'number' }).notNull().default(0),
    newest: text('newest'),
  },
  (t) => [primaryKey({ name: 'tenant_turns_pk', columns: [t.queue, t.tenantId] })],
);

/** What a queue's priorities mean, see `queues/turns.ts`; with `since`, some jobs still have numbers of the former base. */
export const numberings = queueState.table('numberings', {
  queue: text('queue').primaryKey(),
  numbering: bigint('numbering', { mode: 'number' }).notNull(),
  base: bigint('base', { mode: 'number' }).notNull().default(0),
  former: bigint('former', { mode: 'number' }).notNull().default(0),
  since: bigint('since', { mode: 'number' }),
  owner: text('owner'),
  leasedUntil: bigint('leased_until', { mode: 'number' }),
});

/** How far each API token's quota of images is used up, see `http/quota.ts`. Unlogged: it can be forgotten. */
export const imageQuotas = queueState.table('image_quotas', {
  /** SHA-256 of the token. */
  holder: text('holder').primaryKey(),
  fullAt: doublePrecision('full_at').notNull(),
});
