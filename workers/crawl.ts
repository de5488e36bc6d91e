/** The crawl job: one URL in; raw bytes, thumbnail, perceptual hash and a record out, once per tenant. */
import { performance } from 'node:perf_hooks';
import type { Claims } from '../src/cache/claims.js';
import type { CrawlRecords, UrlFacts } from '../src/cache/crawl-records.js';
import type { NearDuplicate, SearchOptions } from '../src/cache/near-duplicates.js';
import type { Fetched, Fetcher } from '../src/crawl/fetch.js';
import { DeferredError, RetryableError } from '../src/errors.js';
import type { Events } from '../src/events.js';
import { type ProcessedImage, processImage } from '../src/images/image.js';
import type { CrawlContent } from '../src/kinds/crawl.js';
import { sha256 } from '../src/kinds/identity.js';
import type { Stage } from '../src/metrics.js';
import type { CrawlPayload } from '../src/queues/crawl.js';
import { type ObjectStore, rawKey, thumbnailKey } from '../src/storage/object-store.js';
import { inStage, orRejected, type Rejected, type Run } from './run.js';

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

/** What the job works with. */
export interface CrawlTools {
  readonly records: CrawlRecords;
  readonly claims: Claims;
  readonly fetcher: Pick<Fetcher, 'fetch'>;
  readonly objects: ObjectStore;
  readonly events: Events;
  readonly maxPixels: number;
  /** How long a claim outlives a job that died, in milliseconds: longer than any run of a job. */
  readonly leaseMs: number;
  nearDuplicates(tenantId: string, phash: string, options: SearchOptions): Promise<NearDuplicate[]>;
  enqueueEmbedding(tenantId: string, contentHash: string): Promise<void>;
}

interface Step extends CrawlTools, Run {
  readonly job: CrawlPayload;
}

export async function crawl(job: CrawlPayload, run: Run, tools: CrawlTools): Promise<CrawlOutcome> {
  const step: Step = { ...tools, ...run, job };
  const outcome = await orRejected(
    () => crawlUrl(step),
    (refusal) => step.records.reject(job.tenantId, { url: job.url }, { ...refusal, jobId: run.jobId }),
  );
  const fields = { queue: 'crawl', jobId: run.id, tenantId: job.tenantId };
  tools.events.crawled(fields, job.url, outcome);
  return outcome;
}

async function crawlUrl(step: Step): Promise<CrawlOutcome> {
  const known = await knownUrl(step);
  if (known) return known;
  return claimed(step, `url:${sha256(step.job.url)}`, async () => {
    const knownByNow = (await knownUrl(step)) ?? (await fetchedBefore(step));
    if (knownByNow) return knownByNow;
    const fetched = await fetchImage(step);
    const contentHash = sha256(fetched.bytes);
    return (await knownContent(step, contentHash)) ?? crawlContent(step, fetched, contentHash);
  });
}

/**
 * For a run that was put off because another job worked on the same bytes: by now they may be known. While that job is
 * still at it, this one waits on, and does not ask the origin a second time.
 */
async function fetchedBefore(step: Step): Promise<CrawlOutcome | null> {
  const { contentHash } = step.remembered;
  if (typeof contentHash !== 'string') return null;
  return claimed(step, `content:${contentHash}`, () => knownContent(step, contentHash));
}

async function crawlContent(step: Step, fetched: Fetched, contentHash: string): Promise<CrawlOutcome> {
  const work = async () => {
    const knownByNow = await knownContent(step, contentHash);
    if (knownByNow) return knownByNow;
    const image = await timed(step, 'process', () => processImage(fetched.bytes, { maxPixels: step.maxPixels }));
    const content = await storeObjects(step, fetched, contentHash, image);
    return record(step, contentHash, content, image.phash);
  };
  try {
    return await claimed(step, `content:${contentHash}`, work);
  } catch (error) {
    // The origin was asked once; who waits for a twin need not ask again.
    if (error instanceof DeferredError) await step.remember({ contentHash });
    throw error;
  }
}

async function knownUrl(step: Step): Promise<CrawlOutcome | null> {
  const { job, records } = step;
  if (job.force) return ownRecord(step, await records.urlFacts(job.tenantId, job.url));
  const facts = await timed(step, 'lookup', () => records.urlFacts(job.tenantId, job.url));
  if (facts.rejection) return { outcome: 'rejected', reason: facts.rejection.reason, detail: facts.rejection.detail };
  const own = await ownRecord(step, facts);
  if (own || !facts.record) return own;
  const { contentHash, rawKey } = facts.record;
  return { outcome: 'skipped', reason: 'url', contentHash, rawKey };
}

