/** What a face engine must do, whoever computes: the built-in one is `builtin.ts`, a test's is its own. */
import type { FaceDetection, FaceEmbedding } from '../kinds/faces.js';
import type { FaceModels } from '../kinds/models.js';

/** A decoded, upright image. */
export interface Pixels {
  /** RGB, 8 bits a channel, row by row: `width * height * 3` bytes. */
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
  /** What to multiply a coordinate here by to get one in the full upright image; 1 where nothing was reduced. */
  readonly scale: number;
}

export interface FaceEngine extends AsyncDisposable {
  readonly models: FaceModels;
  /** All faces, boxes in pixels of the full upright image; `[]` where there is none. */
  detect(image: Pixels, signal?: AbortSignal): Promise<FaceDetection[]>;
  /** One embedding for each detection, in order; all fields of the detection are taken over. */
  embed(image: Pixels, faces: readonly FaceDetection[], signal?: AbortSignal): Promise<FaceEmbedding[]>;
  close(): Promise<void>;
}
