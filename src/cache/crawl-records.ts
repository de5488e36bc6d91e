/**
 * What the crawl knows, strictly: these operations either speak for PostgreSQL or throw `TierUnavailableError`, since a
 * skip, a store and a rejection are promises. The library's boolean answers are made of them in `service.ts`.
 */
import { type RejectReason, TierUnavailableError } from '../errors.js';
import {
  type CrawlContent,
  type CrawlUrl,
  crawlContents,
  crawlUrls,
  REJECTION_LIFETIME,
  type Rejection,
  rejections,
} from '../kinds/crawl.js';
import { sha256 } from '../kinds/identity.js';
import { perceptualHashes } from '../kinds/perceptual-hash.js';
import { type Answer, type HybridCache, known } from './hybrid.js';
import { type Entry, entry, lookup } from './tier.js';

export interface UrlFacts {
  /** The newest version that the URL served. */
  readonly record: CrawlUrl | null;
  /** A refusal that still counts and is newer than the record. */
  readonly rejection: Rejection | null;
}

export interface NewImage {
  readonly url: string;
  readonly sourceUrl: string | null;
  readonly contentHash: string;
  readonly content: CrawlContent;
  /** `null` where the caller computes none. */
  readonly phash: string | null;
}

export class CrawlRecords {
  constructor(private readonly hybrid: HybridCache) {}

  async urlFacts(tenantId: string, url: string): Promise<UrlFacts> {
    const key = sha256(url);
    const [found, refused] = await this.hybrid.readMany(tenantId, [lookup(crawlUrls, key), lookup(rejections, key)]);
    const record = known(found as Answer<CrawlUrl>);
    const rejection = known(refused as Answer<Rejection>);
    const counts = rejection && rejection.expiresAt > Date.now() && rejection.rejectedAt > (record?.fetchedAt ?? 0);
    return { record, rejection: counts ? rejection : null };
  }

  /** The newest version that the URL served. */
  async url(tenantId: string, url: string): Promise<CrawlUrl | null> {
    return known(await this.hybrid.read(tenantId, crawlUrls, sha256(url)));
  }

  /**
   * What is known of a URL and of the bytes it served, in one round trip per tier. The content is not needed, and may
   * be `null`, where the URL is known to have served it.
   */
  async imageFacts(
    tenantId: string,
    url: string,
    contentHash: string,
  ): Promise<{ record: CrawlUrl | null; content: CrawlContent | null }> {
    const lookups = [lookup(crawlUrls, sha256(url)), lookup(crawlContents, contentHash)];
    const [found, content] = await this.hybrid.readMany(tenantId, lookups);
    const record = known(found as Answer<CrawlUrl>);
    if (record?.contentHash === contentHash && content?.state === 'unknown') return { record, content: null };
    return { record, content: known(content as Answer<CrawlContent>) };
  }

  async content(tenantId: string, contentHash: string): Promise<CrawlContent | null> {
    return known(await this.hybrid.read(tenantId, crawlContents, contentHash));
  }

  /** The perceptual hash of a recorded content; `null` where its writer computed none. */
  async phash(tenantId: string, contentHash: string): Promise<string | null> {
    return known(await this.hybrid.read(tenantId, perceptualHashes, contentHash));
  }

  /** A refusal of the content itself, remembered when its embedding failed for good. */
  async contentRejection(tenantId: string, contentHash: string): Promise<Rejection | null> {
    const rejection = known(await this.hybrid.read(tenantId, rejections, contentHash));
    return rejection && rejection.expiresAt > Date.now() ? rejection : null;
  }

  /**
   * Records an image whose objects exist: content, URL and hash in one transaction. Resolves with the content record
   * that stands, which is an older one where another job was first.
   */
  async store(tenantId: string, image: NewImage): Promise<CrawlContent> {
    const { content, contentHash, phash } = image;
    const entries = [entry(crawlContents, contentHash, content), urlEntry(image, content)];
    if (phash !== null) entries.push(entry(perceptualHashes, contentHash, phash));
    const standing = await this.#write(tenantId, entries);
    return standing.find(({ kind }) => kind === crawlContents)?.value as CrawlContent;
  }

  /** Remembers that a URL serves a content that is already recorded. */
  async storeUrl(tenantId: string, image: Omit<NewImage, 'phash'>, jobId: string | null): Promise<void> {
    await this.#write(tenantId, [urlEntry(image, { ...image.content, jobId, storedAt: Date.now() })]);
  }

  /** Remembers a refusal. `subject` is a canonical URL or a content hash. */
  async reject(
    tenantId: string,
    subject: { url: string } | { contentHash: string },
    refusal: { reason: RejectReason; detail: string; jobId: string | null },
  ): Promise<void> {
    const now = Date.now();
    const rejection = { ...refusal, rejectedAt: now, expiresAt: now + REJECTION_LIFETIME[refusal.reason] };
    const key = 'url' in subject ? sha256(subject.url) : subject.contentHash;
    await this.#write(tenantId, [entry(rejections, key, rejection)]);
  }

  async #write(tenantId: string, entries: readonly Entry[]): Promise<readonly Entry[]> {
    const written = await this.hybrid.write(tenantId, entries, { hotWithoutDurable: false });
    if (!written.durable) throw new TierUnavailableError('postgres', 'the record could not be committed');
    return written.entries;
  }
}

function urlEntry(image: Omit<NewImage, 'phash'>, content: CrawlContent): Entry {
  const { url, sourceUrl, contentHash } = image;
  const { rawKey, thumbnailKey, jobId, storedAt } = content;
  const record = { url, contentHash, rawKey, thumbnailKey, sourceUrl, jobId, fetchedAt: storedAt };
  return entry(crawlUrls, sha256(url), record);
}
