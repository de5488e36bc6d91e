/** The library: the Python service's method names, in camelCase, over the hybrid cache. */
import { performance } from 'node:perf_hooks';
import { type Config, readEnv, toConfig } from '../config.js';
import { ArgumentError } from '../errors.js';
import { Events } from '../events.js';
import {
  type FaceDetection,
  type FaceEmbedding,
  faceDetectionList,
  faceDetections,
  faceEmbeddings,
} from '../kinds/faces.js';
import { checkModel, checkTenantId, type Kind } from '../kinds/kind.js';
import { BUILT_IN_MODELS, type FaceModels } from '../kinds/models.js';
import { perceptualHashes } from '../kinds/perceptual-hash.js';
import { checkTopK, type SearchResults, searches, searchResults } from '../kinds/search-results.js';
import { canonicalUrl } from '../kinds/url.js';
import { within } from '../lifecycle.js';
import { createLogger, type Logger } from '../logger.js';
import { createMetrics, type Metrics } from '../metrics.js';
import {
  type Content,
  checkEmbeddings,
  checkList,
  checkText,
  eachOf,
  facesKey,
  hashOf,
  optionalText,
} from './arguments.js';
import { type CacheConfig, type CacheConnection, connectCache, POSTGRES_DEADLINE_MS } from './connect.js';
import { CrawlRecords, UNKNOWN_VERSION } from './crawl-records.js';
import { unlessAway } from './hybrid.js';
import { type NearDuplicate, searchNearDuplicates } from './near-duplicates.js';
import { type Asked, askedOf, isKnownByContent, NOT_SKIPPED, type SkipAnswer, skipByFacts, skipByUrl } from './skip.js';
import { type CacheStatistics, readStatistics } from './statistics.js';
import { entry, lookup } from './tier.js';

/** Whose values are meant: those of another model are other entries. */
export interface ModelOption {
  /** Identity of the model that made the values; the default is the configured engine's. */
  readonly model?: string;
}

/** Where a crawled image is kept, as the object store names it; each text of 1 to 2,048 characters. */
export interface StoredKeys {
  /** Where its bytes are, unchanged. */
  readonly rawKey: string;
  /** Where its thumbnail is, if there is one. */
  readonly thumbnailKey?: string;
  /** The page that showed the image. */
  readonly sourceUrl?: string;
}

