/** Long work lets others have their turn. */
import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { inSlices } from '../../src/http/slices.js';

function busy(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

test('everything is visited, in its order', async () => {
  const seen: [string, number][] = [];
  await inSlices(['a', 'b', 'c'], (thing, index) => {
    busy(6);
    seen.push([thing, index]);
  });
  expect(seen).toEqual([
    ['a', 0],
    ['b', 1],
    ['c', 2],
  ]);
  await inSlices([], () => expect.unreachable());
});

test('others have their turn every few things of a long list', async () => {
  let ended = false;
  const seen: number[] = [];
  const work = inSlices(Array.from({ length: 100 }), (_, index) => {
    busy(1);
    seen.push(index);
  }).then(() => {
    ended = true;
  });
  const between: number[] = [];
  while (!ended) {
    await turn();
    between.push(seen.length);
  }
  await work;
  // 100 ms of work, in slices of 10 ms and the thing that began in them: at least 8 turns, none after more than two slices.
  expect(new Set(between).size).toBeGreaterThan(8);
  expect(Math.max(...between.map((count, i) => count - (between[i - 1] ?? 0)))).toBeLessThanOrEqual(22);
});

test('what goes wrong with one ends it', async () => {
  const work = inSlices([1, 2], () => {
    throw new Error('bad thing');
  });
  await expect(work).rejects.toThrow('bad thing');
});
