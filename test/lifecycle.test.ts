/** Closing and repeating: order, once, to the end, whatever fails or comes late. */
import { getEventListeners } from 'node:events';
import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Closer, EitherSignal, Periodic, within } from '../src/lifecycle.js';
import { until } from './support/until.js';

/** A promise that a test settles. */
function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

test('what was opened last is closed first, each after the other', async () => {
  const closer = new Closer();
  const seen: string[] = [];
  for (const name of ['a', 'b', 'c']) {
    closer.add(name, name, async (resource) => {
      seen.push(`${resource} begins`);
      await turn();
      seen.push(`${resource} ends`);
    });
  }
  await closer.close();
  expect(seen).toEqual(['c begins', 'c ends', 'b begins', 'b ends', 'a begins', 'a ends']);
});

test('a resource is handed through', () => {
  const resource = { open: true };
  expect(new Closer().add('it', resource, () => undefined)).toBe(resource);
});

test('everything is closed once, however often and at the same time it is asked', async () => {
  const closer = new Closer();
  let times = 0;
  closer.add('it', null, async () => {
    await turn();
    times += 1;
  });
  await Promise.all([closer.close(), closer.close(), closer[Symbol.asyncDispose]()]);
  await closer.close();
  expect(times).toBe(1);
});

test('nothing registered closes too', async () => {
  await expect(new Closer().close()).resolves.toBeUndefined();
});

test('all are attempted when some fail, and the first failure is thrown with its name and cause', async () => {
  const closer = new Closer();
  const seen: string[] = [];
  const failing = (name: string) => () => {
    seen.push(name);
    throw new Error(`${name} broke`);
  };
  closer.add('first', null, failing('first'));
  closer.add('second', null, () => void seen.push('second'));
  closer.add('third', null, async () => failing('third')());
  const failure = await closer.close().catch((error: unknown) => error as Error);
  expect(seen).toEqual(['third', 'second', 'first']);
  expect(failure).toMatchObject({ message: 'closing third failed', cause: { message: 'third broke' } });
  await expect(closer.close()).rejects.toBe(failure);
});

test('what comes while everything closes is closed at once and refused, and closing waits for it', async () => {
  const closer = new Closer();
  const first = gate();
  const late = gate();
  const seen: string[] = [];
  closer.add('first', null, () => first.opened);
  const closing = closer.close();
  expect(() =>
    closer.add('late', null, async () => {
      seen.push('late begins');
      await late.opened;
      seen.push('late ends');
    }),
  ).toThrow('late was opened while everything closes');
  await turn();
  expect(seen).toEqual(['late begins']);
  first.open();
  await closing;
  late.open();
  await closer.close();
  expect(seen).toEqual(['late begins', 'late ends']);
});

test('what comes after a closing that failed is closed all the same', async () => {
  const closer = new Closer();
  closer.add('broken', null, () => Promise.reject(new Error('no')));
  await expect(closer.close()).rejects.toThrow('closing broken failed');
  let closed = false;
  const close = () => {
    closed = true;
  };
  expect(() => closer.add('late', null, close)).toThrow('late was opened');
  await expect(closer.close()).rejects.toThrow('closing broken failed');
  expect(closed).toBe(true);
});

test('a late resource whose closing fails ends no process, and the next to close hears of it', async () => {
  const unheard: unknown[] = [];
  const hear = (error: unknown) => void unheard.push(error);
  process.on('unhandledRejection', hear);
  const closer = new Closer();
  await closer.close();
  expect(() => closer.add('late', null, () => Promise.reject(new Error('no')))).toThrow('late was opened');
  await turn();
  await turn();
  process.off('unhandledRejection', hear);
  expect(unheard).toEqual([]);
  await expect(closer.close()).rejects.toMatchObject({ message: 'closing late failed', cause: { message: 'no' } });
});

test('an answer in time is given, a late one is not waited for, and an error is thrown', async () => {
  expect(await within(60_000, Promise.resolve('answer'), 'late')).toBe('answer');
  expect(await within(1, new Promise(() => undefined), 'late')).toBe('late');
  await expect(within(60_000, Promise.reject(new Error('no')), 'late')).rejects.toThrow('no');
});

test('waiting for an answer leaves no timer behind', async () => {
  const timers = () => process.getActiveResourcesInfo().filter((one) => one === 'Timeout').length;
  const before = timers();
  await within(600_000, Promise.resolve(), null);
  await within(600_000, Promise.reject(new Error()), null).catch(() => undefined);
  expect(timers()).toBe(before);
});

test('a periodic begins at once and goes on, also after a round that failed', async () => {
  let rounds = 0;
  const periodic = new Periodic(1, async () => {
    rounds += 1;
    if (rounds === 2) throw new Error('this round failed');
  }).start();
  expect(rounds).toBe(1);
  await until('some rounds', () => rounds >= 4);
  await periodic.stop();
});

test('stopping waits for the round under way, and none follows', async () => {
  const round = gate();
  let began = 0;
  let ended = 0;
  const periodic = new Periodic(1, async () => {
    began += 1;
    await round.opened;
    ended += 1;
  }).start();
  let stopped = false;
  const stopping = periodic.stop().then(() => {
    stopped = true;
  });
  await turn();
  expect(stopped).toBe(false);
  round.open();
  await stopping;
  expect([began, ended]).toEqual([1, 1]);
  let later = 0;
  const clock = new Periodic(1, async () => void (later += 1)).start();
  await until('others to have had their rounds', () => later > 3);
  await clock.stop();
  expect(began).toBe(1);
});

test('rounds never overlap, however short the time between them', async () => {
  let running = 0;
  let most = 0;
  let rounds = 0;
  const periodic = new Periodic(0, async () => {
    running += 1;
    most = Math.max(most, running);
    await turn();
    running -= 1;
    rounds += 1;
  }).start();
  periodic.start();
  await until('some rounds', () => rounds > 5);
  await periodic.stop();
  expect(most).toBe(1);
});

test('a periodic that was stopped does not begin, and stopping is safe unstarted and twice', async () => {
  let rounds = 0;
  const periodic = new Periodic(1, async () => void (rounds += 1));
  await periodic.stop();
  await Promise.all([periodic.stop(), periodic.stop()]);
  periodic.start();
  expect(rounds).toBe(0);
});

test('a hundred signals that end with another one are no leak, and gone once they are cleared', async () => {
  const warnings: Error[] = [];
  const hear = (warning: Error) => warnings.push(warning);
  process.on('warning', hear);
  try {
    const shutdown = new AbortController();
    const all = Array.from({ length: 100 }, () => new EitherSignal([shutdown.signal]));
    const [kept, ...cleared] = all as [EitherSignal, ...EitherSignal[]];
    for (const one of cleared) one.clear();
    expect(getEventListeners(shutdown.signal, 'abort')).toHaveLength(1);
    shutdown.abort(new Error('the end'));
    expect(kept.signal.reason).toEqual(new Error('the end'));
    expect(cleared.some(({ signal }) => signal.aborted)).toBe(false);
    await turn();
    expect(warnings).toEqual([]);
  } finally {
    process.off('warning', hear);
  }
});
