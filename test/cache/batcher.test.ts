/** What is gathered into one operation, what waits, and whose error is whose. */
import fc from 'fast-check';
import { beforeEach, expect, test, vi } from 'vitest';
import { Batcher, type BatchOptions } from '../../src/cache/batcher.js';

/** An operation that was begun, and goes on when the test says so. */
interface Begun {
  readonly items: readonly number[];
  answer(): void;
  fail(error: unknown): void;
}

let begun: Begun[];

beforeEach(() => {
  begun = [];
});

/** Answers each item with a text of its own. */
function batcher(options: Partial<BatchOptions> = {}): Batcher<number, string> {
  const run = (items: readonly number[]) =>
    new Promise<string[]>((resolve, reject) => {
      begun.push({ items, answer: () => resolve(items.map(told)), fail: reject });
    });
  return new Batcher(run, { inFlight: 1, most: 10, ...options });
}

const told = (item: number) => `answer to ${item}`;
/** Resolves when everything has run that is due without anybody's answer. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const items = () => begun.map((one) => one.items);

test('who comes alone goes at once, without a timer', async () => {
  const answer = batcher().add([1, 2]);
  await new Promise<void>((resolve) => process.nextTick(resolve));
  expect(items()).toEqual([[1, 2]]);
  begun[0]?.answer();
  expect(await answer).toEqual([told(1), told(2)]);
});

test('what is asked for in one turn of the event loop is one operation, also behind settled promises', async () => {
  const asked = batcher();
  const answers = Promise.all([
    asked.add([1]),
    asked.add([2, 3]),
    Promise.resolve().then(() => asked.add([4])),
    (async () => {
      for (let i = 0; i < 20; i++) await undefined;
      return asked.add([5]);
    })(),
  ]);
  await turn();
  expect(items()).toEqual([[1, 2, 3, 4, 5]]);
  begun[0]?.answer();
  expect(await answers).toEqual([[told(1)], [told(2), told(3)], [told(4)], [told(5)]]);
});

test('what comes while all operations are under way waits for the next one, together', async () => {
  const asked = batcher({ inFlight: 2 });
  const answers = [];
  for (const item of [1, 2, 3, 4, 5]) {
    answers.push(asked.add([item]));
    await turn();
  }
  expect(items()).toEqual([[1], [2]]);
  begun[1]?.answer();
  await turn();
  expect(items()).toEqual([[1], [2], [3, 4, 5]]);
  answers.push(asked.add([6]));
  await turn();
  expect(begun).toHaveLength(3);
  begun[0]?.answer();
  await turn();
  expect(items()).toEqual([[1], [2], [3, 4, 5], [6]]);
  begun[2]?.answer();
  begun[3]?.answer();
  expect(await Promise.all(answers)).toEqual([1, 2, 3, 4, 5, 6].map((item) => [told(item)]));
});

test('a crowd is shared out among the operations that may be under way, and a few are not', async () => {
  const asked = batcher({ inFlight: 2, shareFrom: 4 });
  const few = [1, 2, 3, 4].map((item) => asked.add([item]));
  await turn();
  expect(items()).toEqual([[1, 2, 3, 4]]);
  begun[0]?.answer();
  await Promise.all(few);
  const crowd = [1, 2, 3, 4, 5].map((item) => asked.add([item]));
  await turn();
  expect(items().slice(1)).toEqual([
    [1, 2, 3],
    [4, 5],
  ]);
  begun[1]?.answer();
  begun[2]?.answer();
  expect(await Promise.all(crowd)).toEqual([1, 2, 3, 4, 5].map((item) => [told(item)]));
});

test('an operation has so many items at most, and the rest goes along at once where it may', async () => {
  const asked = batcher({ inFlight: 2, most: 3 });
  const answers = Promise.all([1, 2, 3, 4, 5, 6, 7].map((item) => asked.add([item])));
  await turn();
  expect(items()).toEqual([
    [1, 2, 3],
    [4, 5, 6],
  ]);
  begun[0]?.answer();
  await turn();
  expect(items()[2]).toEqual([7]);
  for (const one of begun) one.answer();
  expect(await answers).toHaveLength(7);
});

test('a call is never torn, however much it brings', async () => {
  const asked = batcher({ most: 3 });
  const calls = [[1, 2], [3, 4], [5, 6, 7, 8, 9], [10]];
  const answers = Promise.all(calls.map((call) => asked.add(call)));
  for (let i = 0; i < calls.length; i++) {
    await turn();
    begun[i]?.answer();
  }
  expect(items()).toEqual(calls);
  expect(await answers).toEqual(calls.map((call) => call.map(told)));
});

test('whatever is asked for, everyone has the answers to what they asked, in order, and no bound is passed', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(fc.nat(1_000), { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 40 }),
      fc.integer({ min: 1, max: 4 }),
      fc.integer({ min: 1, max: 8 }),
      fc.infiniteStream(fc.boolean()),
      async (calls, inFlight, most, coins) => {
        begun = [];
        const asked = batcher({ inFlight, most });
        let answered = 0;
        const answers: Promise<string[]>[] = [];
        for (const call of calls) {
          answers.push(asked.add(call));
          if (coins.next().value) await turn();
          expect(begun.length - answered).toBeLessThanOrEqual(inFlight);
          if (coins.next().value) begun[answered++]?.answer();
        }
        const all = Promise.all(answers);
        let done = false;
        all.then(() => {
          done = true;
        });
        while (!done) {
          for (const one of begun) one.answer();
          await turn();
        }
        expect(await all).toEqual(calls.map((call) => call.map(told)));
        expect(items().flat()).toEqual(calls.flat());
        const largest = Math.max(most, ...calls.map(({ length }) => length));
        for (const one of begun) expect(one.items.length).toBeLessThanOrEqual(largest);
      },
    ),
    { numRuns: 200 },
  );
});

test('an error is everybody’s of that operation, and nobody’s of the next', async () => {
  const asked = batcher();
  const failed = Promise.allSettled([asked.add([1]), asked.add([2])]);
  await turn();
  begun[0]?.fail(new Error('away'));
  expect(await failed).toMatchObject([{ reason: { message: 'away' } }, { reason: { message: 'away' } }]);
  const answer = asked.add([3]);
  await turn();
  begun[1]?.answer();
  expect(await answer).toEqual([told(3)]);
});

test('an error that may be one call’s fault is that one’s alone: the others are tried without it', async () => {
  const asked = batcher({ mayBeOnes: (error) => (error as Error).message === 'refused' });
  const all = Promise.allSettled([asked.add([1]), asked.add([2, 3]), asked.add([4])]);
  await turn();
  begun[0]?.fail(new Error('refused'));
  await turn();
  begun[1]?.answer();
  await turn();
  begun[2]?.fail(new Error('refused'));
  await turn();
  begun[3]?.answer();
  expect(await all).toMatchObject([{ value: [told(1)] }, { reason: { message: 'refused' } }, { value: [told(4)] }]);
  expect(items()).toEqual([[1, 2, 3, 4], [1], [2, 3], [4]]);
});

test('a lone call is not tried again, and neither is what is nobody’s fault', async () => {
  const asked = batcher({ mayBeOnes: (error) => (error as Error).message === 'refused' });
  const lone = asked.add([1]).catch((error: unknown) => error);
  await turn();
  begun[0]?.fail(new Error('refused'));
  expect(await lone).toMatchObject({ message: 'refused' });
  const both = Promise.allSettled([asked.add([2]), asked.add([3])]);
  await turn();
  begun[1]?.fail(new Error('away'));
  expect(await both).toMatchObject([{ reason: { message: 'away' } }, { reason: { message: 'away' } }]);
  expect(begun).toHaveLength(2);
});

test('while calls are tried one by one, what comes waits its turn', async () => {
  const asked = batcher({ mayBeOnes: () => true });
  const all = Promise.allSettled([asked.add([1]), asked.add([2])]);
  await turn();
  begun[0]?.fail(new Error('refused'));
  await turn();
  const later = asked.add([3]);
  await turn();
  expect(items()).toEqual([[1, 2], [1]]);
  begun[1]?.answer();
  await turn();
  begun[2]?.answer();
  await all;
  await turn();
  expect(items()).toEqual([[1, 2], [1], [2], [3]]);
  begun[3]?.answer();
  expect(await later).toEqual([told(3)]);
});

test('an error that is everybody’s is told to those too who have long waited behind it, and not to those who just came', async () => {
  const clock = vi.spyOn(performance, 'now').mockReturnValue(0);
  try {
    const asked = batcher({ isEverybodys: (error) => (error as Error).message === 'away' });
    const outcomes: string[] = [];
    const ask = (item: number) =>
      asked.add([item]).then(
        () => outcomes.push(`${item} answered`),
        (error: Error) => outcomes.push(`${item} ${error.message}`),
      );
    ask(1);
    await turn();
    ask(2);
    clock.mockReturnValue(3_000);
    ask(3);
    begun[0]?.fail(new Error('away'));
    await turn();
    expect(outcomes).toEqual(['1 away', '2 away']);
    expect(items()).toEqual([[1], [3]]);

    // What is one operation's alone is nobody else's, however long they wait.
    ask(4);
    clock.mockReturnValue(9_000);
    begun[1]?.fail(new Error('refused'));
    await turn();
    expect(outcomes.slice(2)).toEqual(['3 refused']);
    begun[2]?.answer();
    await turn();
    expect(outcomes.slice(3)).toEqual(['4 answered']);
  } finally {
    clock.mockRestore();
  }
});

test('an operation that throws before it begins is an error like any other', async () => {
  const asked = new Batcher<number, string>(
    () => {
      throw new TypeError('ours');
    },
    { inFlight: 1, most: 10 },
  );
  await expect(asked.add([1])).rejects.toThrow('ours');
  await expect(asked.add([2])).rejects.toThrow('ours');
});
