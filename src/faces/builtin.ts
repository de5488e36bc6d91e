/**
 * The built-in face engine: a pool of threads with one set of models each. Inference is synchronous WASM, about half a
 * second an image; on the main thread it would stop lock renewal, health checks and everything else.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Piscina } from 'piscina';
import { ArgumentError, RetryableError, reasonOf } from '../errors.js';
import type { FaceDetection, FaceEmbedding } from '../kinds/faces.js';
import { BUILT_IN_MODELS } from '../kinds/models.js';
import type { FaceEngine, Pixels } from './engine.js';

export interface BuiltInEngineOptions {
  /** How many images are computed at once. Each thread takes about 400 MB once it has worked. */
  threads: number;
  /** The compiled `builtin-thread.js`; default: the one beside this file. */
  threadFile?: URL | undefined;
}

export interface BuiltInEngine extends FaceEngine {
  /** How many tensors are alive in one of the threads, weights included; it must not grow from image to image. */
  tensors(): Promise<number>;
}

/**
 * Nothing is loaded and no thread started before the first image; threads then stay, because loading takes a second.
 *
 * Both calls reject with an `AbortError` once their signal aborts (work that is under way ends with its thread, and the
 * next call pays for a new one), with RetryableError `engine` for what else goes wrong, and with a plain Error when the
 * thread's file has not been built.
 */
export function createBuiltInEngine({ threads, threadFile = compiledThread() }: BuiltInEngineOptions): BuiltInEngine {
  return new PooledEngine(threads, fileURLToPath(threadFile));
}

class PooledEngine implements BuiltInEngine {
  readonly models = BUILT_IN_MODELS;
  readonly #threads: number;
  readonly #file: string;
  #pool: Piscina | undefined;
  /** Why a pool was given up: its waiting work only hears that threads were ended. */
  readonly #broken = new WeakMap<Piscina, unknown>();
  #closing: Promise<void> | undefined;

  constructor(threads: number, file: string) {
    this.#threads = threads;
    this.#file = file;
  }

  async detect(image: Pixels, signal?: AbortSignal): Promise<FaceDetection[]> {
    return this.#run('detect', { image: posted(image) }, signal);
  }

  async embed(image: Pixels, faces: readonly FaceDetection[], signal?: AbortSignal): Promise<FaceEmbedding[]> {
    if (faces.length === 0) return [];
    return this.#run('embed', { image: posted(image), faces }, signal);
  }

  tensors(): Promise<number> {
    return this.#run('tensors', undefined);
  }

  /** Ends the threads. Work that is under way rejects; whoever wants it finished waits for it first. */
  close(): Promise<void> {
    this.#closing ??= this.#pool?.destroy() ?? Promise.resolve();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #run<T>(name: string, input: unknown, signal?: AbortSignal): Promise<T> {
    if (this.#closing) throw new RetryableError('engine', 'the face engine is closed');
    const pool = this.#started();
    try {
      return await pool.run(input, { name, signal: signal ?? null });
    } catch (error) {
      if (error instanceof Error && error.name === 'AbortError') throw error;
      const cause = this.#broken.get(pool) ?? error;
      throw new RetryableError('engine', reasonOf(cause), { cause });
    }
  }

  #started(): Piscina {
    if (this.#pool) return this.#pool;
    if (!existsSync(this.#file)) {
      throw new Error(`The face engine's thread is not built: ${this.#file} is missing, run "npm run build"`);
    }
    const pool = new Piscina({
      filename: this.#file,
      minThreads: 0,
      maxThreads: this.#threads,
      // Two images in one thread would only share its time, and double its memory.
      concurrentTasksPerWorker: 1,
      idleTimeout: Number.POSITIVE_INFINITY,
    });
    // Where a thread dies with its work, the work rejects and the thread is replaced. Where it dies without, as when it
    // cannot even be loaded, the pool says so here (unheard, that ends the process) and lets all work wait for ever.
    pool.on('error', (error: unknown) => this.#discard(pool, error));
    this.#pool = pool;
    return pool;
  }

  /** Rejects all that waits in a broken pool; the next call starts a new one. */
  #discard(pool: Piscina, error: unknown): void {
    this.#broken.set(pool, error);
    if (this.#pool === pool) this.#pool = undefined;
    void pool.destroy();
  }
}

/**
 * What is posted to a thread, which gets its own copy (0.6 ms for 5 MB; through shared memory it would be 5.4) while
 * the caller keeps the pixels for the next call. A view is copied first: posting it would send all that lies behind it.
 */
function posted({ data, width, height, scale }: Pixels): Pixels {
  if (data.byteLength !== width * height * 3) throw new ArgumentError('image', 'must hold width x height x 3 bytes');
  const whole = data.byteLength === data.buffer.byteLength;
  return { data: whole ? data : new Uint8Array(data), width, height, scale };
}

/** Threads run compiled code only: beside this file, or in `dist/` while this file itself runs as TypeScript (tests). */
function compiledThread(): URL {
  const compiled = !import.meta.url.endsWith('.ts');
  return new URL(compiled ? './builtin-thread.js' : '../../dist/src/faces/builtin-thread.js', import.meta.url);
}
