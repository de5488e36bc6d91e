/** What a crawl job keeps of an image: its objects, its record, and the embedding that follows. */
import type { Fetched, Validators } from '../src/crawl/fetch.js';
import { RetryableError } from '../src/errors.js';
import { type ProcessedImage, processImage } from '../src/images/image.js';
import type { CrawlContent } from '../src/kinds/crawl.js';
import { sha256 } from '../src/kinds/identity.js';
import { rawKey, thumbnailKey } from '../src/storage/object-store.js';
import { type Kept, type Step, timed } from './crawl-step.js';
import { decoding } from './decoding.js';

/** Bytes that the tenant does not have yet. */
export interface NewContent {
  readonly fetched: Fetched;
  readonly contentHash: string;
  readonly validators: Validators;
}

/** Objects first, the record after them: no record is ever without its objects. */
export async function storeImage(step: Step, { fetched, contentHash, validators }: NewContent): Promise<Kept> {
  const { job, records, jobId } = step;
  const processed = await processedOf(step, fetched);
  const content = await storeObjects(step, fetched, contentHash, processed);
  const { phash } = processed;
  const image = { url: job.url, sourceUrl: job.sourceUrl ?? null, contentHash, content, validators, phash };
  const standing = await timed(step, 'record', () => records.store(job.tenantId, image));
  if (standing.jobId === jobId) return stored(step, contentHash, standing, phash);
  return { outcome: 'skipped', reason: 'content', contentHash, rawKey: standing.rawKey };
}

/** The end of a job that stored its image, now or in an earlier run: what follows is made sure of every time. */
export async function stored(step: Step, contentHash: string, content: CrawlContent, phash?: string): Promise<Kept> {
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

/** Who forces a crawl wants all of it to be there: what the object store has lost or damaged is stored again. */
export async function restoreObjects(step: Step, fetched: Fetched, contentHash: string): Promise<void> {
  const content = await step.records.content(step.job.tenantId, contentHash);
  // Recorded through the library: its bytes lie in a store of its user's own.
  if (!content?.jobId) return;
  const isWhole = await timed(step, 'store', async () => {
    const keys = [content.rawKey, thumbnailKey(step.job.tenantId, contentHash)];
    const [raw, thumbnail] = await Promise.all(keys.map((key) => step.objects.get(key))).catch((cause: unknown) => {
      throw new RetryableError('storage', 'the object store did not answer', { cause });
    });
    return raw && thumbnail && sha256(raw) === contentHash;
  });
  if (isWhole) return;
  await storeObjects(step, fetched, contentHash, await processedOf(step, fetched));
}

function processedOf(step: Step, { bytes }: Fetched): Promise<ProcessedImage> {
  return timed(step, 'process', () => decoding(step, () => processImage(bytes, { maxPixels: step.maxPixels })));
}

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
