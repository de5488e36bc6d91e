/** What a program keeps in the library, while it is damaged. */
import { type Lookup, lookup } from '../../../src/cache/tier.js';
import { type FaceEmbedding, faceEmbeddings } from '../../../src/kinds/faces.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { perceptualHashes } from '../../../src/kinds/perceptual-hash.js';
import { searches } from '../../../src/kinds/search-results.js';
import { must } from '../experiment.js';
import type { Lab } from '../lab.js';

/** Whose facts they are. */
export const TENANT = 'library';
const TOP_K = 10;

/** As many of each kind. */
export class Facts {
  readonly hashes: readonly string[];
  readonly #model: string;

  constructor(
    private readonly lab: Lab,
    count: number,
  ) {
    this.hashes = Array.from({ length: count }, (_, i) => sha256(`fact ${i}`));
    this.#model = lab.app.models.embedding;
  }

  get faces(): readonly Lookup[] {
    return this.hashes.map((contentHash) => lookup(TENANT, faceEmbeddings, { contentHash, model: this.#model }));
  }

  get searches(): readonly Lookup[] {
    return this.hashes.map((contentHash) => lookup(TENANT, searches, { contentHash, topK: TOP_K }));
  }

  get phashes(): readonly Lookup[] {
    return this.hashes.map((contentHash) => lookup(TENANT, perceptualHashes, contentHash));
  }

  async write(): Promise<void> {
    const { cache } = this.lab.app;
    const kept = await Promise.all(
      this.hashes.flatMap((hash) => [
        cache.cacheFaceEmbeddings(hash, TENANT, facesOf(hash)),
        cache.cacheSearchResults(hash, TENANT, TOP_K, resultsOf(hash)),
        cache.cachePerceptualHash(hash, TENANT, phashOf(hash)),
      ]),
    );
    must(kept.every(Boolean), 'a fact was not kept');
  }

  /** How many answers are right, and how many are `null`; another answer is a violation. */
  async read(): Promise<{ right: number; unknown: number }> {
    const { cache } = this.lab.app;
    const told = await Promise.all([
      cache.getCachedFaceEmbeddingsBatch(this.hashes, TENANT),
      cache.getCachedSearchResultsBatch(this.hashes, TENANT, TOP_K),
      cache.getCachedPerceptualHashBatch(this.hashes, TENANT),
    ]);
    const answers = told.flat();
    const truth = [facesOf, resultsOf, phashOf].flatMap((of) => this.hashes.map((hash) => of(hash)));
    const right = answers.filter((answer, i) => JSON.stringify(answer) === JSON.stringify(truth[i])).length;
    const unknown = answers.filter((answer) => answer === null).length;
    must(right + unknown === answers.length, `${answers.length - right - unknown} answers are neither right nor null`);
    return { right, unknown };
  }
}

function facesOf(hash: string): FaceEmbedding[] {
  const bytes = Buffer.from(hash, 'hex');
  return [{ bbox: [1, 2, 30, 40], det_score: 0.5, embedding: [...bytes].map((byte) => byte / 256) }];
}

function resultsOf(hash: string) {
  return [{ id: hash, score: 0.5 }];
}

function phashOf(hash: string): string {
  return hash.slice(0, 16);
}
