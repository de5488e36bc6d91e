/** Whether a crawled image is to be skipped, and why: what is known of it, as an answer. */
import { canonicalUrl } from '../kinds/url.js';
import { type Content, hashOf } from './arguments.js';
import type { ImageFacts } from './crawl-records.js';

/** Whether a crawl may pass over an image, and why. */
export interface SkipAnswer {
  /** `true` only where PostgreSQL has a record of the same tenant. */
  readonly shouldSkip: boolean;
  /** Where the known image's bytes are; `null` unless it is to be skipped. */
  readonly rawKey: string | null;
  /** What was known, its URL or its bytes; `null` unless it is to be skipped. */
  readonly reason: 'url' | 'content' | null;
}

export interface Asked {
  /** Canonical. */
  readonly url: string;
  readonly contentHash: string;
}

export const NOT_SKIPPED: SkipAnswer = { shouldSkip: false, rawKey: null, reason: null };

/** @throws {ArgumentError} */
export function askedOf(url: string, imageBytes: Content): Asked {
  return { url: canonicalUrl(url), contentHash: hashOf(imageBytes, 'imageBytes') };
}

export function skipByUrl(record: { readonly rawKey: string } | null): SkipAnswer {
  return record ? skipped('url', record.rawKey) : NOT_SKIPPED;
}

/** By its URL where the bytes are the ones it served before, else by its bytes. */
export function skipByFacts(facts: ImageFacts): SkipAnswer {
  if (isKnownByContent(facts)) return skipped('content', facts.content.rawKey);
  return facts.record?.contentHash === facts.contentHash ? skipped('url', facts.record.rawKey) : NOT_SKIPPED;
}

export function isKnownByContent(
  facts: ImageFacts,
): facts is ImageFacts & { content: NonNullable<ImageFacts['content']> } {
  return facts.record?.contentHash !== facts.contentHash && facts.content !== null;
}

function skipped(reason: 'url' | 'content', rawKey: string): SkipAnswer {
  return { shouldSkip: true, rawKey, reason };
}
