import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, describe, expect, it, onTestFinished } from 'vitest';
import { ArgumentError, RetryableError } from '../../src/errors.js';
import { createBuiltInEngine } from '../../src/faces/builtin.js';
import type { Pixels } from '../../src/faces/engine.js';
import { decodePixels } from '../../src/images/image.js';
import type { FaceEmbedding } from '../../src/kinds/faces.js';
import {
  flatImage,
  mirrored,
  recompressed,
  resized,
  SAMPLE_PHOTOS,
  type SampleNumber,
  samplePhoto,
} from '../support/images.js';

/** Inference takes about half a second an image; the first one of a thread loads the models. */
const PATIENCE = { timeout: 120_000 };

/** Faces in sample photographs 1 to 6, counted by eye; photograph 2 shows a third woman in profile. */
const PEOPLE: Record<SampleNumber, number> = { 1: 3, 2: 3, 3: 3, 4: 4, 5: 5, 6: 4 };
const WIDTH = 1920;

const engine = createBuiltInEngine({ threads: 2 });
afterAll(() => engine.close());

describe('the built-in engine', PATIENCE, () => {
  it.each(SAMPLE_PHOTOS)('finds everybody in photograph %i', async (n) => {
    const faces = await facesOf(n);
    expect(faces).toHaveLength(PEOPLE[n]);
    for (const face of faces) {
      const [x1, y1, x2, y2] = face.bbox;
      expect(x1).toBeGreaterThanOrEqual(0);
      expect(y1).toBeGreaterThanOrEqual(0);
      // In pixels of the full photograph, though it was computed at 1,600: heads here are 200 to 300 pixels high.
      expect(x2).toBeLessThanOrEqual(WIDTH);
      expect(y2 - y1).toBeGreaterThan(180);
      expect(y2 - y1).toBeLessThan(360);
      expect(face.det_score).toBeGreaterThan(0.5);
    }
  });

  it('gives five points in InsightFace’s order, inside the box', async () => {
    for (const { bbox, kps } of await facesOf(5)) {
      const [leftEye, rightEye, nose, left, right] = kps as [number, number][];
      expect(leftEye![0]).toBeLessThan(rightEye![0]);
      expect(left![0]).toBeLessThan(right![0]);
      expect(nose![1]).toBeGreaterThan(Math.max(leftEye![1], rightEye![1]));
      expect(nose![1]).toBeLessThan(Math.min(left![1], right![1]));
      expect(nose![0]).toBeGreaterThan(bbox[0]);
      expect(nose![0]).toBeLessThan(bbox[2]);
    }
  });

  it('gives 128 numbers a face, each exactly a float32, taking over the detection', async () => {
    const image = await decoded(await samplePhoto(1));
    const found = await engine.detect(image);
    const embedded = await engine.embed(image, found);
    expect(embedded.map(({ embedding: _, ...detection }) => detection)).toEqual(found);
    for (const { embedding } of embedded) {
      expect(embedding).toHaveLength(128);
      expect(embedding).toEqual([...Float32Array.from(embedding)]);
    }
  });

  it('gives the same numbers for the same image', async () => {
    const image = await decoded(await samplePhoto(3));
    expect(await facesOf(3)).toEqual(await engine.embed(image, await engine.detect(image)));
  });

  it('keeps the order and number of the detections it is given, whatever they look like', async () => {
    const image = await decoded(await samplePhoto(1));
    const { bbox, embedding } = (await facesOf(1))[0] as FaceEmbedding;
    const foreign = [
      { bbox: [1900, 1270, 2500, 1900] as FaceEmbedding['bbox'], det_score: 0.1 },
      { bbox, det_score: 0.9, source: 'elsewhere' },
      { bbox: [5, 5, 5, 5] as FaceEmbedding['bbox'], det_score: 0.2, kps: 'none' },
    ];
    const embedded = await engine.embed(image, foreign);
    expect(embedded.map(({ det_score }) => det_score)).toEqual([0.1, 0.9, 0.2]);
    // Without landmarks the square is guessed from the box: other numbers, still the same face.
    const nearestFace = nearest(await facesOf(1), (face) => distance(face.embedding, embedded[1]!.embedding));
    expect(nearestFace?.embedding).toEqual(embedding);
  });

  it('finds nobody in a flat image', async () => {
    const image = await decoded(await flatImage(640, 480));
    expect(await engine.detect(image)).toEqual([]);
    expect(await engine.embed(image, [])).toEqual([]);
  });

  it.each([
    ['recompressed', false, (photo: Buffer) => recompressed(photo, 40)],
    ['resized to a half', false, (photo: Buffer) => resized(photo, 0.5)],
    ['mirrored', true, mirrored],
  ] as const)('knows each face again in a photograph that was %s', async (_, flipped, change) => {
    const known = (await Promise.all(SAMPLE_PHOTOS.map(facesOf))).flat();
    const recognised = async (n: SampleNumber) => {
      const originals = await facesOf(n);
      const image = await decoded(await change(await samplePhoto(n)));
      const toOriginal = WIDTH / (image.width * image.scale);
      const copies = await embeddedFaces(image);
      expect(copies).toHaveLength(originals.length);
      for (const copy of copies) {
        const centre = centreOf(copy) * toOriginal;
        const own = nearest(originals, (face) => Math.abs(centreOf(face) - (flipped ? WIDTH - centre : centre)));
        expect(nearest(known, (face) => distance(face.embedding, copy.embedding))).toBe(own);
      }
    };
    await Promise.all(SAMPLE_PHOTOS.map(recognised));
  });

  it('leaves no tensor behind', async () => {
    // One thread, so that the thread that counts is the thread that worked.
    await using alone = createBuiltInEngine({ threads: 1 });
    const image = await decoded(await samplePhoto(2));
    const before = await alone.tensors();
    await alone.embed(image, await alone.detect(image));
    expect(await alone.detect(await decoded(await flatImage(64, 48)))).toEqual([]);
    expect(await alone.tensors()).toBe(before);
  });

  it('leaves the caller’s pixels as they were, and takes a part of a larger buffer', async () => {
    const image = await decoded(await samplePhoto(6));
    const larger = Buffer.concat([Buffer.from('before'), image.data, Buffer.from('after')]);
    const part = larger.subarray(6, 6 + image.data.length);
    expect(await engine.detect({ ...image, data: part })).toEqual(await engine.detect(image));
    expect(part.equals(image.data)).toBe(true);
  });
});

