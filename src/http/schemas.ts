/** What goes in and out over HTTP. Checks, types and the OpenAPI document are all read off these. */
import { z } from 'zod';
import { HOLDING_NAMES } from '../cache/holdings.js';
import { REJECT_REASONS } from '../errors.js';
import { faceEmbeddingList } from '../kinds/faces.js';
import { isSoundText } from '../kinds/kind.js';
import { KIND_NAMES } from '../metrics.js';
import { QUEUE_NAMES } from '../queues/contract.js';
import { crawlPayload } from '../queues/crawl.js';
import { embeddingPayload } from '../queues/embedding.js';

const MOST_IMAGES = 10_000;

/** Those with a name of their own in the document. */
export const namedSchemas = z.registry<{ id: string }>();

function named<Schema extends z.ZodType>(id: string, schema: Schema): Schema {
  namedSchemas.add(schema, { id });
  return schema;
}

const tenantId = crawlPayload.shape.tenantId.describe('Whose it is.');
const contentHash = embeddingPayload.shape.contentHash.describe('SHA-256 of the image’s bytes.');
const moment = z.iso.datetime();
const count = z.int().min(0);

export const problem = named(
  'Problem',
  z.object({
    type: z.literal('about:blank'),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    field: z.string().optional().describe('The part of the request that is wrong.'),
  }),
);

const crawlImage = named(
  'CrawlImage',
  z.object({
    url: crawlPayload.shape.url.describe('http or https, without credentials, at most 2,048 characters.'),
    sourceUrl: crawlPayload.shape.sourceUrl.describe('The page that showed the image.'),
    force: crawlPayload.shape.force.describe('As for the whole request, whose own it wins over.'),
  }),
);

export const crawlJobs = named(
  'CrawlJobs',
  z.object({
    tenantId,
    images: z.array(crawlImage).min(1).max(MOST_IMAGES),
    force: z
      .boolean()
      .optional()
      .describe('Fetch also what is known, or was refused before: of the images that do not say it for themselves.'),
  }),
);

/** As it is checked: an image that is bad refuses itself alone, see `crawlPayload`. */
export const crawlJobsBody = crawlJobs.extend({ images: z.array(z.unknown()).min(1).max(MOST_IMAGES) });

const jobId = z.string().describe('For `GET /v1/jobs/{queue}/{id}`.');

export const crawlJobsAccepted = named(
  'CrawlJobsAccepted',
  z.object({
    accepted: z.array(z.object({ url: z.string().describe('As it was given.'), jobId })),
    rejected: z.array(
      z.object({
        index: count.describe('Its place in `images`.'),
        url: z.string().nullable().describe('As it was given; null where it was no text.'),
        reason: z.string(),
      }),
    ),
  }),
);

export const embeddingJob = named('EmbeddingJob', z.object({ tenantId, contentHash }));
export const embeddingJobAccepted = named('EmbeddingJobAccepted', z.object({ jobId }));

export const jobPath = z.object({
  queue: z.enum(QUEUE_NAMES),
  id: z.string().min(1).max(200).refine(isSoundText),
});

const rejected = z.object({ outcome: z.literal('rejected'), reason: z.enum(REJECT_REASONS), detail: z.string() });

/** How a job ended: a closed union, told apart by `outcome`. */
const outcome = named(
  'Outcome',
  z.discriminatedUnion('outcome', [
    z.object({
      outcome: z.literal('stored'),
      contentHash,
      rawKey: z.string(),
      thumbnailKey: z.string().nullable(),
      phash: z.string().nullable(),
      nearDuplicates: z.array(z.object({ contentHash, distance: count })),
    }),
    z.object({
      outcome: z.literal('skipped'),
      reason: z.enum(['url', 'content']),
      contentHash,
      rawKey: z.string(),
    }),
    z.object({ outcome: z.enum(['embedded', 'cached']), faces: count, model: z.string() }),
    rejected,
  ]),
);

export const job = named(
  'Job',
  z.object({
    queue: z.enum(QUEUE_NAMES),
    id: z.string(),
    state: z.string().describe('As BullMQ names it: waiting, prioritized, active, delayed, completed, failed, …'),
    outcome: outcome.nullable().describe('null until the job is completed.'),
    attempts: count,
    error: z.string().nullable(),
  }),
);

export const tenantPath = z.object({ tenantId });
export const imagePath = z.object({ tenantId, contentHash });

const phash = z.string().describe('64-bit perceptual hash of the upright image, 16 hex characters.');

