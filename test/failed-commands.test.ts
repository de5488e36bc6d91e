/** `hybrid-cache failed`: what an operator reads on a terminal or in a pipe, and what a script gets. */
import { execFile } from 'node:child_process';
import { resolve } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { App } from '../src/app.js';
import { FAILURE_REASONS, RetryableError } from '../src/errors.js';
import { startCommand } from './support/command.js';
import { type OwnStack, startOwnStack } from './support/own-stack.js';
import { image, startWork } from './support/queue-work.js';
import { until } from './support/until.js';

const CLI = resolve('dist/src/cli.js');
const HEADS = /^failed at +queue +reason +attempts +tenant +job +image, or what is wrong$/;

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

let stack: OwnStack;

beforeAll(async () => {
  stack = await startOwnStack();
});

afterAll(() => stack?.[Symbol.asyncDispose]());

/** Runs the command with the configuration of this file's servers, and `env` over it. */
function hybridCache(args: readonly string[], env: Record<string, string> = {}): Promise<Ended> {
  const options = { env: { PATH: process.env.PATH, ...stack.servers.env, STORAGE_URL: 'file:./unused', ...env } };
  return new Promise((done) => {
    execFile(process.execPath, [CLI, ...args], options, (error, out, err) =>
      done({ code: error ? Number(error.code) : 0, out, err }),
    );
  });
}

