/** Images that are embedded more than once: again, at once, by another model, and by a worker whose job was taken over. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import sharp from 'sharp';
import { decodePixels } from '../../../src/images/image.js';
import type { FaceEmbedding } from '../../../src/kinds/faces.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { rawKey } from '../../../src/storage/object-store.js';
import { SAMPLE_PHOTOS, type SampleNumber, samplePhoto } from '../../support/images.js';
import { until } from '../../support/until.js';
import { BUILT_IN_ENGINE, ContentEngine, EMBEDDER_VERSION, ENGINE_MS } from '../app.js';
import { jobsOf } from '../evidence.js';
import { BOTH, type Experiment, type Figures, hold, inLab, must, roomFor, type Trial } from '../experiment.js';
import { counted, metricsOf } from '../figures.js';
import type { Lab } from '../lab.js';
import type { WorkerProcess } from '../worker-process.js';

const TENANT = 'acme';
const PATIENCE_MS = 20 * 60_000;
/** Embeddings that one worker may have under way. */
const WAVE = 250;

/** Has images crawled that nobody embeds yet. @returns their hashes */
async function crawled(lab: Lab, from: number, to: number): Promise<string[]> {
  const known = new Set(await hashesOf(lab));
  await lab.enqueue(Array.from({ length: to - from }, (_, i) => lab.origin.imageUrl(from + i)));
  await lab.emptied('crawl', PATIENCE_MS);
  return (await hashesOf(lab)).filter((hash) => !known.has(hash));
}

async function hashesOf({ servers }: Lab): Promise<string[]> {
  const rows = await servers.sql<{ hash: string }>('select content_hash as hash from crawl_content_cache');
  return rows.map(({ hash }) => hash);
}

async function embeddedBy(...workers: WorkerProcess[]): Promise<number> {
  return counted(await metricsOf(workers), 'embedding_images_total', 'outcome="embedded"');
}

/** Answers of the engine, whether or not the job was the worker's still. */
async function answersOf(worker: WorkerProcess): Promise<number> {
  return counted([await worker.metrics()], 'embedding_stage_duration_seconds_count', 'stage="embed"');
}

/** A worker is frozen in the middle of all its embeddings, another does them, the first one wakes up and answers. */
async function takenOver(
  trial: Trial,
  lab: Lab,
  hashes: readonly string[],
): Promise<{ taken: number; answered: number }> {
  const engineMs = trial.full ? 30_000 : 4_000;
  const late = await lab.worker({
    queues: ['embedding'],
    env: { EMBEDDING_THREADS: String(hashes.length), [ENGINE_MS]: String(engineMs) },
  });
  const withFaces = await facesOf(lab, hashes);
  await until(
    'the worker to be in the middle of all its embeddings',
    async () => {
      return (
        counted([await late.metrics()], 'embedding_stage_duration_seconds_count', 'stage="detect"') >= hashes.length
      );
    },
    PATIENCE_MS,
  );
  const answersAt = Date.now() + engineMs;
  // From the detection to the embedding is one write.
  await pause(trial.full ? 10_000 : 1_000);
  const [before, answered] = [await embeddedBy(late), await answersOf(late)];
  must(before < hashes.length, 'the worker was done before it could be frozen');
  late.signal('SIGSTOP');
  const heir = await lab.worker({ queues: ['embedding'] });
  await lab.settled(PATIENCE_MS);
  const stalled = await stalledJobs(lab, hashes);
  // Its answers are all there when it wakes up: before it can hear that it has lost its jobs.
  await pause(Math.max(0, answersAt + 1_000 - Date.now()));
  late.signal('SIGCONT');
  const inherited = hashes.length - before;
  must(stalled >= withFaces && inherited >= withFaces, `${stalled} jobs were taken over, and not ${withFaces}`);
  // Late answers come at once; those that were stopped in time say nothing.
  await pause(2_000);
  await until('the late worker to be done', async () => {
    const { active } = await lab.app.queues.counts('embedding');
    return active === 0;
  });
  const answeredLate = (await answersOf(late)) - answered;
  must((await embeddedBy(heir)) >= inherited, 'the second worker did not embed what it took over');
  must(answeredLate > 0, 'no answer came after its job was taken over: nothing was tried');
  await Promise.all([late.stop(), heir.stop()]);
  return { taken: stalled, answered: answeredLate };
}