export const image = named(
  'Image',
  z.object({
    contentHash,
    rawKey: z.string(),
    thumbnailKey: z.string().nullable(),
    phash: phash.nullable(),
    width: count.nullable().describe('Pixels of the upright image.'),
    height: count.nullable(),
    mimeType: z.string().nullable(),
    urls: z
      .array(z.string())
      .describe('Canonical URLs that served these bytes, in the order they were first seen; the first 1,000.'),
    model: z.string().describe('The model of `faces`.'),
    faces: z
      .array(named('Face', faceEmbeddingList.element.loose()))
      .nullable()
      .describe('null until the image is embedded; [] where it shows no face.'),
    nearDuplicates: z
      .array(z.object({ contentHash, phash, distance: count.describe('Bits that differ.') }))
      .describe('The nearest 20, nearest first.'),
  }),
);

export const explainQuery = z.object({ url: z.string().describe('The URL that is asked about, in any spelling.') });

const told = { tier: z.enum(['redis', 'postgres']).describe('Who told it.'), ageSeconds: count };
const refusalReason = z.enum([...REJECT_REASONS, 'dns']);

export const explanation = named(
  'Explanation',
  z.object({
    url: z.string().describe('Canonical.'),
    wouldSkip: z.boolean().describe('Whether a crawl would end without asking the site.'),
    reason: z.enum(['url', ...refusalReason.options]).nullable(),
    because: z.string().describe('The same in a sentence.'),
    record: z
      .object({
        ...told,
        contentHash,
        rawKey: z.string(),
        thumbnailKey: z.string().nullable(),
        sourceUrl: z.string().nullable(),
        jobId: z.string().nullable(),
        etag: z.string().nullable(),
        lastModified: z.string().nullable(),
        fetchedAt: moment,
      })
      .nullable()
      .describe('The newest version that the URL served.'),
    content: z
      .object({
        ...told,
        mimeType: z.string().nullable(),
        byteSize: count.nullable(),
        width: count.nullable(),
        height: count.nullable(),
      })
      .nullable()
      .describe('The image that it served.'),
    refusal: z
      .object({
        ...told,
        reason: refusalReason,
        detail: z.string(),
        jobId: z.string().nullable(),
        rejectedAt: moment,
        expiresAt: moment,
        counts: z.boolean(),
      })
      .nullable()
      .describe('The newest refusal, which counts until it expires, unless the URL was stored since.'),
    robots: z
      .object({ ...told, origin: z.string(), trouble: z.string().nullable(), expiresAt: moment })
      .nullable()
      .describe('What the site’s robots.txt said, where it was asked for.'),
  }),
);

export const invalidated = named(
  'Invalidated',
  z.object({ invalidated: count.describe('Rows of PostgreSQL that went out of reach.') }),
);

const noStatistics = z.object({ error: z.string() }).describe('In place of a tier’s figures, where it cannot tell.');
const figure = z.number().nullable();
const rate = figure.describe('Percent; null of nothing.');

const lookups = {
  redisHits: count,
  postgresHits: count,
  misses: count,
  errors: count,
  totalHits: count,
  totalRequests: count,
  hitRate: rate,
  redisHitRate: rate,
  postgresHitRate: rate,
};

export const statistics = named(
  'Statistics',
  z.object({
    redisStats: z.union([
      z.object({
        usedMemory: figure,
        usedMemoryHuman: z.string().nullable(),
        maxmemory: figure,
        maxmemoryPolicy: z.string().nullable(),
        connectedClients: figure,
        totalCommandsProcessed: figure,
        keyspaceHits: figure,
        keyspaceMisses: figure,
        evictedKeys: figure,
        hitRate: rate,
      }),
      noStatistics,
    ]),
    postgresStats: z.union([
      z.looseObject({
        faceEmbeddingsCacheCount: count,
        perceptualHashCacheCount: count,
        crawlCacheCount: count,
        embeddingsSize: z.string(),
        phashSize: z.string(),
        crawlSize: z.string(),
        estimated: z.array(z.string()).readonly().describe('Tables with too many rows to count.'),
      }),
      noStatistics,
    ]),
    redisEnabled: z.boolean(),
    postgresEnabled: z.boolean(),
    service: z.object({ ...lookups, byKind: z.record(z.enum(KIND_NAMES), z.object(lookups)) }),
  }),
);

export const missing = z.object({ error: z.string() }).describe('In place of a part that cannot be told: why.');
/** A part of the overview that a store tells. */
const part = <Schema extends z.ZodType>(schema: Schema) => z.union([schema, missing]);
const epochMs = count.describe('Milliseconds since the epoch.');
const tenantName = z.string().nullable().describe('null where another client’s job names none.');

