/** Runs in a worker thread of the built-in engine, where inference may block: the exports are its three jobs. */
import type { Tensor3D } from '@tensorflow/tfjs-core';
import type { FaceDetection, FaceEmbedding } from '../kinds/faces.js';
import type { Pixels } from './engine.js';
import { cropOf, detectionOf, type FoundFace } from './geometry.js';
import { type Box, cropped, inside, type RgbImage, reduced } from './sampling.js';
import { loadModels, type Models } from './tensorflow.js';

/** face-api's own default; below it hands and patterned cloth begin to be faces. */
const MIN_CONFIDENCE = 0.5;

/** Side of the square the detector looks at, whatever it is given. */
const DETECTOR_SIDE = 512;

let loading: Promise<Models> | undefined;

/** All faces, surest first. */
export async function detect({ image }: { image: Pixels }): Promise<FaceDetection[]> {
  const { faceApi } = await models();
  const options = new faceApi.SsdMobilenetv1Options({ minConfidence: MIN_CONFIDENCE });
  const small = reduced(image, DETECTOR_SIDE);
  const located = await withTensor(small, (tensor) => faceApi.nets.ssdMobilenetv1.locateFaces(tensor, options));
  const up = Math.max(image.width, image.height) / Math.max(small.width, small.height);
  const found: FaceDetection[] = [];
  for (const { score, box } of located) {
    const grown = { x: box.x * up, y: box.y * up, width: box.width * up, height: box.height * up };
    found.push(detectionOf(await withLandmarks(image, score, grown), image));
  }
  return found;
}

/** One embedding of 128 float32 numbers for each face, in order. */
export async function embed({ image, faces }: { image: Pixels; faces: FaceDetection[] }): Promise<FaceEmbedding[]> {
  const { faceRecognitionNet } = (await models()).faceApi.nets;
  const embeddings: FaceEmbedding[] = [];
  for (const face of faces) {
    const seen = cropped(image, cropOf(face, image));
    const numbers = await withTensor(seen, (tensor) => faceRecognitionNet.computeFaceDescriptor(tensor));
    embeddings.push({ ...face, embedding: Array.from(numbers) });
  }
  return embeddings;
}

/** How many tensors are alive, weights included: WASM memory is not garbage collected, so a growing count is a leak. */
export async function tensors(): Promise<number> {
  return (await models()).tf.memory().numTensors;
}

async function withLandmarks(image: Pixels, score: number, box: Box): Promise<FoundFace> {
  const { faceLandmark68Net } = (await models()).faceApi.nets;
  const part = inside(box, image);
  const { positions } = await withTensor(cropped(image, part), (tensor) => faceLandmark68Net.detectLandmarks(tensor));
  return { score, box, landmarks: positions.map(({ x, y }) => ({ x: x + part.x, y: y + part.y })) };
}

async function withTensor<T>(image: RgbImage, use: (tensor: Tensor3D) => Promise<T>): Promise<T> {
  const { tf } = await models();
  const tensor = tf.tensor3d(image.data, [image.height, image.width, 3], 'int32');
  try {
    return await use(tensor);
  } finally {
    tensor.dispose();
  }
}

function models(): Promise<Models> {
  loading ??= loadModels();
  return loading;
}