async function stalledJobs(lab: Lab, hashes: readonly string[]): Promise<number> {
  const meant = new Set(hashes);
  const jobs = await jobsOf(lab, 'embedding', 'completed');
  return jobs.filter((job) => job.stalledCounter > 0 && meant.has(job.data.contentHash)).length;
}

/** How many of them have any: the others have no embedding to wait for. */
async function facesOf(lab: Lab, hashes: readonly string[]): Promise<number> {
  const faces = await Promise.all(hashes.map((hash) => expectedFaces(lab, hash, '1')));
  return faces.filter(({ length }) => length > 0).length;
}

async function expectedFaces(lab: Lab, hash: string, version: string): Promise<FaceEmbedding[]> {
  const engine = new ContentEngine(version);
  const bytes = await readFile(join(lab.folder, rawKey(TENANT, hash, 'image/png')));
  const pixels = await decodePixels(bytes, { maxPixels: 1e6 });
  return engine.embed(pixels, await engine.detect(pixels));
}

interface FaceRow {
  readonly hash: string;
  readonly model: string;
  readonly version: string;
}

/** One row of each image and model, with the faces of that image by that model. */
async function facesAreRight(lab: Lab, hashes: readonly string[], versions: readonly string[]): Promise<void> {
  const rows = await faceRows(lab);
  const expected = hashes.length * versions.length;
  must(rows.length === expected, `I2 there are ${rows.length} face sets, and not ${expected}`);
  must(new Set(rows.map(({ hash, model }) => `${hash} ${model}`)).size === expected, 'I2 a face set is doubled');
  for (const version of versions) {
    const { models } = new ContentEngine(version);
    const found = await lab.app.cache.getCachedFaceEmbeddingsBatch(hashes, TENANT, { model: models.embedding });
    for (const [i, hash] of hashes.entries()) {
      const faces = await expectedFaces(lab, hash, version);
      must(
        JSON.stringify(found[i]) === JSON.stringify(faces),
        `I2 the faces of ${hash} by ${models.embedding} are others`,
      );
    }
  }
}

function faceRows({ servers }: Lab): Promise<FaceRow[]> {
  return servers.sql('select content_hash as hash, model, version from face_embeddings_cache order by 1, 2');
}

async function noneFailed({ app }: Lab): Promise<void> {
  const { failed } = await app.queues.counts('embedding');
  must(failed === 0, `I1 ${failed} embedding jobs failed`);
}

const REPEATED: Experiment = {
  id: 'E26',
  title: 'images are embedded by two workers after one another, by three jobs at once, and by another model',
  backends: BOTH,
  run: async (trial) => {
    const figures = await inLab(trial, roomFor(trial), async (lab) => {
      const count = trial.full ? 1_000 : 12;
      await lab.worker({ queues: ['crawl'] });
      const first: string[] = [];
      const late = { 'taken over': 0, 'answered late': 0 };
      while (first.length < count) {
        const wave = await crawled(lab, first.length, Math.min(count, first.length + WAVE));
        first.push(...wave);
        const { taken, answered } = await takenOver(trial, lab, wave);
        late['taken over'] += taken;
        late['answered late'] += answered;
      }
      await facesAreRight(lab, first, ['1']);
      trial.say('taken over');

      // Three jobs of each at once; and then one more, of what is known.
      const second = await crawled(lab, count, 2 * count);
      await lab.embedAsForeigner([...second, ...second]);
      const workers = await lab.workersOf(2, { queues: ['embedding'], env: { EMBEDDING_THREADS: '8' } });
      await lab.settled(PATIENCE_MS);
      await lab.embedAsForeigner([...first, ...second]);
      await lab.settled(PATIENCE_MS);
      const embedded = await embeddedBy(...workers);
      must(embedded === count, `I2 ${count} images that three jobs asked for were embedded ${embedded} times`);
      await Promise.all(workers.map((worker) => worker.stop()));
      const all = [...first, ...second];
      await facesAreRight(lab, all, ['1']);
      trial.say('at once');

      const before = await faceRows(lab);
      const newer = await lab.worker({
        queues: ['embedding'],
        env: { [EMBEDDER_VERSION]: '2', EMBEDDING_THREADS: '8' },
      });
      await until(
        'the sweep to ask for the new model',
        async () => (await faceRows(lab)).length === 4 * count,
        PATIENCE_MS,
      );
      await lab.settled(PATIENCE_MS);
      const known = counted([await newer.metrics()], 'embedding_stage_duration_seconds_count', 'stage="detect"');
      must(known === 0, `${known} images were searched for faces again, though the detector is the same`);
      await newer.stop();
      await facesAreRight(lab, all, ['1', '2']);
      const after = new Set((await faceRows(lab)).map((row) => JSON.stringify(row)));
      must(
        before.every((row) => after.has(JSON.stringify(row))),
        'I2 another model changed the faces of the first',
      );
      await noneFailed(lab);
      return hold(await lab.check({ metrics: () => lab.metrics() }), { images: 2 * count, ...late });
    });
    return trial.full ? { ...figures, ...(await photographs(trial)) } : figures;
  },
};

