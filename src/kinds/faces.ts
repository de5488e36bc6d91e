/** Face detections and embeddings: InsightFace's records, kept per content and model. */
import { z } from 'zod';
import type { KindName } from '../metrics.js';
import { packFaces, unpackFaces } from './face-codec.js';
import { checkContentHash, checkModel, type Kind } from './kind.js';

/** `[x1, y1, x2, y2]` in pixels of the upright image, origin at the top left. */
const box = z.tuple([z.number(), z.number(), z.number(), z.number()]);

/** Fields beyond the known ones are kept, as long as JSON can carry them. */
const faceDetection = z
  .object({
    bbox: box,
    /** Confidence, 0 to 1. */
    det_score: z.number().min(0).max(1),
  })
  .catchall(z.json());

const faceEmbedding = faceDetection.extend({
  /** The vector, of any length. */
  embedding: z.array(z.number()),
});

export const faceDetectionList = z.array(faceDetection);
export const faceEmbeddingList = z.array(faceEmbedding);

/**
 * A face that was found: `bbox` is `[x1, y1, x2, y2]` in pixels of the upright image, origin at the top left; `det_score`
 * the confidence, 0 to 1. Fields beyond these are kept, as long as JSON can carry them.
 */
export type FaceDetection = z.infer<typeof faceDetection>;
/** InsightFace's record: a `FaceDetection` with `embedding`, a vector of any length, which comes back exactly as given. */
export type FaceEmbedding = z.infer<typeof faceEmbedding>;

export interface FacesKey {
  /** SHA-256 of the image's bytes. */
  readonly contentHash: string;
  readonly model: string;
}

export const faceDetections: Kind<FacesKey, FaceDetection[]> = facesKind(
  'face_detection',
  'faceDetection',
  'face_detection_cache',
);

export const faceEmbeddings: Kind<FacesKey, FaceEmbedding[]> = facesKind(
  'face_embedding',
  'embedding',
  'face_embeddings_cache',
);

function facesKind<Face extends FaceDetection>(
  name: KindName,
  ttl: Kind<never, never>['ttl'],
  table: string,
): Kind<FacesKey, Face[]> {
  return {
    name,
    ttl,
    format: 1,
    table: {
      name: table,
      key: [
        { name: 'content_hash', type: 'text' },
        { name: 'model', type: 'text' },
      ],
      columns: [
        { name: 'faces', type: 'integer' },
        { name: 'payload', type: 'bytea' },
      ],
    },
    onConflict: 'replace',
    key: ({ contentHash, model }) => [checkContentHash(contentHash), checkModel(model)],
    encode: packFaces,
    decode: (bytes) => unpackFaces(bytes) as Face[],
    toRow: (faces, bytes) => [faces.length, bytes],
    fromRow: ([, payload]) => unpackFaces(payload as Buffer) as Face[],
    encodedIn: ([, payload]) => payload as Buffer,
  };
}
