/** What a schema makes of a value, and what is wrong with it in words for whoever sent it. */
import type { z } from 'zod';

interface FieldProblem {
  /** The path of the first field that does not fit; `payload` where it is the whole. */
  readonly field: string;
  readonly expectation: string;
}

export type Checked<T> =
  | { readonly data: T; readonly problem?: undefined }
  | { readonly data?: undefined; readonly problem: FieldProblem };

export function check<T>(schema: z.ZodType<T>, value: unknown): Checked<T> {
  const { data, error } = schema.safeParse(value, { error: expectationOf });
  if (!error) return { data };
  const [issue] = error.issues;
  return { problem: { field: issue?.path.join('.') || 'payload', expectation: issue?.message ?? 'not valid' } };
}

const UNITS: Readonly<Record<string, string>> = { string: ' characters', array: ' items' };

/** For `safeParse`; `undefined` where zod says it well enough, and a schema's own message comes before it. */
export function expectationOf(issue: z.core.$ZodRawIssue): string | undefined {
  if (issue.code === 'invalid_type') return issue.input === undefined ? 'is required' : `expected ${issue.expected}`;
  const unit = UNITS[String(issue.origin)] ?? '';
  if (issue.code === 'too_small' && issue.inclusive) return `expected ${issue.minimum} or more${unit}`;
  if (issue.code === 'too_big' && issue.inclusive) return `expected ${issue.maximum}${unit} at most`;
  return undefined;
}
