/** The arguments of the library's methods, checked before anything is read or written. All throw `ArgumentError`. */
import type { z } from 'zod';
import { ArgumentError } from '../errors.js';
import { type FaceEmbedding, type FacesKey, faceEmbeddingList } from '../kinds/faces.js';
import { sha256 } from '../kinds/identity.js';
import { checkContentHash, isSoundText } from '../kinds/kind.js';
import { expectationOf } from '../schema-check.js';

/** An image's bytes, or its SHA-256 as 64 lower-case hex characters. */
export type Content = Uint8Array | string;

export function hashOf(content: Content, argument = 'content'): string {
  return content instanceof Uint8Array ? sha256(content) : checkContentHash(content, argument);
}

/** The model is checked by the kind. */
export function facesKey(content: Content, model: string): FacesKey {
  return { contentHash: hashOf(content), model };
}

/**
 * Of what does not fit, the error names the place: `embeddings[2].bbox`. What fits is given back as it came: of a record,
 * zod's copy lacks a field named `__proto__`.
 */
export function checkList<T>(argument: string, schema: z.ZodType<T>, list: unknown): T {
  const checked = parsed(argument, schema, list);
  if (checked.success) return list as T;
  const [issue] = checked.error.issues;
  const path = (issue?.path ?? [])
    .map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`))
    .join('');
  throw new ArgumentError(`${argument}${path}`, issue?.message ?? 'not valid');
}

/**
 * As `checkList`, where the numbers are in order: zod takes ten times as long to walk a vector, and is asked only how to say
 * what is wrong.
 */
export function checkEmbeddings(argument: string, list: unknown): FaceEmbedding[] {
  const isSound = Array.isArray(list) && list.every((face) => isVector(face?.embedding));
  checkList(argument, faceEmbeddingList, isSound ? list.map((face) => ({ ...face, embedding: [] })) : list);
  return list as FaceEmbedding[];
}

function isVector(numbers: unknown): boolean {
  if (!Array.isArray(numbers)) return false;
  for (let i = 0; i < numbers.length; i++) if (!Number.isFinite(numbers[i])) return false;
  return true;
}

/** JSON may be nested deeper than any program can follow. */
function parsed<T>(argument: string, schema: z.ZodType<T>, list: unknown) {
  try {
    return schema.safeParse(list, { error: expectationOf });
  } catch (error) {
    if (error instanceof RangeError) throw new ArgumentError(argument, 'nested too deeply');
    throw error;
  }
}

export function checkText(argument: string, text: unknown, most = 2_048): string {
  if (typeof text === 'string' && isSoundText(text) && text.length >= 1 && text.length <= most) return text;
  throw new ArgumentError(argument, `expected text of 1 to ${most} characters`);
}

export function optionalText(argument: string, text: unknown): string | null {
  return text === undefined || text === null ? null : checkText(argument, text);
}

/** What is wrong with an element, and not with an argument that all of them share. */
const OF_ELEMENTS: ReadonlySet<string> = new Set(['content', 'imageBytes', 'url']);

/** What `check` makes of each element of a batch. Of one that does not fit, the error names the place: `urls[3]`. */
export function eachOf<T, R>(argument: string, batch: readonly T[], check: (one: T) => R): R[] {
  if (!Array.isArray(batch)) throw new ArgumentError(argument, 'expected a list');
  return Array.from(batch, (one, i) => {
    try {
      return check(one);
    } catch (error) {
      if (!(error instanceof ArgumentError) || !OF_ELEMENTS.has(error.argument)) throw error;
      const field = isRecord(one) ? `.${error.argument}` : '';
      throw new ArgumentError(`${argument}[${i}]${field}`, error.expectation);
    }
  });
}

function isRecord(one: unknown): boolean {
  return typeof one === 'object' && one !== null && !(one instanceof Uint8Array);
}
