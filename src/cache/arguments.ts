/** The arguments of the library's methods, checked before anything is read or written. All throw `ArgumentError`. */
import type { z } from 'zod';
import { ArgumentError } from '../errors.js';
import type { FacesKey } from '../kinds/faces.js';
import { sha256 } from '../kinds/identity.js';
import { checkContentHash, checkModel, isSoundText } from '../kinds/kind.js';

/** An image's bytes, or its SHA-256 as 64 lower-case hex characters. */
export type Content = Uint8Array | string;

export function hashOf(content: Content): string {
  return content instanceof Uint8Array ? sha256(content) : checkContentHash(content);
}

export function facesKey(content: Content, model: string): FacesKey {
  return { contentHash: hashOf(content), model: checkModel(model) };
}

/** Of what does not fit, the error names the place: `embeddings[2].bbox`. */
export function checkList<T>(argument: string, schema: z.ZodType<T>, list: unknown): T {
  const checked = schema.safeParse(list);
  if (checked.success) return checked.data;
  const [issue] = checked.error.issues;
  const path = (issue?.path ?? [])
    .map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`))
    .join('');
  throw new ArgumentError(`${argument}${path}`, issue?.message ?? 'not valid');
}

export function checkText(argument: string, text: unknown, most = 2_048): string {
  if (typeof text === 'string' && isSoundText(text) && text.length >= 1 && text.length <= most) return text;
  throw new ArgumentError(argument, `expected text of 1 to ${most} characters`);
}

export function optionalText(argument: string, text: unknown): string | null {
  return text === undefined || text === null ? null : checkText(argument, text);
}

/** The elements of a batch. */
export function checkBatch<T>(argument: string, batch: readonly T[]): readonly T[] {
  if (Array.isArray(batch)) return batch;
  throw new ArgumentError(argument, 'expected a list');
}
