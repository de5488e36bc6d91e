/** The embedding job: the faces of one stored image, found and embedded once per model. */

import { type Answer, known } from '../src/cache/answer.js';
import type { Claims } from '../src/cache/claims.js';
import type { CrawlRecords } from '../src/cache/crawl-records.js';
import type { HybridCache } from '../src/cache/hybrid.js';
import { entry } from '../src/cache/tier.js';
import { RejectedError, RetryableError, TierUnavailableError } from '../src/errors.js';
import type { Events } from '../src/events.js';
import type { FaceEngine, Pixels } from '../src/faces/engine.js';
import { decodePixels } from '../src/images/image.js';
import type { CrawlContent } from '../src/kinds/crawl.js';
import {
  type FaceDetection,
  type FaceEmbedding,
  type FacesKey,
  faceDetections,
  faceEmbeddings,
} from '../src/kinds/faces.js';
import { sha256 } from '../src/kinds/identity.js';
import type { Kind } from '../src/kinds/kind.js';
import type { EmbeddingStage } from '../src/metrics.js';
import type { EmbeddingPayload } from '../src/queues/embedding.js';
import type { ObjectStore } from '../src/storage/object-store.js';
import { decoding } from './decoding.js';
import { inStage, orRejected, type Rejected, type Run } from './run.js';

export type EmbeddingOutcome =
  | { readonly outcome: 'embedded' | 'cached'; readonly faces: number; readonly model: string }
  | Rejected;

export interface EmbeddingTools {
  readonly hybrid: HybridCache;
  readonly records: CrawlRecords;
  readonly claims: Claims;
  readonly objects: ObjectStore;
  readonly engine: FaceEngine;
  readonly events: Events;
  readonly maxPixels: number;
  readonly leaseMs: number;
}

interface Step extends EmbeddingTools, Run {
  readonly job: EmbeddingPayload;
}

export async function embed(job: EmbeddingPayload, run: Run, tools: EmbeddingTools): Promise<EmbeddingOutcome> {
  const step: Step = { ...tools, ...run, job };
  const { tenantId, contentHash } = job;
  return orRejected(
    () => embedImage(step),
    (refusal) => step.records.reject(tenantId, { contentHash }, { ...refusal, jobId: run.jobId }),
  );
}

async function embedImage(step: Step): Promise<EmbeddingOutcome> {
  const known = (await knownEmbeddings(step)) ?? (await knownRejection(step));
  if (known) return known;
  const content = await knownContent(step);
  return claimed(step, async () => {
    const knownByNow = await knownEmbeddings(step);
    if (knownByNow) return knownByNow;
    const image = await load(step, content);
    const found = await detectFaces(step, image);
    const faces = await embedFaces(step, image, found);
    await record(step, faceEmbeddings, step.engine.models.embedding, faces);
    return { outcome: 'embedded', faces: faces.length, model: step.engine.models.embedding };
  });
}

async function knownEmbeddings(step: Step): Promise<EmbeddingOutcome | null> {
  const faces = await lookUp(step, faceEmbeddings, step.engine.models.embedding);
  return faces && { outcome: 'cached', faces: faces.length, model: step.engine.models.embedding };
}

/** An image that could not be decoded before cannot be now; one that was unknown may have been crawled since. */
async function knownRejection({ records, job }: Step): Promise<EmbeddingOutcome | null> {
  const rejection = await records.contentRejection(job.tenantId, job.contentHash);
  if (!rejection || rejection.reason === 'unknown-image') return null;
  return { outcome: 'rejected', reason: rejection.reason, detail: rejection.detail };
}

async function knownContent({ records, job }: Step): Promise<CrawlContent> {
  const content = await records.content(job.tenantId, job.contentHash);
  if (!content) throw new RejectedError('unknown-image', 'the tenant has no image with this content hash');
  return content;
}

async function load(step: Step, content: CrawlContent): Promise<Pixels> {
  return timed(step, 'load', async () => {
    const bytes = await step.objects.get(content.rawKey).catch((cause: unknown) => {
      throw new RetryableError('storage', 'the object store did not give the image', { cause });
    });
    if (!bytes) throw new RetryableError('storage', 'the object of a recorded image is missing');
    // Damage done to our copy says nothing about the image, which was decoded once: it is no lasting refusal of it.
    if (sha256(bytes) !== step.job.contentHash) {
      throw new RetryableError('storage', 'the object of a recorded image is damaged');
    }
    return decoding(step, () => decodePixels(bytes, { maxPixels: step.maxPixels }));
  });
}

/** Detections are facts of their own, so that a new embedder reuses them. */
async function detectFaces(step: Step, image: Pixels): Promise<FaceDetection[]> {
  const model = step.engine.models.detection;
  const known = await lookUp(step, faceDetections, model);
  if (known) return known;
  const found = await timed(step, 'detect', () => computed(step, step.engine.detect(image, step.signal)));
  await record(step, faceDetections, model, found);
  return found;
}

async function embedFaces(step: Step, image: Pixels, found: FaceDetection[]): Promise<FaceEmbedding[]> {
  if (found.length === 0) return [];
  return timed(step, 'embed', () => computed(step, step.engine.embed(image, found, step.signal)));
}

async function computed<T>({ signal }: Step, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (signal.aborted || error instanceof RejectedError) throw error;
    throw new RetryableError('engine', 'the face engine failed', { cause: error });
  }
}

async function lookUp<Faces>(step: Step, kind: Kind<FacesKey, Faces>, model: string): Promise<Faces | null> {
  const { tenantId, contentHash } = step.job;
  const answer: Answer<Faces> = await timed(step, 'lookup', () =>
    step.hybrid.read(tenantId, kind, { contentHash, model }),
  );
  return known(answer);
}

async function record<Faces>(step: Step, kind: Kind<FacesKey, Faces>, model: string, faces: Faces): Promise<void> {
  const { tenantId, contentHash } = step.job;
  const entries = [entry(tenantId, kind, { contentHash, model }, faces)];
  // Never in Redis alone: this job's next run would take that for done, and PostgreSQL would never have it.
  const written = await timed(step, 'record', () => step.hybrid.write(entries, { hotWithoutDurable: false }));
  if (!written.durable) throw new TierUnavailableError('postgres', 'the faces could not be committed');
}

async function claimed(step: Step, work: () => Promise<EmbeddingOutcome>): Promise<EmbeddingOutcome> {
  const { tenantId, contentHash } = step.job;
  const subject = `faces:${step.engine.models.embedding}:${contentHash}`;
  return step.claims.hold({ tenantId, subject, holder: step.jobId }, step.leaseMs, work);
}

function timed<T>(step: Step, stage: EmbeddingStage, work: () => Promise<T>): Promise<T> {
  return inStage(step, (seconds) => step.events.embeddingStage(stage, seconds), work);
}
