/** The library: the Python service's method names, in camelCase, over the hybrid cache. */
import { z } from 'zod';
import { type Config, readEnv, toConfig } from '../config.js';
import { ArgumentError } from '../errors.js';
import { Events } from '../events.js';
import {
  type FaceDetection,
  type FaceEmbedding,
  type FacesKey,
  faceDetection,
  faceDetections,
  faceEmbedding,
  faceEmbeddings,
} from '../kinds/faces.js';
import { sha256 } from '../kinds/identity.js';
import { checkContentHash, checkModel, checkTenantId, isSoundText, type Kind } from '../kinds/kind.js';
import { BUILT_IN_MODELS, type FaceModels } from '../kinds/models.js';
import { perceptualHashes } from '../kinds/perceptual-hash.js';
import { canonicalUrl } from '../kinds/url.js';
import { createLogger, type Logger } from '../logger.js';
import { createMetrics, type Metrics } from '../metrics.js';
import { type CacheConnection, connectCache } from './connect.js';
import { CrawlRecords } from './crawl-records.js';
import { unlessAway } from './hybrid.js';
import { type NearDuplicate, searchNearDuplicates } from './near-duplicates.js';
import { entry } from './tier.js';

/** An image's bytes, or its SHA-256 as 64 lower-case hex characters. */
export type Content = Uint8Array | string;

export interface ModelOption {
  /** Identity of the model that made the values; the default is the configured engine's. */
  readonly model?: string;
}

export interface SkipAnswer {
  readonly shouldSkip: boolean;
  /** Where the known image's bytes are; `null` unless it is to be skipped. */
  readonly rawKey: string | null;
  readonly reason: 'url' | 'content' | null;
}

export interface StoredKeys {
  readonly rawKey: string;
  readonly thumbnailKey?: string;
  /** The page that showed the image. */
  readonly sourceUrl?: string;
}

export interface HybridCacheOptions {
  /** Default: the environment, see `.env.example`. */
  readonly config?: Pick<Config, 'redisUrl' | 'postgres' | 'ttl'>;
  /** Default: warnings and errors, to standard error. */
  readonly logger?: Logger;
  readonly metrics?: Metrics;
  /** Models that apply where a call names none. */
  readonly models?: FaceModels;
  /** Tiers that are open already, and stay open when this service closes. */
  readonly connection?: CacheConnection;
}

const NOT_SKIPPED: SkipAnswer = { shouldSkip: false, rawKey: null, reason: null };

/**
 * The hybrid cache: Redis first, PostgreSQL second, every value of one tenant and one content. Connecting is lazy; a
 * tier that is away is passed over (see ARCHITECTURE.md, "When something breaks").
 *
 * Every method rejects with `ArgumentError` on a bad argument, before anything is read or written.
 */
export class HybridCacheService {
  readonly #connection: CacheConnection;
  readonly #records: CrawlRecords;
  readonly #models: FaceModels;
  readonly #ownsConnection: boolean;

  constructor(options: HybridCacheOptions = {}) {
    this.#ownsConnection = options.connection === undefined;
    this.#connection = options.connection ?? openConnection(options);
    this.#records = new CrawlRecords(this.#connection.hybrid);
    this.#models = options.models ?? BUILT_IN_MODELS;
  }

