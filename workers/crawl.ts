/** The crawl job: one URL in; raw bytes, thumbnail, perceptual hash and a record out, once per tenant. */
import type { Holding } from '../src/cache/claims.js';
import type { ReadContent, UrlFacts } from '../src/cache/crawl-records.js';
import type { Validators } from '../src/crawl/fetch.js';
import { DeferredError, RetryableError } from '../src/errors.js';
import type { CrawlUrl, RefusalReason, Rejection } from '../src/kinds/crawl.js';
import { sha256 } from '../src/kinds/identity.js';
import type { CrawlPayload } from '../src/queues/crawl.js';
import { fetchedContent, fetchImage, forgetVisit, validatorsOf } from './crawl-fetch.js';
import { type CrawlOutcome, type CrawlTools, type Kept, type Step, timed } from './crawl-step.js';
import { type NewContent, restoreObjects, stored, storeImage } from './crawl-store.js';
import { orRejected, type Run } from './run.js';

/** A turn at a host that a job cannot use sooner, in milliseconds, is the next one's in line. */
const KEEPS_TURN_MS = 1_000;

export async function crawl(job: CrawlPayload, run: Run, tools: CrawlTools): Promise<CrawlOutcome> {
  const step: Step = { ...tools, ...run, job };
  const outcome = await crawlUrl(step);
  // An earlier run died or waits no more, and this one did not come to all that it had claimed.
  const mayHoldMore = run.deaths > 0 || fetchedContent(step) !== null;
  if (mayHoldMore && !run.signal.aborted) await releaseClaims(step);
  return outcome;
}

async function crawlUrl(step: Step): Promise<CrawlOutcome> {
  const { outcome } = await knownUrl(step);
  if (outcome) return withoutVisit(step, outcome);
  return claiming(step, async (holding) => {
    await takeInTime(step, holding, `url:${sha256(step.job.url)}`);
    // Whoever has the claim next finds the refusal.
    return withRefusal(step, () => claimedUrl(step, holding));
  });
}

async function claimedUrl(step: Step, holding: Holding): Promise<CrawlOutcome> {
  const { outcome: byNow, stale } = await knownUrl(step);
  const known = byNow ?? (await fetchedBefore(step, holding));
  if (known) return withoutVisit(step, known);
  const fetched = await fetchImage(step, stale?.record ?? null);
  if (!fetched) return unchanged(step, stale as Stale);
  const contentHash = sha256(fetched.bytes);
  await forgetOther(step, holding, contentHash);
  // Before the record that says that this job is done with the URL.
  if (step.job.force) await restoreObjects(step, fetched, contentHash);
  const validators = validatorsOf(step, fetched);
  const byContent = await knownContent(step, contentHash, validators);
  return byContent ?? crawlContent(step, holding, { fetched, contentHash, validators });
}

/** Notes what refuses the URL for good. */
function withRefusal(step: Step, work: () => Promise<CrawlOutcome>): Promise<CrawlOutcome> {
  const { job, jobId, isLast, records, signal } = step;
  const note = async (refusal: { reason: RefusalReason; detail: string }) => {
    // What was read late may be older than what another run has recorded since.
    signal.throwIfAborted();
    await records.reject(job.tenantId, { url: job.url }, { ...refusal, jobId });
  };
  return orRejected(work, note).catch(async (error: unknown) => {
    // A name that could not be resolved five times over is not asked for again by the next crawl, some minutes later.
    const isUnresolved = error instanceof RetryableError && error.reason === 'dns' && !error.isFinal && isLast;
    if (isUnresolved) await note({ reason: 'dns', detail: error.message.replace(/^dns: /, '') });
    throw error;
  });
}

/** Takes what has to be had before the origin is asked; who cannot have it soon gives its turn there to the next in line. */
async function takeInTime(step: Step, holding: Holding, subject: string): Promise<void> {
  await holding.take(subject).catch(async (error: unknown) => {
    if (error instanceof DeferredError && error.delayMs > KEEPS_TURN_MS) await forgetVisit(step);
    throw error;
  });
}

/** An earlier run may have booked a visit that nobody needs any more. */
async function withoutVisit(step: Step, outcome: CrawlOutcome): Promise<CrawlOutcome> {
  await forgetVisit(step);
  return outcome;
}

/**
 * For a run that was put off because another job worked on the same bytes: by now they may be known. While that job is
 * still at it, this one waits on, and does not ask the origin a second time. Where that job came to nothing, one of those
 * who wait asks anew, and the others go on waiting.
 */
async function fetchedBefore(step: Step, holding: Holding): Promise<CrawlOutcome | null> {
  const contentHash = fetchedContent(step);
  if (contentHash === null) return null;
  const { etag = null, lastModified = null } = step.remembered as Partial<Validators>;
  const known = () => knownContent(step, contentHash, { etag, lastModified });
  // Looked up before it is claimed: all who waited come at once, and none of them needs the others to have gone.
  const byNow = await known();
  if (byNow) return byNow;
  await takeInTime(step, holding, `content:${contentHash}`);
  return known();
}

