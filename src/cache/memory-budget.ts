/**
 * How much the cache may still write into a Redis that refuses writes when it is full (`noeviction`): where a queue lives
 * in the same server, it would be refused too. So the cache stops well before that, and where the queue comes to need more
 * than what is left, the cache gives back. A Redis that evicts looks after itself.
 */
import { performance } from 'node:perf_hooks';
import type { Redis } from 'ioredis';
import type { RedisFacts } from '../redis-info.js';
import { HEAD_BYTES, stampOf, TOMBSTONE } from './envelope.js';

/** Of the memory limit; the rest is the queue's. */
const SHARE = 0.7;
/** Where more than this is in use, the cache's entries make room. */
const YIELD_FROM = 0.85;
const YIELD_TO = 0.8;
/** Of what is left, until the server is asked again: other processes write too. */
const HELPING = 0.25;
const FRESH_MS = 1_000;
/** Where less than half a helping is left, the server is asked before the rest is gone. */
const LOW = 0.5;
const LOW_MS = 20;
/** What an entry costs beside its bytes, roughly: the key's object, the dictionary's entries, the lifetime. */
const OVERHEAD_BYTES = 150;

export class MemoryBudget {
  #helping = 0;
  #left = 0;
  #askedAt = Number.NEGATIVE_INFINITY;
  #asking: Promise<void> | undefined;

  constructor(private readonly ask: () => Promise<RedisFacts>) {}

  /** Takes `bytes` from the budget, or says that there is not enough. */
  take(bytes: number): boolean {
    const cost = bytes + OVERHEAD_BYTES;
    const age = performance.now() - this.#askedAt;
    const enough = this.#left >= cost;
    if (enough) this.#left -= cost;
    if (age > (enough && this.#left >= LOW * this.#helping ? FRESH_MS : LOW_MS)) this.#refresh();
    return enough;
  }

  /** The server refused a write for want of memory. */
  exhaust(): void {
    this.#left = 0;
  }

  /** @returns bytes that the cache should give back */
  learn({ policy, memoryLimit, usedMemory }: RedisFacts): number {
    this.#askedAt = performance.now();
    const free = policy === 'noeviction' ? SHARE * memoryLimit - usedMemory : Number.POSITIVE_INFINITY;
    this.#helping = Math.max(0, free * HELPING);
    this.#left = this.#helping;
    const isShort = policy === 'noeviction' && usedMemory > YIELD_FROM * memoryLimit;
    return isShort ? usedMemory - YIELD_TO * memoryLimit : 0;
  }

  /** In the background. Where the server cannot be asked, the guard reports that. */
  #refresh(): void {
    this.#asking ??= this.ask()
      .then((facts) => void this.learn(facts))
      .catch(() => undefined)
      .finally(() => {
        this.#asking = undefined;
      });
  }
}

/** What is under a key; `null` where that is nothing, or a tombstone, which goes by itself. */
type Size = { readonly version: number; readonly bytes: number } | null;

export async function sizesOf(redis: Redis, run: Buffer, keys: readonly string[]): Promise<Size[]> {
  const asked = redis.pipeline();
  for (const key of keys) asked.getrangeBuffer(key, 0, HEAD_BYTES - 1).strlen(key);
  const answers = (await asked.exec()) ?? [];
  return keys.map((_, i) => {
    const [head, length] = [answers[2 * i]?.[1], answers[2 * i + 1]?.[1]];
    if (!Buffer.isBuffer(head) || typeof length !== 'number' || length === 0 || head[24] === TOMBSTONE) return null;
    return { version: stampOf(run, head)?.version ?? 0, bytes: length + OVERHEAD_BYTES };
  });
}

/** The first entries that make up so many bytes, to be dropped: each is older than the version it is given. */
export function fewest(ids: readonly string[], sizes: readonly Size[], most: number) {
  const dropped: { id: string; version: number }[] = [];
  let bytes = 0;
  for (const [i, size] of sizes.entries()) {
    if (bytes >= most) break;
    if (!size) continue;
    bytes += size.bytes;
    dropped.push({ id: ids[i] as string, version: size.version + 1 });
  }
  return { dropped, bytes };
}
