/** Callers of the library who wait for every answer, while PostgreSQL is unable. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { reasonOf } from '../../../src/errors.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { ViolationError } from '../experiment.js';
import type { Lab } from '../lab.js';

/** An image that is recorded, and the number of its content. */
export interface KnownImage {
  readonly content: number;
  readonly hash: string;
  readonly rawKey: string;
  readonly thumbnailKey: string;
}

interface Call {
  readonly method: string;
  readonly ms: number;
}

/** Of each method; more than the library has statements under way at once, so that some wait for their turn. */
const CALLERS = 6;
/** What comes at once goes into one statement. */
const APART_MS = 150;

/** Callers of the library, each of whom waits for its answer. None is ever told of an error. */
export class Callers {
  readonly #calls: Call[] = [];
  readonly #thrown: string[] = [];
  #running: Promise<unknown> = Promise.resolve();
  #stopped = false;
  #count = 0;
  /** What the library called durable: content hashes with faces, and URLs with a record. */
  readonly kept: Readonly<Record<'faces' | 'records', string[]>> = { faces: [], records: [] };

  constructor(
    private readonly lab: Lab,
    private readonly known: KnownImage,
    /** First part of the names that these callers give. */
    private readonly name: string,
  ) {}

  start(): this {
    this.#running = Promise.all(
      Object.entries(this.#methods()).flatMap(([name, call]) =>
        Array.from({ length: CALLERS }, (_, i) => this.#loop(name, call, i * APART_MS)),
      ),
    );
    return this;
  }

  /** @returns the slowest call of each method, in milliseconds */
  async stop(): Promise<Map<string, number>> {
    this.#stopped = true;
    await this.#running;
    if (this.#thrown.length > 0) throw new ViolationError(this.#thrown.slice(0, 5));
    const slowest = new Map<string, number>();
    for (const { method, ms } of this.#calls) slowest.set(method, Math.max(ms, slowest.get(method) ?? 0));
    return slowest;
  }

  #methods(): Record<string, () => Promise<unknown>> {
    const { cache } = this.lab.app;
    const { content, hash, ...keys } = this.known;
    const unknown = () => sha256(`${this.name} ${this.#count++}`);
    const newUrl = () => `${this.lab.origin.imageUrl(content)}?${this.name}=${this.#count++}`;
    const face = { bbox: [0, 0, 1, 1] as [number, number, number, number], det_score: 1, embedding: [1, 2, 3] };
    return {
      getCachedFaceEmbeddings: () => cache.getCachedFaceEmbeddings(unknown(), 'library'),
      cacheFaceEmbeddings: async () => {
        const unseen = unknown();
        if (await cache.cacheFaceEmbeddings(unseen, 'library', [face])) this.kept.faces.push(unseen);
      },
      shouldSkipUrl: () => cache.shouldSkipUrl(newUrl(), 'acme'),
      shouldSkipCrawledImage: () => cache.shouldSkipCrawledImage(newUrl(), hash, 'acme'),
      storeCrawledImage: async () => {
        const url = newUrl();
        if (await cache.storeCrawledImage(url, hash, keys, 'acme')) this.kept.records.push(url);
      },
      findNearDuplicates: () => cache.findNearDuplicates('00ff00ff00ff00ff', 'acme'),
    };
  }

  /** Of what was called durable, what PostgreSQL does not have. */
  async missing(): Promise<string[]> {
    const { servers } = this.lab;
    const faces = await servers.sql<{ name: string }>(
      `select name from unnest($1::text[]) as name where not exists
         (select from face_embeddings_cache where tenant_id = 'library' and content_hash = name)`,
      [this.kept.faces],
    );
    const records = await servers.sql<{ name: string }>(
      `select name from unnest($1::text[]) as name where not exists
         (select from crawl_cache where tenant_id = 'acme' and url = name)`,
      [this.kept.records],
    );
    return [...faces, ...records].map(({ name }) => name);
  }

  async #loop(method: string, call: () => Promise<unknown>, afterMs: number): Promise<void> {
    await pause(afterMs);
    while (!this.#stopped) {
      const started = performance.now();
      try {
        await call();
      } catch (error) {
        this.#thrown.push(`${method} threw ${reasonOf(error)}`);
      }
      this.#calls.push({ method, ms: performance.now() - started });
      await pause(APART_MS);
    }
  }
}
