/** A face engine behind the contract whose faces follow from the pixels alone: for tests that are about the pipeline. */
import type { FaceEngine, Pixels } from '../../src/faces/engine.js';
import type { FaceDetection, FaceEmbedding } from '../../src/kinds/faces.js';

export class PuppetEngine implements FaceEngine {
  models = { detection: 'puppet-detector@1', embedding: 'puppet-embedder@1' };
  detections = 0;
  embeddings = 0;
  /** Awaited before each answer: a test's way to hold a job in the middle. */
  gate: (signal?: AbortSignal) => Promise<void> = async () => undefined;

  async detect(image: Pixels, signal?: AbortSignal): Promise<FaceDetection[]> {
    await this.gate(signal);
    this.detections += 1;
    return [{ bbox: [0, 0, image.width, image.height], det_score: 0.5 }];
  }

  async embed(image: Pixels, faces: readonly FaceDetection[], signal?: AbortSignal): Promise<FaceEmbedding[]> {
    await this.gate(signal);
    this.embeddings += 1;
    const embedding = Array.from(image.data.subarray(0, 16), (value) => value / 256);
    return faces.map((face) => ({ ...face, embedding }));
  }

  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}
}
