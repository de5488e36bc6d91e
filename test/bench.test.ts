/** How the bench judges; how fast anything is, no test says. */
import { expect, test } from 'vitest';
import { latency, quantileOf, toRow } from '../bench/compare.js';
import { sizesOf } from '../bench/sizing.js';

const lower = { better: 'lower', unit: 'ms' } as const;
const higher = { better: 'higher', unit: '1/s' } as const;

test('a figure is told as a ratio, and judged by its target in the right direction [M34]', () => {
  const row = (ours: number, how: typeof lower | typeof higher) =>
    toRow({ work: 'work', target: 1.5 }, { ours, raw: 2, peers: { cacheable: 8 } }, how);
  expect(row(3, lower)).toMatchObject({ ours: 3, raw: 2, ratio: 1.5, target: 1.5, ok: true, peers: { cacheable: 4 } });
  expect(row(3.1, lower).ok).toBe(false);
  expect(row(3, higher).ok).toBe(true);
  expect(row(2.9, higher).ok).toBe(false);
  expect(toRow({ work: 'work', target: null }, { ours: 100, raw: 1 }, lower).ok).toBe(true);
});

test('a quantile is a sample that was seen', () => {
  expect(quantileOf([3, 1, 2], 0.5)).toBe(2);
  expect(quantileOf([3, 1, 2], 0.99)).toBe(3);
});

test('every contestant does the same work as often', async () => {
  const calls = { ours: 0, raw: 0 };
  const ways = { ours: async () => ++calls.ours, raw: async () => ++calls.raw };
  const row = await latency({ work: 'counting', target: null, turns: 2, ...ways });
  expect(calls.ours).toBe(calls.raw);
  expect(row.ours).toBeGreaterThan(0);
});

test('sizes are whole numbers of images, a hundred thousand and a million unless others are asked for', () => {
  expect(sizesOf(['node', 'main.js', 'sizing'])).toEqual([100_000, 1_000_000]);
  expect(sizesOf(['sizing', '--images=10,20'])).toEqual([10, 20]);
  expect(() => sizesOf(['--images=many'])).toThrow('--images=many');
});