/** The record that an earlier run of this very job wrote before it was cut short: the job stored it, and says so. */
async function ownRecord(step: Step, { record }: UrlFacts): Promise<CrawlOutcome | null> {
  if (record?.jobId !== step.jobId) return null;
  const content = await step.records.content(step.job.tenantId, record.contentHash);
  if (content?.jobId === step.jobId) return stored(step, record.contentHash, content);
  return { outcome: 'skipped', reason: 'content', contentHash: record.contentHash, rawKey: record.rawKey };
}

async function fetchImage(step: Step): Promise<Fetched> {
  return timed(step, 'fetch', async () => {
    const started = performance.now();
    const fetched = await step.fetcher.fetch(step.job.url, { signal: step.signal });
    step.events.fetched((performance.now() - started) / 1000, fetched.bytes.length);
    return fetched;
  });
}

async function knownContent(step: Step, contentHash: string): Promise<CrawlOutcome | null> {
  const { job, records, jobId } = step;
  const content = await timed(step, 'lookup', () => records.content(job.tenantId, contentHash));
  if (!content) return null;
  const image = { url: job.url, sourceUrl: job.sourceUrl ?? null, contentHash, content };
  await timed(step, 'record', () => records.storeUrl(job.tenantId, image, jobId));
  if (content.jobId === jobId) return stored(step, contentHash, content);
  return { outcome: 'skipped', reason: 'content', contentHash, rawKey: content.rawKey };
}

/** Objects first, the record after them: no record is ever without its objects. */
async function storeObjects(
  step: Step,
  fetched: Fetched,
  contentHash: string,
  image: ProcessedImage,
): Promise<CrawlContent> {
  const { job, objects, jobId } = step;
  const raw = rawKey(job.tenantId, contentHash, image.mimeType);
  const thumbnail = thumbnailKey(job.tenantId, contentHash);
  await timed(step, 'store', async () => {
    try {
      await Promise.all([objects.put(raw, fetched.bytes), objects.put(thumbnail, image.thumbnail)]);
    } catch (error) {
      throw new RetryableError('storage', 'the object store did not take the image', { cause: error });
    }
  });
  return {
    rawKey: raw,
    thumbnailKey: thumbnail,
    mimeType: image.mimeType,
    byteSize: fetched.bytes.length,
    width: image.width,
    height: image.height,
    jobId,
    storedAt: Date.now(),
  };
}

async function record(step: Step, contentHash: string, content: CrawlContent, phash: string): Promise<CrawlOutcome> {
  const { job, records, jobId } = step;
  const image = { url: job.url, sourceUrl: job.sourceUrl ?? null, contentHash, content, phash };
  const standing = await timed(step, 'record', () => records.store(job.tenantId, image));
  if (standing.jobId === jobId) return stored(step, contentHash, standing, phash);
  return { outcome: 'skipped', reason: 'content', contentHash, rawKey: standing.rawKey };
}

/** The end of a job that stored its image, now or in an earlier run: what follows is made sure of every time. */
async function stored(step: Step, contentHash: string, content: CrawlContent, phash?: string): Promise<CrawlOutcome> {
  const { tenantId } = step.job;
  await step.enqueueEmbedding(tenantId, contentHash);
  const hash = phash ?? (await step.records.phash(tenantId, contentHash));
  const near = hash === null ? [] : await step.nearDuplicates(tenantId, hash, { except: contentHash });
  return {
    outcome: 'stored',
    contentHash,
    rawKey: content.rawKey,
    thumbnailKey: content.thumbnailKey,
    phash: hash,
    nearDuplicates: near.map((one) => ({ contentHash: one.contentHash, distance: one.distance })),
  };
}

async function claimed<T>(step: Step, subject: string, work: () => Promise<T>): Promise<T> {
  const claim = { tenantId: step.job.tenantId, subject, holder: step.jobId };
  return step.claims.hold(claim, step.leaseMs, work);
}

function timed<T>(step: Step, stage: Stage, work: () => Promise<T>): Promise<T> {
  return inStage(step, (seconds) => step.events.crawlStage(stage, seconds), work);
}
