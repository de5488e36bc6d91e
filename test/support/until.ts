/** Waits for a condition and not for a time. */
import { setTimeout as pause } from 'node:timers/promises';

/** Resolves with the first truthy answer of `question`; rejects, saying what was waited for, after `ms`. */
export async function until<T>(what: string, question: () => Promise<T> | T, ms = 30_000): Promise<NonNullable<T>> {
  const end = Date.now() + ms;
  let last: unknown;
  while (Date.now() < end) {
    try {
      const answer = await question();
      if (answer) return answer;
      last = answer;
    } catch (error) {
      last = error;
    }
    await pause(25);
  }
  throw new Error(`waited ${ms} ms in vain for ${what}; last seen: ${String(last)}`);
}
