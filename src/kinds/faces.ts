/** The face records of SPEC's library: InsightFace's shape, boxes in pixels of the upright image. */
import { z } from 'zod';

/** `[x1, y1, x2, y2]` in pixels of the upright image, origin at the top left. */
const box = z.tuple([z.number(), z.number(), z.number(), z.number()]);

export const faceDetection = z.looseObject({
  bbox: box,
  /** Confidence, 0 to 1. */
  det_score: z.number().min(0).max(1),
});

export const faceEmbedding = z.looseObject({
  bbox: box,
  /** The vector, of any length; numbers come back exactly as given. */
  embedding: z.array(z.number()),
  det_score: z.number().min(0).max(1),
});

export type FaceDetection = z.infer<typeof faceDetection>;
export type FaceEmbedding = z.infer<typeof faceEmbedding>;