/** The URL was asked anew, and serves other bytes by now: those of before say nothing of it any more. */
async function forgetOther(step: Step, holding: Holding, contentHash: string): Promise<void> {
  const before = fetchedContent(step);
  if (before === null || before === contentHash) return;
  await step.remember({ contentHash: null });
  await holding.giveBack(`content:${before}`);
}

async function crawlContent(step: Step, holding: Holding, found: NewContent): Promise<Kept> {
  const { contentHash, validators } = found;
  try {
    await holding.take(`content:${contentHash}`);
    return (await knownContent(step, contentHash, validators)) ?? (await storeImage(step, found));
  } catch (error) {
    // The origin was asked once; who waits for a twin need not ask again.
    if (error instanceof DeferredError) await step.remember({ contentHash, ...validators, trail: [], robotsTrail: [] });
    throw error;
  }
}

/** What the URL served, and the image behind it: known for so long that the origin is asked whether it is the same. */
interface Stale extends ReadContent {
  readonly record: CrawlUrl;
}

async function knownUrl(step: Step): Promise<{ outcome: CrawlOutcome | null; stale: Stale | null }> {
  const { job, records } = step;
  const facts = await timed(step, 'lookup', () => records.urlFacts(job.tenantId, job.url));
  const own = await ownRecord(step, facts);
  if (own) return { outcome: own, stale: null };
  const refusal = job.force ? null : refusalOf(step, facts);
  if (refusal) return { outcome: await refused(step, refusal), stale: null };
  if (!facts.record || job.force) return { outcome: null, stale: null };
  const { contentHash, rawKey, fetchedAt } = facts.record;
  if (step.revalidateAfterMs === null || Date.now() - fetchedAt < step.revalidateAfterMs) {
    return { outcome: { outcome: 'skipped', reason: 'url', contentHash, rawKey }, stale: null };
  }
  const read = await records.readContent(job.tenantId, contentHash);
  return { outcome: null, stale: read && { record: facts.record, ...read } };
}

/** What the job noted itself when its name did not resolve says nothing to it: somebody has had it run again. */
function refusalOf({ jobId }: Step, { rejection }: UrlFacts): Rejection | null {
  return rejection?.reason === 'dns' && rejection.jobId === jobId ? null : rejection;
}

/** @throws {RetryableError} where it was a failure that is remembered for a while, and no refusal */
async function refused(step: Step, { reason, detail }: Rejection): Promise<CrawlOutcome> {
  if (reason !== 'dns') return { outcome: 'rejected', reason, detail };
  await forgetVisit(step);
  throw new RetryableError('dns', `${detail} (within the last hour)`, { isFinal: true });
}

/** The origin says that the bytes are those of before. */
async function unchanged(step: Step, { record: known, ...read }: Stale): Promise<CrawlOutcome> {
  const { contentHash, rawKey, sourceUrl, jobId, etag, lastModified } = known;
  const image = { url: step.job.url, sourceUrl, contentHash, ...read, validators: { etag, lastModified } };
  const stood = await timed(step, 'record', () => step.records.storeUrl(step.job.tenantId, image, jobId));
  if (!stood) throw new DeferredError(1, 'the tenant was invalidated while the origin was asked for what has changed');
  return { outcome: 'skipped', reason: 'url', contentHash, rawKey };
}

/**
 * The record that an earlier run of this very job wrote before it was cut short: the job stored it, and says so. Somebody
 * else may have written the URL's record since; the content's names who stored it.
 */
async function ownRecord(step: Step, { record }: UrlFacts): Promise<CrawlOutcome | null> {
  const isOwn = record?.jobId === step.jobId;
  if (!record || !(isOwn || step.isRepeat)) return null;
  const { contentHash, rawKey } = record;
  const content = await step.records.content(step.job.tenantId, contentHash);
  const hasStored = content?.jobId === step.jobId;
  if (!isOwn && !hasStored) return null;
  await releaseClaims(step);
  return hasStored
    ? stored(step, contentHash, content)
    : { outcome: 'skipped', reason: 'content', contentHash, rawKey };
}

async function knownContent(step: Step, contentHash: string, validators: Validators): Promise<Kept | null> {
  const { job, records, jobId } = step;
  const read = await timed(step, 'lookup', () => records.readContent(job.tenantId, contentHash));
  if (!read) return null;
  const image = { url: job.url, sourceUrl: job.sourceUrl ?? null, contentHash, ...read, validators };
  const stood = await timed(step, 'record', () => records.storeUrl(job.tenantId, image, jobId));
  if (!stood) return null;
  const { content } = read;
  if (content.jobId === jobId) return stored(step, contentHash, content);
  return { outcome: 'skipped', reason: 'content', contentHash, rawKey: content.rawKey };
}

/** What a run that was cut short held on to: whoever works on the same next need not wait for the leases. */
async function releaseClaims({ claims, job: { tenantId }, jobId: holder }: Step): Promise<void> {
  await claims.releaseAll({ tenantId, holder }).catch(() => undefined);
}

function claiming<T>(
  { claims, leaseMs, jobId: holder, job: { tenantId } }: Step,
  work: (holding: Holding) => Promise<T>,
) {
  return claims.during({ tenantId, holder }, leaseMs, work);
}