const PHOTOGRAPHS = 500;
/** Two boxes that share more than this are one face. */
const SAME_FACE = 0.5;

/** Variants of the sample photographs of face-api, each other bytes: sizes, qualities, and mirrored ones. */
async function photograph(i: number): Promise<Buffer> {
  const photo = await samplePhoto(((i % SAMPLE_PHOTOS.length) + 1) as SampleNumber);
  const variant = Math.floor(i / SAMPLE_PHOTOS.length);
  return sharp(photo)
    .resize(640 + 4 * variant)
    .flop(variant % 2 === 1)
    .jpeg({ quality: 70 + (variant % 25) })
    .toBuffer();
}

/** The service's own engine, with real pictures: three jobs of each at once, then one more. */
async function photographs(trial: Trial): Promise<Figures> {
  const env = { [BUILT_IN_ENGINE]: '1', EMBEDDING_THREADS: '1' };
  return inLab(trial, {}, async (lab) => {
    const hashes: string[] = [];
    for (let i = 0; i < PHOTOGRAPHS; i++) {
      const bytes = await photograph(i);
      const hash = sha256(bytes);
      const key = rawKey(TENANT, hash, 'image/jpeg');
      await lab.app.objects.put(key, bytes);
      await lab.app.cache.storeCrawledImage(lab.origin.imageUrl(i), bytes, { rawKey: key }, TENANT);
      hashes.push(hash);
    }
    must(new Set(hashes).size === PHOTOGRAPHS, 'two photographs are the same');
    await lab.embedAsForeigner([...hashes, ...hashes, ...hashes]);
    const workers = await lab.workersOf(2, { queues: ['embedding'], env });
    await lab.settled(2 * 60 * 60_000);
    await lab.embedAsForeigner(hashes);
    await lab.settled(PATIENCE_MS);
    await noneFailed(lab);
    const embedded = await embeddedBy(...workers);
    const rows = await faceRows(lab);
    const model = rows[0]?.model as string;
    must(
      rows.length === PHOTOGRAPHS && new Set(rows.map(({ hash }) => hash)).size === PHOTOGRAPHS,
      `I2 ${rows.length} face sets of ${PHOTOGRAPHS} photographs`,
    );
    must(embedded === PHOTOGRAPHS, `I2 ${PHOTOGRAPHS} photographs were embedded ${embedded} times`);
    const sets = await lab.app.cache.getCachedFaceEmbeddingsBatch(hashes, TENANT, { model });
    const doubled = sets.reduce((sum, faces) => sum + doublesIn(faces ?? []), 0);
    must(doubled === 0, `I2 ${doubled} faces of photographs are doubled`);
    const faces = sets.reduce((sum, set) => sum + (set?.length ?? 0), 0);
    must(faces > PHOTOGRAPHS, `only ${faces} faces were found in ${PHOTOGRAPHS} photographs`);
    return { photographs: PHOTOGRAPHS, 'engine of these': model, 'faces in them': faces };
  });
}

function doublesIn(faces: readonly FaceEmbedding[]): number {
  return faces.filter((one, i) => faces.slice(i + 1).some((other) => overlap(one.bbox, other.bbox) > SAME_FACE)).length;
}

type Box = FaceEmbedding['bbox'];

/** Intersection over union. */
function overlap(a: Box, b: Box): number {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = ([x1, y1, x2, y2]: Box) => (x2 - x1) * (y2 - y1);
  return (width * height) / (area(a) + area(b) - width * height);
}

export const FACE_EXPERIMENTS = [REPEATED];
