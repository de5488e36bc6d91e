/** `hybrid-cache enqueue`: what a user sees in a pipe and on a terminal, and what a script gets. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { App } from '../src/app.js';
import { DeferredError, RetryableError } from '../src/errors.js';
import { crawlQueue } from '../src/queues/crawl.js';
import { outcomesOf, type WaitState } from '../src/queues/outcomes.js';
import { interruptAt, runCommand, startCommand, startOnTerminal } from './support/command.js';
import { type OwnStack, startOwnStack } from './support/own-stack.js';
import { gate, image, startWork } from './support/queue-work.js';
import { until } from './support/until.js';

/** No test waits as long. */
const LONG_MS = 3_600_000;
const REFUSED = { line: 3, what: 'must be an absolute http or https URL' };

let stack: OwnStack;
let folder: string;

beforeAll(async () => {
  stack = await startOwnStack();
  folder = await mkdtemp(join(tmpdir(), 'hc-enqueue-'));
});

afterAll(async () => {
  await stack?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

const urls = (count: number) => Array.from({ length: count }, (_, n) => image(n).url);

async function list(...lines: readonly string[]): Promise<string> {
  const file = join(folder, 'urls.txt');
  await writeFile(file, lines.join('\n'));
  return file;
}

describe.each([
  { backend: 'redis', more: {} },
  { backend: 'postgres', more: { QUEUE_BACKEND: 'postgres' } },
])('with queues on $backend', ({ more }) => {
  let app: App;
  let env: Record<string, string>;

  beforeEach(async () => {
    env = { ...stack.servers.env, STORAGE_URL: `file:${folder}/objects`, ...more };
    app = stack.app(more);
    for (const queue of app.queues.all) await queue.obliterate({ force: true });
  });

  // Its workers end with it.
  afterEach(() => app.close());

  const enqueue = (file: string, ...args: string[]) => runCommand(['enqueue', file, '--tenant', 'acme', ...args], env);

  test('every good line becomes a job, and the summary tells of the others', async () => {
    const file = await list(...urls(2), 'no url', '', '  ', ...urls(3), 'ftp://example.com/1.jpg');
    const { code, out, err } = await enqueue(file);
    expect(code).toBe(1);
    expect(out.split('\n')).toEqual([
      expect.stringMatching(/^lines +reason +count$/),
      expect.stringMatching(/^enqueued +3$/),
      expect.stringMatching(/^duplicate +the job was there before +2$/),
      expect.stringMatching(/^refused +must be an absolute http or https URL +1$/),
      expect.stringMatching(/^refused +must be an http or https URL +1$/),
      '',
    ]);
    expect(err.split('\n')).toEqual([
      'enqueuing: 9 of 9',
      `refused line 3: ${REFUSED.what}`,
      'refused line 9: must be an http or https URL',
      '',
    ]);
    expect(await app.queues.counts('crawl')).toMatchObject({ prioritized: 3 });
  });

  test('--json is one object on standard output, also of a list that comes through a pipe', async () => {
    await app.queues.enqueue(crawlQueue, [image(0)]);
    const input = `${[...urls(2), 'no url', ...urls(3)].join('\r\n')}\n`;
    const { code, out } = await runCommand(['enqueue', '-', '--tenant', 'acme', '--json'], env, input);
    expect([code, JSON.parse(out)]).toEqual([1, { enqueued: 2, duplicates: 3, refused: [REFUSED] }]);
    const forced = await runCommand(['enqueue', '-', '--tenant', 'acme', '--json', '--force'], env, image(0).url);
    expect([forced.code, JSON.parse(forced.out)]).toEqual([0, { enqueued: 1, duplicates: 0, refused: [] }]);
    const none = await runCommand(['enqueue', '-', '--tenant', 'acme', '--json', '--wait'], env, '');
    expect([none.code, JSON.parse(none.out)]).toEqual([0, { enqueued: 0, duplicates: 0, refused: [], outcomes: [] }]);
  });

  test('--wait counts what became of the jobs, those of others included; one that failed makes it exit with 1', async () => {
    await app.queues.enqueue(crawlQueue, [image(0)]);
    const first = enqueue(await list(...urls(6)), '--wait', '--json');
    await until('all to be enqueued', async () => (await app.queues.counts('crawl')).prioritized === 6);
    startWork(app, async ({ url }) => {
      if (url.endsWith('/1.jpg')) throw new RetryableError('dns', 'no such host', { isFinal: true });
      if (url.endsWith('/2.jpg')) return { outcome: 'rejected', reason: 'gone' };
      if (url.endsWith('/3.jpg')) return { outcome: 'skipped', reason: 'url' };
      return { outcome: 'stored' };
    });
    const { code, out } = await first;
    const { outcomes, ...lines } = JSON.parse(out);
    expect([code, lines]).toEqual([1, { enqueued: 5, duplicates: 1, refused: [] }]);
    expect(outcomes[0]).toEqual({ outcome: 'stored', reason: null, count: 3 });
    expect(outcomes).toHaveLength(4);
    expect(outcomes).toEqual(
      expect.arrayContaining([
        { outcome: 'failed', reason: 'dns', count: 1 },
        { outcome: 'rejected', reason: 'gone', count: 1 },
        { outcome: 'skipped', reason: 'url', count: 1 },
      ]),
    );
    const again = await enqueue(await list(image(4).url, image(5).url), '--wait');
    expect(again.code).toBe(0);
    expect(again.out).toMatch(/\n\noutcome +reason +count\nstored +2\n$/);
  });

  test('on a terminal a bar tells how far it is and what is put off; Ctrl-C ends the command, and the jobs go on', async () => {
    const held = gate();
    let first = true;
    startWork(app, async ({ url }) => {
      if (url.endsWith('/0.jpg') && first) {
        first = false;
        throw new DeferredError(LONG_MS, 'its host is busy');
      }
      if (url.endsWith('/2.jpg')) await held.opened;
      return { outcome: 'stored' };
    });
    await using command = startOnTerminal(['enqueue', await list(...urls(3)), '--tenant', 'acme', '--wait'], env);
    const { code, out } = await interruptAt(command, /crawling █{10}░{20} 1\/3, 1 put off until later/);
    expect([code, out]).toEqual([
      130,
      expect.stringMatching(/\nwaiting +2\r\n[^]*\r\nStopped\. Its 2 jobs go on\.\r\n$/),
    ]);
    held.open();
    await until('the third job to end', async () => (await app.queues.counts('crawl')).completed === 2);
    expect(await app.queues.counts('crawl')).toMatchObject({ delayed: 1 });
  });

  test('a long list goes in by small batches, in its order and turns, and twins find each other across them', async () => {
    const payloads = Array.from({ length: 350 }, (_, n) => image(n === 249 ? 0 : n));
    const queue = app.queues.get('crawl');
    const sizes: number[] = [];
    const addBulk = queue.addBulk.bind(queue);
    queue.addBulk = async (jobs) => {
      sizes.push(jobs.length);
      return addBulk(jobs);
    };
    const enqueued = await app.queues.enqueueTellingTwins(crawlQueue, payloads);
    expect(sizes).toEqual([100, 100, 100, 50]);
    expect(enqueued[249]).toEqual({ id: enqueued[0]?.id, isTwin: true });
    expect(enqueued.filter(({ isTwin }) => isTwin)).toHaveLength(1);
    const inTurn = await queue.getJobs(['prioritized'], 0, -1, true);
    const asGiven = enqueued.filter(({ isTwin }) => !isTwin).map(({ id }) => id);
    expect(inTurn.sort((a, b) => a.priority - b.priority).map(({ id }) => id)).toEqual(asGiven);
    expect(new Set(inTurn.map(({ priority }) => priority)).size).toBe(349);
  });

  test('looks at many jobs at a time, and sees also what ended before it looked, or is not there any more', async () => {
    const ids = await app.queues.enqueue(
      crawlQueue,
      urls(450).map((url) => ({ ...image(0), url })),
    );
    for (const id of ids.slice(0, 20)) await app.queues.get('crawl').remove(id);
    startWork(app, async () => ({ outcome: 'stored' }), { concurrency: 20 });
    await until('half of them to have ended', async () => ((await app.queues.counts('crawl')).completed ?? 0) > 200);
    let [running, most] = [0, 0];
    const job = app.queues.job.bind(app.queues);
    app.queues.job = async (...args) => {
      most = Math.max(most, ++running);
      return job(...args).finally(() => --running);
    };
    const seen: WaitState[] = [];
    const outcomes = await outcomesOf(app.queues, new Set(ids), new AbortController().signal, (state) =>
      seen.push(state),
    );
    expect(outcomes).toEqual([
      { outcome: 'stored', reason: null, count: 430 },
      { outcome: 'removed', reason: null, count: 20 },
    ]);
    expect(most).toBe(200);
    expect(seen.at(-1)).toEqual({ ended: 450, putOff: 0, isAway: false });
  });
});

test('waiting outlasts a queue that does not answer for a while', async () => {
  const app = stack.app();
  for (const queue of app.queues.all) await queue.obliterate({ force: true });
  const ids = await app.queues.enqueue(crawlQueue, [image(0)]);
  await using redis = disposable(new Redis(stack.servers.env.REDIS_URL ?? ''));
  const seen: WaitState[] = [];
  const waiting = outcomesOf(app.queues, new Set(ids), new AbortController().signal, (state) => seen.push(state));
  await redis.client('PAUSE', 3_000);
  await until('it to be noticed', () => seen.some(({ isAway }) => isAway));
  startWork(app, async () => ({ outcome: 'stored' }));
  expect(await waiting).toEqual([{ outcome: 'stored', reason: null, count: 1 }]);
  expect(seen.at(-1)).toMatchObject({ isAway: false });
  await app.close();
});

function disposable(redis: Redis): Redis & AsyncDisposable {
  return Object.assign(redis, { [Symbol.asyncDispose]: async () => redis.disconnect() });
}

describe('a command that is not understood exits with 2, in one line', () => {
  test.each([
    ['a file that is not there', ['nope.txt'], 'hybrid-cache: file: nope.txt does not exist\n'],
    ['a folder', ['.'], 'hybrid-cache: file: . is a folder; expected a list of URLs\n'],
  ])('%s', async (_, args, words) => {
    const { code, out, err } = await runCommand(['enqueue', ...args, '--tenant', 'acme'], {});
    expect([code, out, err]).toEqual([2, '', words]);
  });
});

test('a list that is still open is enqueued no further after SIGTERM', async () => {
  const app = stack.app();
  for (const queue of app.queues.all) await queue.obliterate({ force: true });
  const env = { ...stack.servers.env, STORAGE_URL: `file:${folder}/objects` };
  await using command = startCommand(['enqueue', '-', '--tenant', 'acme', '--json'], env, null);
  command.process.stdin?.write(`${urls(1_500).join('\n')}\n`);
  await until('the first thousand', async () => (await app.queues.counts('crawl')).prioritized === 1_000);
  command.process.kill('SIGTERM');
  const { code, out, err } = await command.ended;
  expect([code, JSON.parse(out)]).toEqual([143, { enqueued: 1_000, duplicates: 0, refused: [] }]);
  expect(err).toMatch(/Stopped\. Its 1,000 jobs go on\.\n$/);
});
