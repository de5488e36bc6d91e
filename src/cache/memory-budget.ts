/**
 * How much the cache may still write into a Redis that refuses writes when it is full (`noeviction`): where a queue lives
 * in the same server, it would be refused too. So the cache stops well before that. A Redis that evicts looks after
 * itself.
 */
import { performance } from 'node:perf_hooks';
import type { RedisFacts } from '../redis-info.js';

/** Of the memory limit; the rest is the queue's. */
const SHARE = 0.7;
/** Of what is left, until the server is asked again: other processes write too. */
const HELPING = 0.25;
const FRESH_MS = 1_000;
const RETRY_MS = 20;
/** What an entry costs beside its bytes, roughly: the key's object, the dictionary's entries, the lifetime. */
const OVERHEAD_BYTES = 150;

export class MemoryBudget {
  #left = 0;
  #askedAt = Number.NEGATIVE_INFINITY;
  #asking: Promise<void> | undefined;

  constructor(private readonly ask: () => Promise<RedisFacts>) {}

  /** Takes `bytes` from the budget, or says that there is not enough. */
  take(bytes: number): boolean {
    const cost = bytes + OVERHEAD_BYTES;
    const age = performance.now() - this.#askedAt;
    const enough = this.#left >= cost;
    if (age > (enough ? FRESH_MS : RETRY_MS)) this.#refresh();
    if (!enough) return false;
    this.#left -= cost;
    return true;
  }

  /** The server refused a write for want of memory. */
  exhaust(): void {
    this.#left = 0;
  }

  learn(facts: RedisFacts): void {
    this.#askedAt = performance.now();
    const free =
      facts.policy === 'noeviction' ? SHARE * facts.memoryLimit - facts.usedMemory : Number.POSITIVE_INFINITY;
    this.#left = Math.max(0, free * HELPING);
  }

  /** In the background. Where the server cannot be asked, the guard reports that. */
  #refresh(): void {
    this.#asking ??= this.ask()
      .then((facts) => this.learn(facts))
      .catch(() => undefined)
      .finally(() => {
        this.#asking = undefined;
      });
  }
}
