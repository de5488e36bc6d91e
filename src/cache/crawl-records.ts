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
  type RefusalReason,
  type Rejection,
  rejections,
} from '../kinds/crawl.js';
import { sha256 } from '../kinds/identity.js';
import { perceptualHashes } from '../kinds/perceptual-hash.js';
import { type Answer, known } from './answer.js';
import type { HybridCache } from './hybrid.js';
import { type Entry, entry, lookup } from './tier.js';

export interface UrlFacts {
  /** The newest version that the URL served. */
  readonly record: CrawlUrl | null;
  /** A refusal that still counts and is newer than the record. */
  readonly rejection: Rejection | null;
}

/** What is known of an image before it is stored. */
export interface ImageFacts {
  readonly url: string;
  readonly contentHash: string;
  /** The newest version that the URL served. */
  readonly record: CrawlUrl | null;
  /** PostgreSQL could not say what the URL served: nor would it take a record of it now. */
  readonly isInDoubt: boolean;
  /** The image behind the content hash. */
  readonly content: CrawlContent | null;
  /** Of the oldest of these facts. */
  readonly generation: number;
}

/** A record of a content as it was read. */
export interface ReadContent {
  readonly content: CrawlContent;
  /** The tenant's, in which it was read: what is written again because of it stands in no later one. */
  readonly generation: number;
}

export interface NewImage {
  readonly url: string;
  readonly sourceUrl: string | null;
  readonly contentHash: string;
  readonly content: CrawlContent;
  readonly validators: Pick<CrawlUrl, 'etag' | 'lastModified'>;
  /** `null` where the caller computes none. */
  readonly phash: string | null;
}

/** Whose content was read, and not made. */
export type KnownImage = Omit<NewImage, 'phash'> & ReadContent;

/** Only a URL has a name that may not resolve. */
type ContentRejection = Rejection & { readonly reason: RejectReason };

export interface ContentFacts {
  readonly content: CrawlContent | null;
  /** A refusal that still counts. */
  readonly rejection: ContentRejection | null;
}

/** Of bytes that were fetched by somebody else. */
export const UNKNOWN_VERSION = { etag: null, lastModified: null };

export class CrawlRecords {
  constructor(private readonly hybrid: HybridCache) {}

  async urlFacts(tenantId: string, url: string): Promise<UrlFacts> {
    const key = sha256(url);
    const [found, refused] = await this.hybrid.readMany([
      lookup(tenantId, crawlUrls, key),
      lookup(tenantId, rejections, key),
    ]);
    const record = known(found as Answer<CrawlUrl>);
    const rejection = known(refused as Answer<Rejection>);
    const counts = countsStill(refused as Answer<Rejection>, found as Answer<CrawlUrl>);
    return { record, rejection: counts ? rejection : null };
  }

  /** The newest version that the URL served, as far as anybody can say; `null` also where nobody can. */
  async knownUrl(tenantId: string, url: string): Promise<CrawlUrl | null> {
    const answer = await this.hybrid.read(tenantId, crawlUrls, sha256(url));
    return answer.state === 'hit' ? answer.value : null;
  }

  /** `knownUrl` of many, in their order, in one round trip per tier. */
  async knownUrls(tenantId: string, urls: readonly string[]): Promise<(CrawlUrl | null)[]> {
    const answers = await this.hybrid.readMany(urls.map((url) => lookup(tenantId, crawlUrls, sha256(url))));
    return answers.map((answer) => (answer.state === 'hit' ? (answer.value as CrawlUrl) : null));
  }

  /** What is known of URLs and of the bytes they served, as far as anybody can say, in one round trip per tier. */
  async imageFacts(
    tenantId: string,
    images: readonly { readonly url: string; readonly contentHash: string }[],
  ): Promise<ImageFacts[]> {
    const answers = await this.hybrid.readMany(
      images.flatMap(({ url, contentHash }) => [
        lookup(tenantId, crawlUrls, sha256(url)),
        lookup(tenantId, crawlContents, contentHash),
      ]),
    );
    return images.map((image, i) => factsOf(image, answers[2 * i] as Answer, answers[2 * i + 1] as Answer));
  }

  async content(tenantId: string, contentHash: string): Promise<CrawlContent | null> {
    return (await this.readContent(tenantId, contentHash))?.content ?? null;
  }

  /** The record of a content, to be written again together with another URL that serves it. */
  async readContent(tenantId: string, contentHash: string): Promise<ReadContent | null> {
    const answer = await this.hybrid.read(tenantId, crawlContents, contentHash);
    const content = known(answer);
    return content && { content, generation: generationOf(answer) };
  }

  /** Whether facts that were read a while ago may still be told: no, if the tenant was invalidated since. */
  reaches(tenantId: string, { generation }: { readonly generation: number }): boolean {
    return this.hybrid.reaches(tenantId, generation);
  }

  /** The perceptual hash of a recorded content; `null` where its writer computed none. */
  async phash(tenantId: string, contentHash: string): Promise<string | null> {
    return known(await this.hybrid.read(tenantId, perceptualHashes, contentHash));
  }

