/** Loads face-api and its three networks on TensorFlow.js's WASM backend, without TensorFlow.js's union package. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { compileFunction } from 'node:vm';
import type * as Core from '@tensorflow/tfjs-core';
import type { Box } from './sampling.js';

interface Network {
  loadFromDisk(folder: string): Promise<void>;
}

/** The few things we use of face-api; boxes and points in pixels of the tensor. Its own types need the union package. */
interface FaceApi {
  readonly SsdMobilenetv1Options: new (options: { minConfidence: number }) => object;
  readonly nets: {
    readonly ssdMobilenetv1: Network & {
      locateFaces(image: Core.Tensor3D, options: object): Promise<{ readonly score: number; readonly box: Box }[]>;
    };
    readonly faceLandmark68Net: Network & {
      detectLandmarks(face: Core.Tensor3D): Promise<{ readonly positions: readonly { x: number; y: number }[] }>;
    };
    readonly faceRecognitionNet: Network & { computeFaceDescriptor(face: Core.Tensor3D): Promise<Float32Array> };
  };
}

export interface Models {
  readonly tf: typeof Core;
  readonly faceApi: FaceApi;
}

// All of TensorFlow.js through one `require`: its modules keep their backends in a registry of their own, and the ES
// and CommonJS copies would not see each other's.
const require = createRequire(import.meta.url);

/** Reads about 12 MB of weights; takes about a second. */
export async function loadModels(): Promise<Models> {
  const tf = require('@tensorflow/tfjs-core') as typeof Core;
  addChainedOperators(tf);
  const faceApi = requireFaceApi(tf);
  const wasm = require('@tensorflow/tfjs-backend-wasm') as { setWasmPaths(folder: string): void };
  wasm.setWasmPaths(`${folderOf('@tensorflow/tfjs-backend-wasm')}/dist/`);
  if (!(await tf.setBackend('wasm'))) throw new Error('TensorFlow.js could not start its WASM backend');
  const { ssdMobilenetv1, faceLandmark68Net, faceRecognitionNet } = faceApi.nets;
  const weights = join(folderOf('@vladmandic/face-api'), 'model');
  for (const network of [ssdMobilenetv1, faceLandmark68Net, faceRecognitionNet]) await network.loadFromDisk(weights);
  return { tf, faceApi };
}

/**
 * face-api's build for WASM asks for `@tensorflow/tfjs`, a union of seven packages and 290 MB, of which it uses the
 * core alone. So its one file is compiled here with a `require` that gives it the core instead.
 */
function requireFaceApi(tf: typeof Core): FaceApi {
  const file = require.resolve('@vladmandic/face-api/dist/face-api.node-wasm.js');
  const loaded = { exports: {} };
  const run = compileFunction(readFileSync(file, 'utf8'), ['require', 'module', 'exports'], { filename: file });
  run((name: string) => (name === '@tensorflow/tfjs' ? tf : require(name)), loaded, loaded.exports);
  return loaded.exports as FaceApi;
}

/**
 * The methods on tensors (`a.sub(b)` for `tf.sub(a, b)`) come with the union package: in the core they are optional
 * imports. These eight are what the three networks call, found by counting calls.
 */
function addChainedOperators(tf: typeof Core): void {
  // `as1D()` alone takes no shape: it flattens.
  function reshaped(this: Core.Tensor, ...shape: number[]) {
    return tf.reshape(this, shape.length > 0 ? shape : [this.size]);
  }
  const operators: Record<string, unknown> = { as1D: reshaped, as2D: reshaped, as3D: reshaped, as4D: reshaped };
  for (const name of ['div', 'mean', 'mul', 'sub'] as const) {
    const operator = tf[name] as (...operands: unknown[]) => Core.Tensor;
    operators[name] = function chained(this: Core.Tensor, ...operands: unknown[]) {
      return operator(this, ...operands);
    };
  }
  Object.assign(tf.Tensor.prototype, operators);
}

function folderOf(packageName: string): string {
  return dirname(require.resolve(`${packageName}/package.json`));
}
