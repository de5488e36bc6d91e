/** What a crawl job works with, in each of its runs, and what they come to. */
import type { Claims } from '../src/cache/claims.js';
import type { CrawlRecords } from '../src/cache/crawl-records.js';
import type { NearDuplicate, SearchOptions } from '../src/cache/near-duplicates.js';
import type { Fetcher } from '../src/crawl/fetch.js';
import type { Events } from '../src/events.js';
import type { Stage } from '../src/metrics.js';
import type { CrawlPayload } from '../src/queues/crawl.js';
import type { ObjectStore } from '../src/storage/object-store.js';
import type { Politeness } from './politeness.js';
import { inStage, type Rejected, type Run } from './run.js';

export type CrawlOutcome =
  | {
      readonly outcome: 'stored';
      readonly contentHash: string;
      readonly rawKey: string;
      readonly thumbnailKey: string | null;
      readonly phash: string | null;
      readonly nearDuplicates: { readonly contentHash: string; readonly distance: number }[];
    }
  | {
      readonly outcome: 'skipped';
      readonly reason: 'url' | 'content';
      readonly contentHash: string;
      readonly rawKey: string;
    }
  | Rejected;

/** Of an image that is known in the end. */
export type Kept = Extract<CrawlOutcome, { readonly rawKey: string }>;

export interface CrawlTools {
  readonly records: CrawlRecords;
  readonly claims: Claims;
  readonly fetcher: Pick<Fetcher, 'fetch' | 'fetchUnless'>;
  readonly politeness: Politeness;
  readonly objects: ObjectStore;
  readonly events: Events;
  readonly maxPixels: number;
  /** Known URLs are asked again after this many milliseconds; `null` never. */
  readonly revalidateAfterMs: number | null;
  /** How long a claim outlives a job that died, in milliseconds: longer than any run of a job. */
  readonly leaseMs: number;
  nearDuplicates(tenantId: string, phash: string, options: SearchOptions): Promise<NearDuplicate[]>;
  enqueueEmbedding(tenantId: string, contentHash: string): Promise<void>;
}

/** One run, over its tools. */
export interface Step extends CrawlTools, Run {
  readonly job: CrawlPayload;
}

export function timed<T>(step: Step, stage: Stage, work: () => Promise<T>): Promise<T> {
  return inStage(step, (seconds) => step.events.crawlStage(stage, seconds), work);
}