describe.each([
  { backend: 'redis', env: {} },
  { backend: 'postgres', env: { QUEUE_BACKEND: 'postgres' } },
])('with queues on $backend', ({ env }) => {
  let app: App;

  beforeEach(async () => {
    app = stack.app(env);
    for (const queue of app.queues.all) await queue.obliterate({ force: true });
  });

  /** One job of each error, all at one image's host and with a signed URL, failed by now. */
  async function fail(...errors: Error[]): Promise<void> {
    const worker = startWork(app, async ({ url }) => {
      throw errors[Number(/\/(\d+)\.jpg/.exec(url)?.[1])];
    });
    for (const n of errors.keys()) {
      const payload = image(n, { tenantId: n % 2 ? 'globex' : 'acme' });
      const signed = { ...payload, url: `${payload.url}?signature=hush-hush` };
      await app.queues.get('crawl').add('crawl', signed, { attempts: 1, jobId: `job-${n}` });
    }
    await until('all have failed', async () => (await app.queues.counts('crawl')).failed === errors.length);
    await worker.close();
  }

  test('list prints counts by reason and by host, then the newest jobs, and no query of a URL', async () => {
    await fail(new RetryableError('timeout', 'a'), new RetryableError('timeout', 'b'), new TypeError('c'));
    await app.queues.get('crawl').add('crawl', { v: 1, tenantId: 'acme', url: 'no' }, { jobId: 'job-\u001b[31m' });
    const worker = startWork(app, async () => ({ outcome: 'stored' }));
    await until('the malformed one has failed', async () => (await app.queues.counts('crawl')).failed === 4);
    await worker.close();

    const { code, out, err } = await hybridCache(['failed', 'list', '--limit', '2'], env);

    expect([code, err]).toEqual([0, '']);
    const lines = out.split('\n');
    expect(lines[0]).toMatch(/^reason +failed$/);
    expect(lines[1]).toMatch(/^timeout +2$/);
    expect(lines.slice(2, 4).sort()).toEqual([
      expect.stringMatching(/^internal +1$/),
      expect.stringMatching(/^invalid-payload +1$/),
    ]);
    expect(lines.slice(4, 8)).toEqual([
      '',
      expect.stringMatching(/^host +failed$/),
      expect.stringMatching(/^example\.com +3$/),
      '',
    ]);
    expect(lines[8]).toMatch(HEADS);
    expect(lines[9]).toMatch(
      /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +crawl +invalid-payload +1 +acme +job-\?\[31m +invalid-payload: url: ./,
    );
    expect(lines[10]).toMatch(/^\d{4}-\S+Z +crawl +internal +1 +acme +job-2 +example\.com\/2\.jpg$/);
    expect(lines.slice(11)).toEqual(['and 2 older', '']);
    expect(out).not.toMatch(/hush|\u001b/);
  });

  test('list --json is one object, filtered as asked', async () => {
    await fail(new RetryableError('dns', 'a'), new RetryableError('dns', 'b'), new RetryableError('storage', 'c'));
    const filters = ['--queue', 'crawl', '--reason', 'dns', '--host', 'EXAMPLE.com', '--tenant', 'globex'];
    const { code, out, err } = await hybridCache(['failed', 'list', ...filters, '--json'], env);
    expect([code, err]).toEqual([0, '']);
    expect(JSON.parse(out)).toEqual({
      failed: 1,
      reasons: { dns: 1 },
      hosts: [{ host: 'example.com', failed: 1 }],
      hostCount: 1,
      jobs: [
        {
          id: 'job-1',
          queue: 'crawl',
          reason: 'dns',
          error: 'dns: b',
          failedAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
          attempts: 1,
          tenantId: 'globex',
          host: 'example.com',
          path: '/1.jpg',
          contentHash: null,
        },
      ],
    });
  });

  test('list says so where nothing failed, or nothing matches', async () => {
    expect(await hybridCache(['failed', 'list'], env)).toEqual({ code: 0, out: 'No failed jobs.\n', err: '' });
    await fail(new RetryableError('dns', 'a'));
    const { out } = await hybridCache(['failed', 'list', '--reason', 'poison'], env);
    expect(out).toBe('No failed jobs match.\n');
  });

  test('retry runs what matches again, and says how many', async () => {
    await fail(new RetryableError('dns', 'a'), new RetryableError('timeout', 'b'), new RetryableError('dns', 'c'));
    const some = await hybridCache(['failed', 'retry', '--reason', 'dns'], env);
    expect(some).toEqual({ code: 0, out: 'retried  2\n', err: '' });
    expect(await app.queues.counts('crawl')).toMatchObject({ failed: 1 });
    const rest = await hybridCache(['failed', 'retry', '--all', '--json'], env);
    expect([rest.code, JSON.parse(rest.out), rest.err]).toEqual([0, { retried: 1, twins: 0, gone: 0 }, '']);
    expect(await app.queues.counts('crawl')).toMatchObject({ failed: 0 });
  });
});

describe('a command that is not understood exits with 2', () => {
  test.each([
    [
      'an unknown reason',
      ['failed', 'list', '--reason', 'nope'],
      new RegExp(`nope.*choices are ${FAILURE_REASONS.join(', ')}\\.`),
    ],
    ['an unknown queue', ['failed', 'retry', '--queue', 'nope'], /nope.*choices are crawl, embedding\./],
    ['a URL for a host', ['failed', 'list', '--host', 'https://example.com/1.jpg'], /expected a host, such as/],
    ['a tenant that is none', ['failed', 'list', '--tenant', 'a:b'], /expected 1 to 100 of letters/],
    ['an argument for a tenant that is none', ['invalidate', 'a:b'], /'a:b' is invalid.*expected 1 to 100 of letters/],
    ['a tenant to enqueue for', ['enqueue', '-', '--tenant', 'a:b'], /--tenant <id>.*expected 1 to 100 of letters/],
    ['a tenant to explain to', ['explain', 'x', '--tenant', 'a:b'], /--tenant <id>.*expected 1 to 100 of letters/],
    ['days that are none', ['cleanup', '--days', '0'], /expected a whole number from 1 on/],
    ['a limit that is none', ['failed', 'list', '--limit', 'many'], /expected a whole number from 0 on/],
    ['a retry of nothing in particular', ['failed', 'retry'], /--queue, --reason, --host or --tenant, or with --all/],
    ['a retry of all and of some', ['failed', 'retry', '--all', '--reason', 'dns'], /not with both/],
    ['another command’s arguments', ['worker', 'nope'], /unknown queue nope: name crawl or embedding/],
    ['no command', ['nope'], /unknown command 'nope'/],
  ])('and says what it expected: %s', async (_, args, words) => {
    const { code, out, err } = await hybridCache(args);
    expect([code, out]).toEqual([2, '']);
    expect(err.split('\n')[0]).toMatch(words);
  });

  test('where one that failed exits with 1, within seconds, naming no password', async () => {
    const env = { QUEUE_REDIS_URL: 'redis://:hush-hush@127.0.0.1:1/0' };
    const { code, out, err } = await hybridCache(['failed', 'list'], env);
    expect([code, out]).toEqual([1, '']);
    expect(err).toContain('hybrid-cache: the queue is unavailable');
    expect(err).not.toContain('hush-hush');
  });

  test('and help, which was understood, with 0', async () => {
    const { code, out } = await hybridCache(['failed', '--help']);
    expect(code).toBe(0);
    expect(out).toMatch(/^ {2}list .*\n[^]*^ {2}retry /m);
  });
});

test('a reader that has seen enough, as head has, is no error', async () => {
  const env = { ...stack.servers.env, STORAGE_URL: 'file:./unused' };
  const running = startCommand(['failed', 'list'], env);
  running.process.stdout?.destroy();
  const { code, err } = await running.ended;
  expect([code, err]).toEqual([0, '']);
});
