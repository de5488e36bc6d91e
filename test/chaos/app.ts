/**
 * The service as a run has it: an engine whose faces follow from the content, and ways to die in the middle of a job.
 * Everything else is the service's own.
 */
import { createHash } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { type App, connect, type Overrides } from '../../src/app.js';
import { type Config, type Env, readEnv } from '../../src/config.js';
import type { FaceEngine, Pixels } from '../../src/faces/engine.js';
import type { FaceDetection, FaceEmbedding } from '../../src/kinds/faces.js';
import { POISON } from './origin.js';

/** Where a worker can be told to die, in the order of a crawl job. */
export const STEPS = [
  'claimed',
  'fetched',
  'raw put',
  'thumbnail put',
  'committed',
  'in Redis',
  'embedding enqueued',
  'acknowledged',
] as const;
export type Step = (typeof STEPS)[number];

/** The variable that names the step at which a process dies, the first time it comes to it. */
export const DIE_AT = 'CHAOS_DIE_AT';

/** The variable that names another version of the embedder. */
export const EMBEDDER_VERSION = 'CHAOS_EMBEDDER_VERSION';
/** The variable that says how many milliseconds an embedding takes, whatever its signal says. */
export const ENGINE_MS = 'CHAOS_ENGINE_MS';
/** The variable that asks for the service's own engine, if it is set. */
export const BUILT_IN_ENGINE = 'CHAOS_BUILT_IN_ENGINE';

/** None, one or two faces; they follow from the pixels, and their vectors from the version too. */
export class ContentEngine implements FaceEngine {
  readonly models: FaceEngine['models'];

  constructor(
    private readonly version = '1',
    private readonly answersAfterMs = 0,
  ) {
    this.models = { detection: 'chaos-detector@1', embedding: `chaos-embedder@${version}` };
  }

  async detect(image: Pixels): Promise<FaceDetection[]> {
    const digest = digestOf(image);
    return Array.from({ length: (digest[0] as number) % 3 }, (_, i) => ({
      bbox: [i, i, image.width - i, image.height - i],
      det_score: (digest[i + 1] as number) / 255,
    }));
  }

  async embed(image: Pixels, faces: readonly FaceDetection[]): Promise<FaceEmbedding[]> {
    if (this.answersAfterMs > 0) await pause(this.answersAfterMs);
    const digest = digestOf(image, this.version);
    return faces.map((face, i) => ({ ...face, embedding: [...digest.subarray(i, i + 16)].map((byte) => byte / 256) }));
  }

  async close(): Promise<void> {}
  async [Symbol.asyncDispose](): Promise<void> {}
}

function digestOf({ data }: Pixels, version = '1'): Buffer {
  return createHash('sha256').update(data).update(version).digest();
}

function engineOf(env: Env): Overrides {
  if (env[BUILT_IN_ENGINE]) return {};
  return { engine: new ContentEngine(env[EMBEDDER_VERSION] || '1', Number(env[ENGINE_MS] || 0)) };
}

/** For jobs that run alone as for all others. */
const ALONE_IN = new URL('./alone-child.js', import.meta.url);

export function openChaosApp(config: Config, overrides: Overrides = {}, step?: Step): App {
  const app = connect(config, { ...engineOf(readEnv()), aloneIn: ALONE_IN, ...overrides });
  return { ...app, objects: deadlyObjects(app.objects, step), ...(step ? dyingAt(step, app) : {}) };
}

function die(): Promise<never> {
  process.kill(process.pid, 'SIGKILL');
  return new Promise(() => undefined);
}

/** An object with some of its methods done by others, which get the method itself. */
function instead<T extends object>(target: T, methods: { [K in keyof T]?: (method: T[K]) => T[K] }): T {
  return new Proxy(target, {
    get: (object, name) => {
      const value = Reflect.get(object, name, object);
      const bound = typeof value === 'function' ? value.bind(object) : value;
      const wrap = methods[name as keyof T];
      return wrap ? wrap(bound) : bound;
    },
  });
}

function deadlyObjects(objects: App['objects'], step?: Step): App['objects'] {
  return instead(objects, {
    put: (put) => async (key, bytes) => {
      if (Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).includes(POISON)) return die();
      const kept = await put(key, bytes);
      const isThumbnail = key.includes('thumb');
      if (step === (isThumbnail ? 'thumbnail put' : 'raw put')) return die();
      return kept;
    },
  });
}

function dyingAt(step: Step, app: App): Partial<App> {
  const { redis } = app.connection.tiers;
  switch (step) {
    case 'claimed':
      return {
        claims: instead(app.claims, {
          during: (during) => (owner, ms, work) =>
            during(owner, ms, (holding) => work({ ...holding, take: (subject) => holding.take(subject).then(die) })),
        }),
      };
    case 'fetched':
      return { events: instead(app.events, { fetched: () => () => void die() }) };
    case 'committed':
    case 'in Redis':
      if (redis) {
        const write = redis.tier.write.bind(redis.tier);
        // Jobs write nothing else: backfills read what is there already.
        redis.tier.write = async (entries, options) => {
          const isRecord = entries.some(({ kind }) => kind.name === 'crawl_content');
          if (isRecord && step === 'committed') return die();
          const refused = await write(entries, options);
          return isRecord ? die() : refused;
        };
      }
      return {};
    case 'embedding enqueued':
      return {
        queues: instead(app.queues, {
          enqueue: (enqueue) => async (contract, payloads) => {
            await enqueue(contract, payloads);
            return die();
          },
        }),
      };
    case 'acknowledged':
      return {
        backend: instead(app.backend, {
          worker: (make) => (name, processor, concurrency) => make(name, processor, concurrency).on('completed', die),
        }),
      };
    default:
      return {};
  }
}
