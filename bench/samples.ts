/** What is remembered and recalled here: one face of 512 numbers, and what is known of a URL in 300 bytes of JSON. */
import { randomBytes } from 'node:crypto';
import { type Entry, entry } from '../src/cache/tier.js';
import { type CrawlUrl, crawlUrls } from '../src/kinds/crawl.js';
import { type FaceEmbedding, faceEmbeddings } from '../src/kinds/faces.js';
import { sha256 } from '../src/kinds/identity.js';
import { BUILT_IN_MODELS } from '../src/kinds/models.js';

export const TENANT = 'bench';
export const MODEL = BUILT_IN_MODELS.embedding;

const embedding = Array.from({ length: 512 }, (_, i) => Math.fround(Math.sin(i)));
export const FACES: FaceEmbedding[] = [{ bbox: [10, 20, 110, 150], det_score: 0.99, embedding }];
/** The form of FACES that both tiers keep. */
export const PACKED = faceEmbeddings.encode(FACES);

/**
 * The images that are known. More than are in flight at once: look-ups of one key at one time are answered by a single
 * read, which is not what the rows are about.
 */
export const HASHES = Array.from({ length: 256 }, (_, i) => sha256(`bench ${i}`));
export const URLS = HASHES.map(urlOf);

/** Goes round. */
export function nth<T>(items: readonly T[], n: number): T {
  return items[n % items.length] as T;
}

export function freshHash(): string {
  return randomBytes(32).toString('hex');
}

export function urlOf(contentHash: string): string {
  return `https://images.example.com/${contentHash.slice(0, 16)}.jpg`;
}

/** The record of the image's URL. */
export function recordOf(contentHash: string): CrawlUrl {
  return {
    url: urlOf(contentHash),
    contentHash,
    rawKey: `raw/${contentHash.slice(0, 2)}/${contentHash.slice(0, 32)}`,
    thumbnailKey: null,
    sourceUrl: 'https://example.com/gallery?page=12',
    jobId: null,
    etag: null,
    lastModified: null,
    fetchedAt: 1_793_000_000_123,
  };
}

export function recordEntry(tenantId: string, contentHash: string): Entry {
  return entry(tenantId, crawlUrls, sha256(urlOf(contentHash)), recordOf(contentHash));
}
