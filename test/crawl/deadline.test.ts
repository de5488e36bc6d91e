/** Time that is up, and time in which this process stood still. */
import { once } from 'node:events';
import { setTimeout as pause } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Deadline } from '../../src/crawl/deadline.js';
import { startSite } from '../support/site.js';
import { standStill } from '../support/stand-still.js';
import { fetcher } from './support.js';

const LATE = () => new Error('late');

test('ends when the time is up', async () => {
  const deadline = new Deadline(20, LATE);
  await once(deadline.signal, 'abort');
  expect(deadline.signal.reason).toEqual(LATE());
});

test('gives once more the time for which this process stood still', async () => {
  const deadline = new Deadline(100, LATE);
  standStill(800);
  await pause(0);
  expect(deadline.signal.aborted).toBe(false);
  await once(deadline.signal, 'abort');
  expect(deadline.signal.reason).toEqual(LATE());
});

test('leaves no timer behind, also where the process stood still', async () => {
  const deadline = new Deadline(100, LATE);
  standStill(800);
  await pause(0);
  deadline.clear();
  await pause(200);
  expect(deadline.signal.aborted).toBe(false);
});

test('an answer that came while the process stood still is no failure of the site', async () => {
  await using site = await startSite();
  await using client = fetcher({ timeoutMs: 400 });
  const fetched = client.fetch(site.put('/a', { body: 'x' }));
  // The site is in this process too: its answer goes out, and is not read before the time is up.
  await site.until(({ requests }) => requests.length > 0);
  standStill(1_200);
  expect((await fetched).bytes.toString()).toBe('x');
});
