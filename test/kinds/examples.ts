/** One entry of every kind, with the values that are easy to lose: wide numbers, nulls, many faces, unknown fields. */
import { type Entry, entry, type Lookup } from '../../src/cache/tier.js';
import { type CrawlContent, type CrawlUrl, crawlContents, crawlUrls, rejections } from '../../src/kinds/crawl.js';
import { type FaceEmbedding, faceDetections, faceEmbeddings } from '../../src/kinds/faces.js';
import { sha256 } from '../../src/kinds/identity.js';
import type { AnyKind } from '../../src/kinds/kind.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { robotsFiles } from '../../src/kinds/robots.js';
import { searches } from '../../src/kinds/search-results.js';

/** 2001-09-09T01:46:40.123Z: its milliseconds are not a binary fraction of a second. */
export const MOMENT = 1_000_000_000_123;

export const FACE: FaceEmbedding = {
  bbox: [10.5, -0.1, 200, 300.25],
  det_score: 0.9876543210123,
  embedding: Array.from({ length: 512 }, (_, i) => Math.fround(Math.sin(i))),
};

/** Not a float32 anywhere, and with fields that this service does not know. */
export const ODD_FACE: FaceEmbedding = {
  bbox: [0, 0, 1e-9, 1e9],
  det_score: 1,
  embedding: [0.1, -0.1, Number.MAX_VALUE, Number.MIN_VALUE],
  landmarks: [[1.5, 2.5], null, 'left eye'],
  gender: 'männlich 🙂',
};

export function crawlUrl(seed: string, changes: Partial<CrawlUrl> = {}): CrawlUrl {
  return {
    url: `https://example.com/${seed}.jpg`,
    contentHash: sha256(seed),
    rawKey: `raw/${seed}`,
    thumbnailKey: null,
    sourceUrl: 'https://example.com/page?q=1',
    jobId: null,
    etag: 'W/"1"',
    lastModified: null,
    fetchedAt: MOMENT,
    ...changes,
  };
}

export function crawlContent(seed: string, changes: Partial<CrawlContent> = {}): CrawlContent {
  return {
    rawKey: `raw/${seed}`,
    thumbnailKey: `thumbnails/${seed}`,
    mimeType: 'image/jpeg',
    byteSize: 20 * 1024 * 1024,
    width: 1920,
    height: null,
    jobId: 'job-1',
    storedAt: MOMENT,
    ...changes,
  };
}

/** One entry per kind; other seeds give other keys and other values. */
export function examples(tenantId: string, seed = 'one'): Entry[] {
  const contentHash = sha256(seed);
  const model = 'puppet@1';
  return [
    entry(tenantId, faceEmbeddings, { contentHash, model }, [FACE, ODD_FACE, { ...FACE, seed }]),
    entry(tenantId, faceDetections, { contentHash, model }, [{ bbox: [1, 2, 3, 4], det_score: 0.5, seed }]),
    entry(tenantId, perceptualHashes, contentHash, contentHash.slice(0, 16)),
    entry(tenantId, searches, { contentHash, topK: 10 }, [{ seed, score: -0, of: ['größe 🙂', null, 1e-9] }, 0.1]),
    entry(tenantId, crawlUrls, sha256(`https://example.com/${seed}.jpg`), crawlUrl(seed)),
    entry(tenantId, crawlContents, contentHash, crawlContent(seed)),
    entry(tenantId, rejections, sha256(`bad ${seed}`), {
      reason: 'too-small',
      detail: `8 x 8 px, ${seed}`,
      jobId: null,
      rejectedAt: MOMENT,
      expiresAt: MOMENT + 1,
    }),
    entry(tenantId, robotsFiles, sha256(`https://${seed}.example`), {
      origin: `https://${seed}.example`,
      rules: 'user-agent: *\ndisallow: /größe',
      trouble: null,
      fetchedAt: MOMENT,
      expiresAt: MOMENT + 1,
    }),
  ];
}

/** The key that an entry was made of, for those who ask for it by tenant, kind and key. */
export function keyOf({ kind, parts }: Lookup): unknown {
  const [contentHash, more] = parts;
  if (kind === (faceEmbeddings as AnyKind) || kind === (faceDetections as AnyKind)) return { contentHash, model: more };
  return kind === (searches as AnyKind) ? { contentHash, topK: more } : contentHash;
}
