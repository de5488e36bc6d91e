/** One deadline for all that a request waits for: what one store took, the next has no more. */
import { performance } from 'node:perf_hooks';
import { within } from '../lifecycle.js';

/** Whoever posts is told within a second that a store is away. */
const POST_MS = 900;
const LATE = Symbol('late');

export class Deadline {
  readonly #end = performance.now() + POST_MS;

  /** What `work` gives. @throws `late`, where the time is over first; the work goes on, and nobody hears of its end */
  async of<T>(work: Promise<T>, late: Error): Promise<T> {
    const result = await within(Math.max(0, this.#end - performance.now()), work, LATE);
    if (result === LATE) throw late;
    return result;
  }
}
