/** Chance that follows from a seed, so that a run can be repeated. */

/** Numbers from 0 to 1 that follow from a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * The numbers of one actor of a run. Actors that go on at the same time draw in an order of their own each: from common
 * numbers each would get what the timing leaves it.
 */
export function randomFor(seed: number, actor: string): () => number {
  let mixed = seed >>> 0;
  for (const character of actor) mixed = Math.imul(mixed ^ (character.codePointAt(0) as number), 0x01000193) >>> 0;
  return randomOf(mixed);
}

/** One of them, by chance. */
export function pick<T>(random: () => number, all: Iterable<T>): T {
  const list = [...all];
  return list[Math.floor(random() * list.length)] as T;
}
