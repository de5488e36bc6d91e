/** The embedding job: the faces of one stored image, found and embedded once per model. */

import { type Answer, known } from '../src/cache/answer.js';
import type { Claims } from '../src/cache/claims.js';
import type { CrawlRecords } from '../src/cache/crawl-records.js';
import type { HybridCache } from '../src/cache/hybrid.js';
import { entry, lookup } from '../src/cache/tier.js';
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
  const { embeddings } = await knownFaces(step);
  if (embeddings) return cached(step, embeddings);
  const content = await knownContent(step);
  if ('outcome' in content) return content;
  return claimed(step, async () => {
    const byNow = await knownFaces(step);
    if (byNow.embeddings) return cached(step, byNow.embeddings);
    const image = await load(step, content);
    const found = byNow.detections ?? (await detectFaces(step, image));
    const faces = await embedFaces(step, image, found);
    await record(step, faceEmbeddings, step.engine.models.embedding, faces);
    return { outcome: 'embedded', faces: faces.length, model: step.engine.models.embedding };
  });
}

interface KnownFaces {
  readonly detections: FaceDetection[] | null;
  readonly embeddings: FaceEmbedding[] | null;
}

/** Detections are facts of their own, so that a new embedder reuses them. */
async function knownFaces(step: Step): Promise<KnownFaces> {
  const { tenantId, contentHash } = step.job;
  const { detection, embedding } = step.engine.models;
  const looked = [
    lookup(tenantId, faceDetections, { contentHash, model: detection }),
    lookup(tenantId, faceEmbeddings, { contentHash, model: embedding }),
  ];
  const [ofDetector, ofEmbedder] = await timed(step, 'lookup', () => step.hybrid.readMany(looked));
  const embeddings = known(ofEmbedder as Answer<FaceEmbedding[]>);
  // Who has the embeddings needs no detections, not even to know whether there are any.
  return { embeddings, detections: embeddings ? null : known(ofDetector as Answer<FaceDetection[]>) };
}

function cached({ engine }: Step, faces: readonly FaceEmbedding[]): EmbeddingOutcome {
  return { outcome: 'cached', faces: faces.length, model: engine.models.embedding };
}

/** An image that could not be decoded before cannot be now; one that was unknown may have been crawled since. */
async function knownContent({ records, job }: Step): Promise<CrawlContent | Rejected> {
  const { content, rejection } = await records.contentFacts(job.tenantId, job.contentHash);
  if (rejection && rejection.reason !== 'unknown-image') {
    return { outcome: 'rejected', reason: rejection.reason, detail: rejection.detail };
  }
  if (!content) throw new RejectedError('unknown-image', 'the tenant has no image with this content hash');
  return content;
}

async function load(step: Step, content: CrawlContent): Promise<Pixels> {
  return timed(step, 'load', async () => {
    const bytes = await step.objects.get(content.rawKey).catch((cause: unknown) => {
      throw new RetryableError('storage', 'the object store did not give the image', { cause });
    });
    if (!bytes)
      throw new RetryableError('storage', `the object ${content.rawKey} is missing: crawl the image again with force`);
    // Damage done to our copy says nothing about the image, which was decoded once: it is no lasting refusal of it.
    if (sha256(bytes) !== step.job.contentHash) {
      throw new RetryableError('storage', `the object ${content.rawKey} is damaged: crawl the image again with force`);
    }
    return decoding(step, () => decodePixels(bytes, { maxPixels: step.maxPixels }));
  });
}

async function detectFaces(step: Step, image: Pixels): Promise<FaceDetection[]> {
  const found = await timed(step, 'detect', () => computed(step, step.engine.detect(image, step.signal)));
  await record(step, faceDetections, step.engine.models.detection, found);
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

async function record<Faces>(step: Step, kind: Kind<FacesKey, Faces>, model: string, faces: Faces): Promise<void> {
  const { tenantId, contentHash } = step.job;
  const entries = [entry(tenantId, kind, { contentHash, model }, faces)];
  // Never in Redis alone: this job's next run would take that for done, and PostgreSQL would never have it.
  const written = await timed(step, 'record', () => step.hybrid.write(entries, { hotWithoutDurable: false }));
  if (!written.durable) throw new TierUnavailableError('postgres', 'the faces could not be committed');
}

async function claimed(step: Step, work: () => Promise<EmbeddingOutcome>): Promise<EmbeddingOutcome> {
  const { tenantId, contentHash } = step.job;
  return step.claims.during({ tenantId, holder: step.jobId }, step.leaseMs, async (holding) => {
    await holding.take(`faces:${step.engine.models.embedding}:${contentHash}`);
    return work();
  });
}

function timed<T>(step: Step, stage: EmbeddingStage, work: () => Promise<T>): Promise<T> {
  return inStage(step, (seconds) => step.events.embeddingStage(stage, seconds), work);
}