describe('the engine’s life', PATIENCE, () => {
  it('stops at an aborted signal and goes on with the next image', async () => {
    await using aborted = createBuiltInEngine({ threads: 1 });
    const image = await decoded(await flatImage(64, 48));
    await expect(aborted.detect(image, AbortSignal.abort())).rejects.toMatchObject({ name: 'AbortError' });
    const controller = new AbortController();
    const running = aborted.detect(image, controller.signal);
    controller.abort();
    await expect(running).rejects.toMatchObject({ name: 'AbortError' });
    expect(await aborted.detect(image)).toEqual([]);
  });

  it('closes unstarted, twice and with work under way, and works no more', async () => {
    const unstarted = createBuiltInEngine({ threads: 2 });
    await Promise.all([unstarted.close(), unstarted.close()]);
    const image = await decoded(await flatImage(64, 48));
    await expect(unstarted.detect(image)).rejects.toThrow(/closed/);
    const busy = createBuiltInEngine({ threads: 1 });
    const running = expect(busy.detect(image)).rejects.toBeInstanceOf(RetryableError);
    await busy.close();
    await running;
  });

  it('says what to do when its thread is not built', async () => {
    await using unbuilt = createBuiltInEngine({ threads: 1, threadFile: new URL('file:///nowhere/thread.js') });
    await expect(unbuilt.detect(await decoded(await flatImage(64, 48)))).rejects.toThrow(/npm run build/);
  });

  it('says why when its thread cannot be loaded, each time, and waits for nothing', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'faces-'));
    onTestFinished(() => rm(folder, { recursive: true }));
    const threadFile = pathToFileURL(join(folder, 'thread.mjs'));
    await writeFile(threadFile, `throw new Error('no models here')`);
    await using broken = createBuiltInEngine({ threads: 2, threadFile });
    const image = await decoded(await flatImage(64, 48));
    const twice = [broken.detect(image), broken.detect(image)];
    for (const call of twice) await expect(call).rejects.toMatchObject({ name: 'RetryableError', reason: 'engine' });
    await expect(broken.detect(image)).rejects.toThrow(/no models here/);
  });

  it('refuses pixels that do not fit their size', async () => {
    const image = await decoded(await flatImage(64, 48));
    await expect(engine.detect({ ...image, width: 65 })).rejects.toBeInstanceOf(ArgumentError);
  });

  it('reports what fails in the thread as worth another attempt, and the thread lives on', async () => {
    const image = await decoded(await flatImage(64, 48));
    const nobody = [null] as unknown as FaceEmbedding[];
    await expect(engine.embed(image, nobody)).rejects.toMatchObject({ name: 'RetryableError', reason: 'engine' });
    expect(await engine.detect(image)).toEqual([]);
  });
});

const computed = new Map<SampleNumber, Promise<FaceEmbedding[]>>();

/** Detections and embeddings of a sample photograph, computed once for all tests here. */
function facesOf(n: SampleNumber): Promise<FaceEmbedding[]> {
  const known = computed.get(n) ?? samplePhoto(n).then(decoded).then(embeddedFaces);
  computed.set(n, known);
  return known;
}

async function embeddedFaces(image: Pixels): Promise<FaceEmbedding[]> {
  return engine.embed(image, await engine.detect(image));
}

function decoded(image: Buffer): Promise<Pixels> {
  return decodePixels(image, { maxPixels: 100_000_000 });
}

function centreOf({ bbox: [x1, , x2] }: FaceEmbedding): number {
  return (x1 + x2) / 2;
}

/** Euclidean, as dlib measures: below 0.6 is called the same person. */
function distance(a: readonly number[], b: readonly number[]): number {
  return Math.sqrt(a.reduce((sum, value, i) => sum + (value - (b[i] ?? Number.NaN)) ** 2, 0));
}

function nearest(faces: readonly FaceEmbedding[], far: (face: FaceEmbedding) => number): FaceEmbedding | undefined {
  return faces.toSorted((a, b) => far(a) - far(b))[0];
}
