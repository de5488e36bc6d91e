/** What a face search found. Fresh for minutes in Redis; in PostgreSQL until it is overwritten, invalidated or cleaned up. */
import { z } from 'zod';
import { ArgumentError } from '../errors.js';
import { exactJson } from './exact-json.js';
import { checkContentHash, type Kind } from './kind.js';

/** A list of whatever JSON carries, usually one record per match. */
export const searchResults = z.array(z.json());

/** What a face search found, nearest first or however it was given: a list of whatever JSON carries, kept as it is. */
export type SearchResults = z.infer<typeof searchResults>;

export interface SearchKey {
  /** SHA-256 of the bytes of the image that was searched for. */
  readonly contentHash: string;
  /** How many matches were asked for. */
  readonly topK: number;
}

export const searches: Kind<SearchKey, SearchResults> = {
  name: 'search_results',
  ttl: 'search',
  format: 1,
  table: {
    name: 'search_results_cache',
    key: [
      { name: 'content_hash', type: 'text' },
      { name: 'top_k', type: 'integer' },
    ],
    columns: [{ name: 'results', type: 'json' }],
  },
  onConflict: 'replace',
  key: ({ contentHash, topK }) => [checkContentHash(contentHash), checkTopK(topK)],
  encode: (results) => Buffer.from(exactJson(results)),
  decode: (bytes) => parsed(bytes.toString()),
  toRow: (_results, bytes) => [bytes.toString()],
  fromRow: ([results]) => parsed(results as string),
};

function parsed(text: string): SearchResults {
  const results: unknown = JSON.parse(text);
  if (!Array.isArray(results)) throw new RangeError('not a list of search results');
  return results;
}

/** @throws {ArgumentError} */
export function checkTopK(topK: unknown): number {
  if (Number.isInteger(topK) && (topK as number) >= 1 && (topK as number) <= 2_147_483_647) return topK as number;
  throw new ArgumentError('topK', 'expected a whole number from 1 on');
}
