/** Waits for a condition and not for a time. */
import { setTimeout as pause } from 'node:timers/promises';

/** Between two questions: a tenth of what was waited so far, within these, since a question can be dear. */
const PAUSE_MS = { least: 25, most: 250 };

/** Resolves with the first truthy answer of `question`; rejects, saying what was waited for, after `ms`. */
export async function until<T>(what: string, question: () => Promise<T> | T, ms = 30_000): Promise<NonNullable<T>> {
  const began = Date.now();
  let last: unknown;
  for (let waited = 0; waited < ms; waited = Date.now() - began) {
    try {
      const answer = await question();
      if (answer) return answer;
      last = answer;
    } catch (error) {
      last = error;
    }
    await pause(Math.min(Math.max(PAUSE_MS.least, waited / 10), PAUSE_MS.most));
  }
  throw new Error(`waited ${ms} ms in vain for ${what}; last seen: ${String(last)}`);
}
