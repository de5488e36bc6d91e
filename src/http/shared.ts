/** Answers that several callers share for a while: who comes while one is being made waits for it. */

interface Answer {
  readonly made: Promise<unknown>;
  /** When it is too old, by `performance.now()`; counted from when it was there, so that slow ones do not pile up. */
  until: number;
}

/** Answers to keep before those that are too old go. */
const SWEEP_FROM = 500;

export class Shared {
  readonly #answers = new Map<string, Answer>();

  /** What `make` gave for this key, at most `ms` ago. An error is told to those who waited for it, and not kept. */
  get<T>(key: string, ms: number, make: () => Promise<T>): Promise<T> {
    const known = this.#answers.get(key);
    if (known && performance.now() < known.until) return known.made as Promise<T>;
    if (this.#answers.size >= SWEEP_FROM) this.#sweep();
    const made = make();
    const answer: Answer = { made, until: Number.POSITIVE_INFINITY };
    this.#answers.set(key, answer);
    made.then(
      () => {
        answer.until = performance.now() + ms;
      },
      () => this.#answers.delete(key),
    );
    return made;
  }

  #sweep(): void {
    const now = performance.now();
    for (const [key, { until }] of this.#answers) if (until < now) this.#answers.delete(key);
  }
}