  /** The record of a content, and a refusal of the content itself, remembered when its embedding failed for good. */
  async contentFacts(tenantId: string, contentHash: string): Promise<ContentFacts> {
    const [found, refused] = await this.hybrid.readMany([
      lookup(tenantId, crawlContents, contentHash),
      lookup(tenantId, rejections, contentHash),
    ]);
    const rejection = known(refused as Answer<ContentRejection>);
    return {
      content: known(found as Answer<CrawlContent>),
      rejection: rejection && rejection.expiresAt > Date.now() ? rejection : null,
    };
  }

  /**
   * Records an image whose objects exist: content, URL and hash in one transaction. Resolves with the content record
   * that stands, which is an older one where another job was first.
   */
  async store(tenantId: string, image: NewImage): Promise<CrawlContent> {
    const { content, contentHash, phash } = image;
    const entries = [entry(tenantId, crawlContents, contentHash, content), urlEntry(tenantId, image, content)];
    if (phash !== null) entries.push(entry(tenantId, perceptualHashes, contentHash, phash));
    const standing = await this.#write(entries);
    return standing.find(({ kind }) => kind === crawlContents)?.value as CrawlContent;
  }

  /**
   * Remembers that a URL serves a content that is already recorded. @returns whether it still was: where the tenant was
   * invalidated since the content was read, nothing is written.
   */
  async storeUrl(tenantId: string, image: KnownImage, jobId: string | null): Promise<boolean> {
    const entries = urlOfKnown(tenantId, image, { jobId, storedAt: Date.now() });
    return (await this.#write(entries)).length === entries.length;
  }

  /** `storeUrl` for many URLs that no job brought. */
  async rememberUrls(
    tenantId: string,
    images: readonly Pick<KnownImage, 'url' | 'contentHash' | 'content' | 'generation'>[],
  ): Promise<void> {
    const now = { jobId: null, storedAt: Date.now() };
    const entries = images.flatMap((image) =>
      urlOfKnown(tenantId, { ...image, sourceUrl: null, validators: UNKNOWN_VERSION }, now),
    );
    if (entries.length > 0) await this.#write(entries);
  }

  /** Remembers a refusal. `subject` is a canonical URL or a content hash. */
  async reject(
    tenantId: string,
    subject: { url: string } | { contentHash: string },
    refusal: { reason: RefusalReason; detail: string; jobId: string | null },
  ): Promise<void> {
    const now = Date.now();
    const rejection = { ...refusal, rejectedAt: now, expiresAt: now + REJECTION_LIFETIME[refusal.reason] };
    const key = 'url' in subject ? sha256(subject.url) : subject.contentHash;
    await this.#write([entry(tenantId, rejections, key, rejection)]);
  }

  async #write(entries: readonly Entry[]): Promise<readonly Entry[]> {
    const written = await this.hybrid.write(entries, { hotWithoutDurable: false });
    if (!written.durable) throw new TierUnavailableError('postgres', 'the record could not be committed');
    return written.entries;
  }
}

/** Until it expires, unless the URL was stored since: in PostgreSQL's order, since workers' clocks differ. */
export function countsStill(rejection: Answer<Rejection>, record: Answer<CrawlUrl>): boolean {
  if (rejection.state !== 'hit' || rejection.value.expiresAt <= Date.now()) return false;
  return record.state !== 'hit' || rejection.version > record.version;
}

function urlEntry(tenantId: string, image: Omit<NewImage, 'phash'>, content: CrawlContent): Entry {
  const { url, sourceUrl, contentHash, validators } = image;
  const { rawKey, thumbnailKey, jobId, storedAt } = content;
  const { etag, lastModified } = validators;
  const record = { url, contentHash, rawKey, thumbnailKey, sourceUrl, jobId, etag, lastModified, fetchedAt: storedAt };
  return entry(tenantId, crawlUrls, sha256(url), record);
}

/** The content comes along: should retention delete it at this moment, it is there again. */
function urlOfKnown(tenantId: string, image: KnownImage, by: Pick<CrawlContent, 'jobId' | 'storedAt'>): Entry[] {
  const { contentHash, content, generation } = image;
  const entries = [
    entry(tenantId, crawlContents, contentHash, content),
    urlEntry(tenantId, image, { ...content, ...by }),
  ];
  return entries.map((one) => ({ ...one, onlyIn: generation }));
}

function factsOf(
  { url, contentHash }: Pick<ImageFacts, 'url' | 'contentHash'>,
  ofUrl: Answer,
  ofContent: Answer,
): ImageFacts {
  return {
    url,
    contentHash,
    record: valueOf(ofUrl) as CrawlUrl | null,
    isInDoubt: ofUrl.state === 'unknown',
    content: valueOf(ofContent) as CrawlContent | null,
    generation: Math.min(generationOf(ofUrl), generationOf(ofContent)),
  };
}

function valueOf(answer: Answer): unknown {
  return answer.state === 'hit' ? answer.value : null;
}

/** Of nothing, no invalidation changes anything. */
function generationOf(answer: Answer): number {
  return answer.state === 'hit' ? answer.generation : Number.MAX_SAFE_INTEGER;
}
