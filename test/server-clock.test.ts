/** What a server's clock says, however long its answer is on its way. */
import { expect, test } from 'vitest';
import { ServerClock } from '../src/server-clock.js';

const STILL_MS = 1_200;

/** As a process that is stopped for a while: nothing of it runs. */
function standStill(ms = STILL_MS): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

/** A clock like ours; while the answers of `slow` are on their way, by their number, this process stands still. */
function clockOf(slow: readonly number[]) {
  const asked: number[] = [];
  const clock = new ServerClock(async () => {
    const seconds = Date.now() / 1_000;
    asked.push(seconds);
    if (slow.includes(asked.length)) standStill();
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

test('where all answers are slow, each question asks once more at most', async () => {
  const { clock, asked } = clockOf([1, 2, 3, 4]);
  await clock.now();
  expect(asked).toHaveLength(1);
  await Promise.all([clock.now(), clock.now(), clock.now()]);
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