export const run = named(
  'Run',
  z.object({
    jobs: count.describe(
      'Jobs of the window: the newest 1,000 of all tenants. For a token of some tenants, their jobs in it; where older ' +
        'ones are kept, too, those of the last `overSeconds`.',
    ),
    more: z.boolean().describe('Whether older ones, of whichever tenant, are kept, too.'),
    since: epochMs.nullable().describe('When the oldest of them ended, in milliseconds since the epoch.'),
    perSecond: z.number().min(0).describe('Jobs that ended each second, over the last `overSeconds`.'),
    overSeconds: z.number().min(0),
    curve: z
      .array(z.number().min(0).nullable())
      .readonly()
      .describe('Jobs a second, for every 2 s of the last minute, oldest first; null from before the window begins.'),
    outcomes: z.array(z.object({ outcome: z.string(), reason: z.string().nullable(), jobs: count })).readonly(),
    faces: count,
  }),
);

export const failures = z.object({
  jobs: count,
  more: z.boolean().describe('Whether there are more, older ones.'),
  reasons: z.array(z.object({ queue: z.enum(QUEUE_NAMES), reason: z.string(), jobs: count })).readonly(),
});

const trouble = z.object({
  tenantId: tenantName,
  queue: z.enum(QUEUE_NAMES),
  at: epochMs,
  outcome: z.string().describe('rejected or failed.'),
  reason: z.string().nullable(),
  subject: z.string().describe('Host and path of the URL, or a content hash.'),
  detail: z.string().nullable(),
});

const recentImage = z.object({
  tenantId,
  contentHash,
  at: z.number().describe('When it was first recorded, in milliseconds since the epoch.'),
  hasThumbnail: z.boolean(),
  width: count.nullable(),
  height: count.nullable(),
  address: z.string().nullable().describe('Host and path of the URL that served it first.'),
  urls: count.describe('URLs that served it, counted up to 100.'),
  faces: count.nullable().describe('null until it is embedded.'),
  boxes: z.array(faceEmbeddingList.element.shape.bbox).readonly(),
  nearDuplicates: z.array(z.object({ contentHash, distance: count })).readonly(),
});

const holdingNames = z.array(z.enum(HOLDING_NAMES)).readonly();
const lookupResults = { redis_hit: count, postgres_hit: count, miss: count, error: count };

export const overview = named(
  'Overview',
  z.object({
    at: epochMs,
    tenants: z.array(z.string()).readonly().nullable().describe('Whose it is; null is all tenants.'),
    model: z.string().describe('The model of the faces.'),
    crawl: part(run),
    embedding: part(run),
    holdings: part(
      z.object({
        images: count,
        urls: count,
        embedded: count,
        refusals: count,
        atLeast: holdingNames.describe('Of which of these there are more: of a tenant, 10,000 of each are counted.'),
        about: holdingNames.describe('Which of these are estimates: there were too many to count.'),
      }),
    ).describe('Rows that can be reached.'),
    faces: part(
      z.object({
        faces: count,
        images: count.describe('Embedded images that were looked at.'),
        withFaces: count,
        exact: z.boolean().describe('Whether these are all; else there are more.'),
      }),
    ),
    queues: part(
      z
        .array(
          z.object({
            queue: z.enum(QUEUE_NAMES),
            paused: z.boolean().describe('Whether workers take none of its jobs until somebody resumes it.'),
            waiting: count.describe('For a worker, whatever BullMQ calls it.'),
            delayed: count.describe('For their time to come.'),
            active: count,
            completed: count,
            failed: count,
            oldestWaitingSeconds: z.number().min(0),
          }),
        )
        .readonly(),
    )
      .optional()
      .describe('Of all tenants together, as the next two: for a token of all tenants alone.'),
    lookups: part(
      z.object({
        minutes: count.nullable().describe('How far back; null is since this process began, where there is no Redis.'),
        byKind: z.record(z.enum(KIND_NAMES), z.object(lookupResults)),
      }),
    ).optional(),
    replayPending: part(count.nullable()).optional().describe('Writes that wait for PostgreSQL.'),
    tiers: z
      .array(
        z.object({
          name: z.enum(['redis', 'postgres', 'queue']),
          state: z.enum(['up', 'down', 'off']),
          detail: z.string(),
        }),
      )
      .readonly(),
    failures: part(failures).describe('Of the newest 1,000 failed jobs of each queue.'),
    troubles: part(z.array(trouble).readonly()).describe('What was rejected or failed last.'),
    images: part(z.array(recentImage).readonly()).describe('The newest images.'),
  }),
);

export const health = named('Health', z.object({ status: z.literal('ok') }));
export const readiness = named(
  'Readiness',
  z.object({
    status: z.enum(['ready', 'unavailable']),
    degraded: z.array(z.string()).describe('What is away, in the words of the log.'),
  }),
);