  /** @returns whether PostgreSQL holds the embeddings now. `[]` is a value: "no faces". */
  async cacheFaceEmbeddings(
    content: Content,
    tenantId: string,
    embeddings: FaceEmbedding[],
    { model = this.#models.embedding }: ModelOption = {},
  ): Promise<boolean> {
    const faces = checkFaces('embeddings', z.array(faceEmbedding), embeddings);
    return this.#put(tenantId, faceEmbeddings, facesKey(content, model), faces);
  }

  /** @returns the embeddings exactly as they were given; `[]` for an image without faces; `null` where unknown. */
  async getCachedFaceEmbeddings(
    content: Content,
    tenantId: string,
    { model = this.#models.embedding }: ModelOption = {},
  ): Promise<FaceEmbedding[] | null> {
    return this.#get(tenantId, faceEmbeddings, facesKey(content, model));
  }

  /** Like `cacheFaceEmbeddings`, for what a detector found. */
  async cacheFaceDetection(
    content: Content,
    tenantId: string,
    detections: FaceDetection[],
    { model = this.#models.detection }: ModelOption = {},
  ): Promise<boolean> {
    const faces = checkFaces('detections', z.array(faceDetection), detections);
    return this.#put(tenantId, faceDetections, facesKey(content, model), faces);
  }

  async getCachedFaceDetection(
    content: Content,
    tenantId: string,
    { model = this.#models.detection }: ModelOption = {},
  ): Promise<FaceDetection[] | null> {
    return this.#get(tenantId, faceDetections, facesKey(content, model));
  }

  /** @param phash text of 1 to 128 characters; 16 lower-case hex characters can also be found by likeness. */
  async cachePerceptualHash(content: Content, tenantId: string, phash: string): Promise<boolean> {
    return this.#put(tenantId, perceptualHashes, hashOf(content), checkText('phash', phash, 128));
  }

  async getCachedPerceptualHash(content: Content, tenantId: string): Promise<string | null> {
    return this.#get(tenantId, perceptualHashes, hashOf(content));
  }

  /** Whether the URL is known, before any download. `reason` is then `'url'`. */
  async shouldSkipUrl(url: string, tenantId: string): Promise<SkipAnswer> {
    const tenant = checkTenantId(tenantId);
    const canonical = canonicalUrl(url);
    const record = await unlessAway(this.#records.url(tenant, canonical));
    return record ? { shouldSkip: true, rawKey: record.rawKey, reason: 'url' } : NOT_SKIPPED;
  }

  /**
   * Whether the image is known: by its URL where the bytes are the ones it served before, else by its bytes; in the
   * latter case the URL is remembered. Changed bytes under a known URL are not a duplicate.
   */
  async shouldSkipCrawledImage(url: string, imageBytes: Content, tenantId: string): Promise<SkipAnswer> {
    const tenant = checkTenantId(tenantId);
    const canonical = canonicalUrl(url);
    const contentHash = hashOf(imageBytes);
    const known = await unlessAway(this.#records.imageFacts(tenant, canonical, contentHash));
    if (known?.record?.contentHash === contentHash) {
      return { shouldSkip: true, rawKey: known.record.rawKey, reason: 'url' };
    }
    if (!known?.content) return NOT_SKIPPED;
    const image = { url: canonical, sourceUrl: null, contentHash, content: known.content };
    await unlessAway(this.#records.storeUrl(tenant, image, null));
    return { shouldSkip: true, rawKey: known.content.rawKey, reason: 'content' };
  }

  /** Records an image whose objects are stored already. @returns whether PostgreSQL has committed the record. */
  async storeCrawledImage(url: string, imageBytes: Content, keys: StoredKeys, tenantId: string): Promise<boolean> {
    const tenant = checkTenantId(tenantId);
    const canonical = canonicalUrl(url);
    const content = {
      rawKey: checkText('rawKey', keys?.rawKey),
      thumbnailKey: optionalText('thumbnailKey', keys.thumbnailKey),
      mimeType: null,
      byteSize: typeof imageBytes === 'string' ? null : imageBytes.length,
      width: null,
      height: null,
      jobId: null,
      storedAt: Date.now(),
    };
    const sourceUrl = optionalText('sourceUrl', keys.sourceUrl);
    const image = { url: canonical, sourceUrl, contentHash: hashOf(imageBytes), content };
    return (await unlessAway(this.#records.store(tenant, { ...image, phash: null }))) !== null;
  }

  /**
   * The tenant's images whose hashes differ by at most `maxDistance` bits (0 to 7, default 6), nearest first, at most
   * 20; `[]` while PostgreSQL is away.
   */
  async findNearDuplicates(
    phash: string,
    tenantId: string,
    options: { maxDistance?: number } = {},
  ): Promise<NearDuplicate[]> {
    checkText('phash', phash, 128);
    const { pool, tiers } = this.#connection;
    const search = { pool, guard: tiers.postgres.guard };
    return (await unlessAway(searchNearDuplicates(search, checkTenantId(tenantId), phash, options))) ?? [];
  }

  /** Waits for backfills under way and closes both tiers. */
  async close(): Promise<void> {
    if (this.#ownsConnection) await this.#connection.close();
  }

  async #get<Key, Value>(tenantId: string, kind: Kind<Key, Value>, key: Key): Promise<Value | null> {
    const answer = await this.#connection.hybrid.read(checkTenantId(tenantId), kind, key);
    return answer.state === 'hit' ? answer.value : null;
  }

  async #put<Key, Value>(tenantId: string, kind: Kind<Key, Value>, key: Key, value: Value): Promise<boolean> {
    const entries = [entry(kind, key, value)];
    const written = await this.#connection.hybrid.write(checkTenantId(tenantId), entries, { hotWithoutDurable: true });
    return written.durable;
  }
}

let shared: HybridCacheService | undefined;

/** The process's own service, configured by the environment and made at the first call. */
export function getHybridCacheService(): HybridCacheService {
  shared ??= new HybridCacheService();
  return shared;
}

/** Closes what `getHybridCacheService` made; the next call makes a new one. */
export async function closeCacheService(): Promise<void> {
  const closing = shared;
  shared = undefined;
  await closing?.close();
}

function openConnection({
  config = toConfig(readEnv()),
  logger = createLogger('warn', process.stderr),
  metrics,
}: HybridCacheOptions) {
  return connectCache(config, logger, new Events(metrics ?? createMetrics(), logger));
}

function hashOf(content: Content): string {
  return content instanceof Uint8Array ? sha256(content) : checkContentHash(content);
}

function facesKey(content: Content, model: string): FacesKey {
  return { contentHash: hashOf(content), model: checkModel(model) };
}

function checkFaces<T>(argument: string, schema: z.ZodType<T>, faces: unknown): T {
  const checked = schema.safeParse(faces);
  if (checked.success) return checked.data;
  const [issue] = checked.error.issues;
  const path = (issue?.path ?? [])
    .map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`))
    .join('');
  throw new ArgumentError(`${argument}${path}`, issue?.message ?? 'not valid');
}

function checkText(argument: string, text: unknown, most = 2_048): string {
  if (typeof text === 'string' && isSoundText(text) && text.length >= 1 && text.length <= most) return text;
  throw new ArgumentError(argument, `expected text of 1 to ${most} characters`);
}

function optionalText(argument: string, text: unknown): string | null {
  return text === undefined || text === null ? null : checkText(argument, text);
}