/** What a service is made of. All of it has defaults, and none of it connects. */
export interface HybridCacheOptions {
  /** Default: the environment, see `.env.example`. */
  readonly config?: CacheConfig;
  /** Default: to standard error, from `LOG_LEVEL` on. */
  readonly logger?: Logger;
  /** Default: metrics of its own, which nobody scrapes. */
  readonly metrics?: Metrics;
  /** Models that apply where a call names none. */
  readonly models?: FaceModels;
  /** Tiers that are open already, and stay open when this service closes. */
  readonly connection?: CacheConnection;
}

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

  /** @throws {ConfigError} where the environment is read and is wrong */
  constructor(options: HybridCacheOptions = {}) {
    this.#ownsConnection = options.connection === undefined;
    this.#connection = options.connection ?? openConnection(options);
    this.#records = new CrawlRecords(this.#connection.hybrid);
    this.#models = options.models ?? BUILT_IN_MODELS;
  }

  /**
   * Remembers the faces of an image, in the place of what the same model said before. `[]` is a value: "no faces".
   *
   * @returns whether they are durable: in PostgreSQL, or, while that is away, in Redis and on record for PostgreSQL
   */
  async cacheFaceEmbeddings(
    content: Content,
    tenantId: string,
    embeddings: FaceEmbedding[],
    options?: ModelOption,
  ): Promise<boolean> {
    const faces = checkEmbeddings('embeddings', embeddings);
    return await this.#put(
      tenantId,
      faceEmbeddings,
      facesKey(content, this.#embeddingModel(options)),
      faces,
      'embeddings',
    );
  }

  /**
   * The faces of an image, if they are known.
   *
   * @returns the embeddings exactly as they were given; `[]` for an image without faces; `null` where unknown
   */
  async getCachedFaceEmbeddings(
    content: Content,
    tenantId: string,
    options?: ModelOption,
  ): Promise<FaceEmbedding[] | null> {
    return await this.#get(tenantId, faceEmbeddings, facesKey(content, this.#embeddingModel(options)));
  }

  /** `getCachedFaceEmbeddings` of many images, in their order, in one round trip per tier. */
  async getCachedFaceEmbeddingsBatch(
    contents: readonly Content[],
    tenantId: string,
    options?: ModelOption,
  ): Promise<(FaceEmbedding[] | null)[]> {
    const model = checkModel(this.#embeddingModel(options));
    const keys = eachOf('contents', contents, (content) => facesKey(content, model));
    return await this.#getBatch(tenantId, faceEmbeddings, keys);
  }

  /** Like `cacheFaceEmbeddings`, for what a detector found. */
  async cacheFaceDetection(
    content: Content,
    tenantId: string,
    detections: FaceDetection[],
    options?: ModelOption,
  ): Promise<boolean> {
    const faces = checkList('detections', faceDetectionList, detections);
    return await this.#put(
      tenantId,
      faceDetections,
      facesKey(content, this.#detectionModel(options)),
      faces,
      'detections',
    );
  }

  /** Like `getCachedFaceEmbeddings`, for what a detector found. */
  async getCachedFaceDetection(
    content: Content,
    tenantId: string,
    options?: ModelOption,
  ): Promise<FaceDetection[] | null> {
    return await this.#get(tenantId, faceDetections, facesKey(content, this.#detectionModel(options)));
  }

  /** `getCachedFaceDetection` of many images, in their order, in one round trip per tier. */
  async getCachedFaceDetectionBatch(
    contents: readonly Content[],
    tenantId: string,
    options?: ModelOption,
  ): Promise<(FaceDetection[] | null)[]> {
    const model = checkModel(this.#detectionModel(options));
    const keys = eachOf('contents', contents, (content) => facesKey(content, model));
    return await this.#getBatch(tenantId, faceDetections, keys);
  }

  /**
   * Remembers the perceptual hash of an image.
   *
   * @param phash text of 1 to 128 characters; 16 lower-case hex characters can also be found by likeness
   * @returns whether it is durable, as of `cacheFaceEmbeddings`
   */
  async cachePerceptualHash(content: Content, tenantId: string, phash: string): Promise<boolean> {
    return await this.#put(tenantId, perceptualHashes, hashOf(content), checkText('phash', phash, 128), 'phash');
  }

  /** The perceptual hash as it was given; `null` where unknown. */
  async getCachedPerceptualHash(content: Content, tenantId: string): Promise<string | null> {
    return await this.#get(tenantId, perceptualHashes, hashOf(content));
  }

  /** `getCachedPerceptualHash` of many images, in their order, in one round trip per tier. */
  async getCachedPerceptualHashBatch(contents: readonly Content[], tenantId: string): Promise<(string | null)[]> {
    return await this.#getBatch(tenantId, perceptualHashes, eachOf('contents', contents, hashOf));
  }

  /**
   * Remembers what a search for the image's faces found.
   *
   * @param topK how many matches were asked for, from 1 on: another number is another question
   * @param results whatever JSON carries, usually one record per match
   * @returns whether they are durable, as of `cacheFaceEmbeddings`
   */
  async cacheSearchResults(content: Content, tenantId: string, topK: number, results: SearchResults): Promise<boolean> {
    const checked = checkList('results', searchResults, results);
    return await this.#put(tenantId, searches, { contentHash: hashOf(content), topK }, checked, 'results');
  }

  /** What such a search found, as it was given; `[]` for nothing found; `null` where unknown. */
  async getCachedSearchResults(content: Content, tenantId: string, topK: number): Promise<SearchResults | null> {
    return await this.#get(tenantId, searches, { contentHash: hashOf(content), topK });
  }

  /** `getCachedSearchResults` of many images, in their order, in one round trip per tier. */
  async getCachedSearchResultsBatch(
    contents: readonly Content[],
    tenantId: string,
    topK: number,
  ): Promise<(SearchResults | null)[]> {
    checkTopK(topK);
    const keys = eachOf('contents', contents, (content) => ({ contentHash: hashOf(content), topK }));
    return await this.#getBatch(tenantId, searches, keys);
  }

  /** Whether the URL is known, before any download. `reason` is then `'url'`. */
  async shouldSkipUrl(url: string, tenantId: string): Promise<SkipAnswer> {
    return skipByUrl(await this.#records.knownUrl(checkTenantId(tenantId), canonicalUrl(url)));
  }

  /** `shouldSkipUrl` of many, in their order, in one round trip per tier. */
  async shouldSkipUrlBatch(urls: readonly string[], tenantId: string): Promise<SkipAnswer[]> {
    const tenant = checkTenantId(tenantId);
    const records = await this.#records.knownUrls(tenant, eachOf('urls', urls, canonicalUrl));
    return records.map(skipByUrl);
  }

  /**
   * Whether the image is known: by its URL where the bytes are the ones it served before, else by its bytes; in the
   * latter case the URL is remembered. Changed bytes under a known URL are not a duplicate.
   */
  async shouldSkipCrawledImage(url: string, imageBytes: Content, tenantId: string): Promise<SkipAnswer> {
    const tenant = checkTenantId(tenantId);
    const [answer] = await this.#skip(tenant, [askedOf(url, imageBytes)]);
    return answer as SkipAnswer;
  }

  /** `shouldSkipCrawledImage` of many, in their order, in one round trip per tier. */
  async shouldSkipCrawledImageBatch(
    images: readonly { readonly url: string; readonly imageBytes: Content }[],
    tenantId: string,
  ): Promise<SkipAnswer[]> {
    const tenant = checkTenantId(tenantId);
    return await this.#skip(
      tenant,
      eachOf('images', images, (image) => askedOf(image?.url, image?.imageBytes)),
    );
  }

  async #skip(tenant: string, asked: readonly Asked[]): Promise<SkipAnswer[]> {
    const due = performance.now() + POSTGRES_DEADLINE_MS;
    const facts = await this.#records.imageFacts(tenant, asked);
    const newUrls = facts.filter(isKnownByContent).filter(({ isInDoubt }) => !isInDoubt);
    // The answer does not depend on it: who waited long to be told does not wait as long again, and it goes on by itself.
    if (newUrls.length > 0) {
      const remembering = unlessAway(this.#records.rememberUrls(tenant, newUrls));
      await within(Math.max(0, due - performance.now()), remembering, null);
    }
    return facts.map((one) => (this.#records.reaches(tenant, one) ? skipByFacts(one) : NOT_SKIPPED));
  }

  /** Records an image whose objects are stored already. @returns whether PostgreSQL has committed the record. */
  async storeCrawledImage(url: string, imageBytes: Content, keys: StoredKeys, tenantId: string): Promise<boolean> {
    const tenant = checkTenantId(tenantId);
    const canonical = canonicalUrl(url);
    const contentHash = hashOf(imageBytes, 'imageBytes');
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
    const image = { url: canonical, sourceUrl, contentHash, content, validators: UNKNOWN_VERSION };
    return (await unlessAway(this.#records.store(tenant, { ...image, phash: null }))) !== null;
  }

  /**
   * The tenant's images whose hashes differ by at most `maxDistance` bits (0 to 7, default 6), nearest first, at most
   * 20; `[]` while PostgreSQL is away.
   */
  async findNearDuplicates(
    phash: string,
    tenantId: string,
    options?: { maxDistance?: number },
  ): Promise<NearDuplicate[]> {
    checkText('phash', phash, 128);
    const { query, hybrid } = this.#connection;
    const generation = hybrid.generationOf(checkTenantId(tenantId));
    const found = (await unlessAway(searchNearDuplicates(query, tenantId, phash, options ?? {}))) ?? [];
    // Invalidated meanwhile: what was found may be of before.
    return hybrid.reaches(tenantId, generation) ? found : this.findNearDuplicates(phash, tenantId, options);
  }

  /**
   * Forgets everything of the tenant, crawl records included: its images are unknown until crawled again. This process
   * serves none of it from here on, every other one stops within a second. Objects stay.
   *
   * @returns how many rows of PostgreSQL became unreachable
   * @throws {TierUnavailableError} while PostgreSQL is away, having done nothing
   */
  async invalidateTenantCache(tenantId: string): Promise<number> {
    return this.#connection.invalidation.invalidate(checkTenantId(tenantId));
  }

  /**
   * Deletes the cached facts of all tenants, from both tiers: no queue, no object.
   *
   * @returns whether both tiers are empty of what was there; `false` where one of them is away
   */
  async clearAllCache(options: { confirm: true }): Promise<boolean> {
    if (options?.confirm !== true) throw new ArgumentError('confirm', 'expected true: every tenant is affected');
    return (await unlessAway(this.#connection.invalidation.clear())) ?? false;
  }

  /** What both tiers hold, and what this service's look-ups found since it began or was reset. Always resolves. */
  async getCacheStats(): Promise<CacheStatistics> {
    const { tiers, query, counts } = this.#connection;
    const { redis } = tiers;
    return readStatistics({
      redis: redis && { info: () => redis.guard.run('query', () => redis.tier.info()) },
      postgres: { query: (text) => query({ text }) },
      counts,
    });
  }

  /** Begins the service's own counts anew. Counters of `/metrics` only rise. */
  resetCacheStats(): void {
    this.#connection.counts.reset();
  }

  /** Waits for backfills under way and closes both tiers. */
  async close(): Promise<void> {
    if (this.#ownsConnection) await this.#connection.close();
  }

  #embeddingModel(options: ModelOption | undefined): string {
    return options?.model === undefined ? this.#models.embedding : options.model;
  }

  #detectionModel(options: ModelOption | undefined): string {
    return options?.model === undefined ? this.#models.detection : options.model;
  }

  async #get<Key, Value>(tenantId: string, kind: Kind<Key, Value>, key: Key): Promise<Value | null> {
    const answer = await this.#connection.hybrid.read(tenantId, kind, key);
    return answer.state === 'hit' ? answer.value : null;
  }

  async #getBatch<Key, Value>(
    tenantId: string,
    kind: Kind<Key, Value>,
    keys: readonly Key[],
  ): Promise<(Value | null)[]> {
    const tenant = checkTenantId(tenantId);
    const answers = await this.#connection.hybrid.readMany(keys.map((key) => lookup(tenant, kind, key)));
    return answers.map((answer) => (answer.state === 'hit' ? (answer.value as Value) : null));
  }

  async #put<Key, Value>(
    tenantId: string,
    kind: Kind<Key, Value>,
    key: Key,
    value: Value,
    argument: string,
  ): Promise<boolean> {
    const entries = [unlessEndless(argument, () => entry(tenantId, kind, key, value))];
    const written = await this.#connection.hybrid.write(entries, { hotWithoutDurable: true });
    return written.durable;
  }
}

/** A value that holds itself passes every check, and has no end. */
function unlessEndless<T>(argument: string, encode: () => T): T {
  try {
    return encode();
  } catch (error) {
    if (error instanceof RangeError) throw new ArgumentError(argument, 'nested too deeply, or part of itself');
    throw error;
  }
}

function openConnection(options: HybridCacheOptions) {
  const config: CacheConfig & Partial<Pick<Config, 'logLevel'>> = options.config ?? toConfig(readEnv());
  const logger = options.logger ?? createLogger(config.logLevel ?? 'info', process.stderr);
  return connectCache(config, logger, new Events(options.metrics ?? createMetrics(), logger));
}
