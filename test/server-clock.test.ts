/** What a server's clock says, however long its answer is on its way. */
import { expect, onTestFinished, test, vi } from 'vitest';
import { ServerClock } from '../src/server-clock.js';
import { standStill } from './support/stand-still.js';

const STILL_MS = 1_200;

/** A clock like ours; while the answers of `slow` are on their way, by their number, this process stands still. */
function clockOf(slow: readonly number[]) {
  const asked: number[] = [];
  const clock = new ServerClock(async () => {
    const seconds = Date.now() / 1_000;
    asked.push(seconds);
    if (slow.includes(asked.length)) standStill(STILL_MS);
    return seconds;
  });
  return { clock, asked };
}

test('it is asked once and counted on from there', async () => {
  const { clock, asked } = clockOf([]);
  const first = await clock.now();
  standStill(20);
  expect(await clock.now()).toBeGreaterThan(first);
  expect(asked).toHaveLength(1);
});

test('it is not behind by the time for which its reader stood still', async () => {
  const { clock, asked } = clockOf([1]);
  await clock.read();
  expect(await clock.now()).toBeGreaterThanOrEqual((asked[0] as number) + 1);
  expect(asked).toHaveLength(2);
});

test('a slow answer does not take the place of a prompt one', async () => {
  const { clock, asked } = clockOf([2]);
  await clock.read();
  await clock.read();
  expect(await clock.now()).toBeGreaterThanOrEqual((asked[1] as number) + 1);
  expect(asked).toHaveLength(2);
});

test('where all answers are slow, it is asked once more, and no more than that', async () => {
  const { clock, asked } = clockOf([1, 2]);
  await clock.now();
  expect(asked).toHaveLength(1);
  await Promise.all([clock.now(), clock.now(), clock.now()]);
  await clock.now();
  expect(asked).toHaveLength(2);
});

test('where the second question fails, the slow answer counts', async () => {
  let asked = 0;
  const clock = new ServerClock(async () => {
    const seconds = Date.now() / 1_000;
    asked += 1;
    if (asked > 1) throw new Error('away');
    standStill(STILL_MS);
    return seconds;
  });
  const first = await clock.now();
  expect(await clock.now()).toBeGreaterThanOrEqual(first);
  expect(asked).toBe(2);
});

test('after the machine was suspended it is asked anew', async () => {
  const { clock, asked } = clockOf([]);
  const first = await clock.now();
  const now = Date.now;
  onTestFinished(() => void vi.restoreAllMocks());
  // While it is suspended, the clock of the wall goes on, and the monotonic one does not.
  vi.spyOn(Date, 'now').mockImplementation(() => now() + 90_000);
  expect(await clock.now()).toBeGreaterThanOrEqual(first + 89);
  expect(asked).toHaveLength(2);
});

test('a question that fails is asked again', async () => {
  let asked = 0;
  const clock = new ServerClock(async () => {
    asked += 1;
    if (asked === 1) throw new Error('away');
    return Date.now() / 1_000;
  });
  await expect(clock.aheadMs()).rejects.toThrow('away');
  expect(Math.abs(await clock.aheadMs())).toBeLessThan(STILL_MS);
});
