/** What is known of a URL, by which tier and for how long; and what a crawl of it would come to now. */
import { RejectedError, type TierName } from '../errors.js';
import {
  type CrawlContent,
  type CrawlUrl,
  crawlContents,
  crawlUrls,
  type RefusalReason,
  type Rejection,
  rejections,
} from '../kinds/crawl.js';
import { sha256 } from '../kinds/identity.js';
import { type Robots, robotsFiles } from '../kinds/robots.js';
import { canonicalUrl } from '../kinds/url.js';
import { type Answer, known } from './answer.js';
import { countsStill } from './crawl-records.js';
import type { HybridCache } from './hybrid.js';
import { type Lookup, lookup } from './tier.js';

/** A fact, with the tier that told it and its age in seconds. Times are ISO 8601. */
type Known<Fact> = Fact & { readonly tier: TierName; readonly ageSeconds: number };

export interface Explanation {
  /** Canonical. */
  readonly url: string;
  /** Whether a crawl would end without asking the site, for what is remembered. Our own rules of addresses are not asked. */
  readonly wouldSkip: boolean;
  /** Why: the URL is known, was refused, or is closed to us by rules that are known; `null` where it would be fetched. */
  readonly reason: 'url' | RefusalReason | null;
  /** The same in a sentence. */
  readonly because: string;
  /** The newest version that the URL served. */
  readonly record: Known<
    Pick<CrawlUrl, 'contentHash' | 'rawKey' | 'thumbnailKey' | 'sourceUrl' | 'jobId' | 'etag' | 'lastModified'> & {
      readonly fetchedAt: string;
    }
  > | null;
  /** The image that it served. */
  readonly content: Known<Pick<CrawlContent, 'mimeType' | 'byteSize' | 'width' | 'height'>> | null;
  /** The newest refusal, which counts until it expires, unless the URL was stored since. */
  readonly refusal: Known<
    Pick<Rejection, 'reason' | 'detail' | 'jobId'> & {
      readonly rejectedAt: string;
      readonly expiresAt: string;
      readonly counts: boolean;
    }
  > | null;
  /** What the site's robots.txt said, where it was asked for. */
  readonly robots: Known<Pick<Robots, 'origin' | 'trouble'> & { readonly expiresAt: string }> | null;
}

/** How a crawl reads an origin's rules. It is given: the cache knows no crawl. */
interface RobotsReading {
  /** Our product token; `null` passes over robots rules. */
  readonly crawler: string | null;
  /** That of `crawl/robots.ts`: throws a `RejectedError` where the URL is not for us. */
  readonly allowedGap: (robots: Robots, url: string, crawler: string) => number;
}

/**
 * @param revalidateAfterMs after which a known URL is asked for again; `null` never
 * @throws {ArgumentError} for what is no URL
 * @throws {TierUnavailableError} where nobody can say
 */
export async function explain(
  hybrid: HybridCache,
  tenantId: string,
  given: string,
  revalidateAfterMs: number | null,
  reading: RobotsReading,
): Promise<Explanation> {
  const url = canonicalUrl(given);
  const { origin } = new URL(url);
  const look = (...lookups: Lookup[]) => hybrid.readMany(lookups, { counted: false });
  const [found, refused, rules] = (await look(
    lookup(tenantId, crawlUrls, sha256(url)),
    lookup(tenantId, rejections, sha256(url)),
    lookup(tenantId, robotsFiles, sha256(origin)),
  )) as [Answer<CrawlUrl>, Answer<Rejection>, Answer<Robots>];
  const record = known(found);
  const rejection = known(refused);
  const robots = known(rules);
  const [image = null] = record ? await look(lookup(tenantId, crawlContents, record.contentHash)) : [];
  const content = image && known(image as Answer<CrawlContent>);
  const counts = countsStill(refused, found);
  const stale = record !== null && revalidateAfterMs !== null && Date.now() - record.fetchedAt >= revalidateAfterMs;
  return {
    url,
    ...verdict(record, counts ? rejection : null, stale, robots && closedBy(robots, url, reading)),
    record: record && {
      ...told(found, record.fetchedAt),
      contentHash: record.contentHash,
      rawKey: record.rawKey,
      thumbnailKey: record.thumbnailKey,
      sourceUrl: record.sourceUrl,
      jobId: record.jobId,
      etag: record.etag,
      lastModified: record.lastModified,
      fetchedAt: moment(record.fetchedAt),
    },
    content: content && {
      ...told(image as Answer, content.storedAt),
      mimeType: content.mimeType,
      byteSize: content.byteSize,
      width: content.width,
      height: content.height,
    },
    refusal: rejection && {
      ...told(refused, rejection.rejectedAt),
      reason: rejection.reason,
      detail: rejection.detail,
      jobId: rejection.jobId,
      rejectedAt: moment(rejection.rejectedAt),
      expiresAt: moment(rejection.expiresAt),
      counts,
    },
    robots: robots && {
      ...told(rules, robots.fetchedAt),
      origin: robots.origin,
      trouble: robots.trouble,
      expiresAt: moment(robots.expiresAt),
    },
  };
}

function verdict(
  record: CrawlUrl | null,
  refusal: Rejection | null,
  stale: boolean,
  closed: string | null,
): Pick<Explanation, 'wouldSkip' | 'reason' | 'because'> {
  if (refusal) {
    const { reason, detail, expiresAt } = refusal;
    return { wouldSkip: true, reason, because: `refused as ${reason} (${detail}), until ${moment(expiresAt)}` };
  }
  if (record && !stale) {
    const because = `its image is known since ${moment(record.fetchedAt)}`;
    return { wouldSkip: true, reason: 'url', because };
  }
  if (closed !== null) return { wouldSkip: true, reason: 'robots', because: `closed to our crawler by ${closed}` };
  const because = record
    ? 'it is known, and so old that the site would be asked whether it is still the same'
    : 'nothing is known of it';
  return { wouldSkip: false, reason: null, because };
}

/** The rule that closes the URL to us, while it counts. Where nobody could say, a crawl waits, and asks anew. */
function closedBy(robots: Robots, url: string, reading: RobotsReading): string | null {
  if (reading.crawler === null || robots.expiresAt <= Date.now()) return null;
  try {
    reading.allowedGap(robots, url, reading.crawler);
    return null;
  } catch (error) {
    return error instanceof RejectedError ? `${error.detail}, until ${moment(robots.expiresAt)}` : null;
  }
}

function told(answer: Answer, since: number): { tier: TierName; ageSeconds: number } {
  const tier = answer.state === 'hit' ? answer.tier : 'postgres';
  return { tier, ageSeconds: Math.max(0, Math.round((Date.now() - since) / 1_000)) };
}

function moment(ms: number): string {
  return new Date(ms).toISOString();
}
