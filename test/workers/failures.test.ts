/** Jobs that fail for good: each is counted once, by the reason that the failed set shows. */
import { UnrecoverableError } from 'bullmq';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { DeferredError, RejectedError, RetryableError } from '../../src/errors.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { embeddingQueue } from '../../src/queues/embedding.js';
import { listFailed } from '../../src/queues/failed.js';
import { processorOf } from '../../workers/run.js';
import { type CrawlWork, image, startWork, untilState } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const DONE = { outcome: 'stored' };
const HASH = 'cd'.repeat(32);

let world: World;
let apps = 0;

beforeAll(async () => {
  world = await createWorld();
});

afterAll(() => world[Symbol.asyncDispose]());

/** An app with queues and metrics of its own. */
function freshApp(): App {
  apps += 1;
  return world.app({}, { retryBaseMs: 1, queueNamespace: `${world.namespace}-${apps}` });
}

/** The crawl jobs that were counted as failed, by reason. */
async function counted(app: App): Promise<Record<string, number>> {
  const { values } = await app.metrics.crawlImages.get();
  const failed = values.filter(({ labels }) => labels.outcome === 'failed');
  return Object.fromEntries(failed.map(({ labels, value }) => [String(labels.reason), value]));
}

const throwing = (error: unknown): CrawlWork => {
  return async () => {
    throw error;
  };
};

describe('a crawl job that fails for good is counted once', () => {
  test.each<[string, unknown]>([
    ['timeout', new RetryableError('timeout', 'no answer')],
    ['connection', new RetryableError('connection', 'reset')],
    ['dns', new RetryableError('dns', 'no such host')],
    ['server-error', new RetryableError('server-error', 'status 500')],
    ['throttled', new RetryableError('throttled', 'status 429', { retryAfterMs: 1 })],
    ['storage', new RetryableError('storage', 'the disk is full')],
    ['internal', new TypeError('x is undefined')],
    ['internal', new RejectedError('corrupt', 'half an image')],
    ['internal', 'words'],
    ['internal', new Error('')],
    ['internal', new UnrecoverableError('no use')],
    ['internal', new AggregateError([new RetryableError('timeout', 'no answer')], 'all of them failed')],
  ])('as %s, over all of its attempts, and so the failed set has it (%s)', async (reason, error) => {
    const app = freshApp();
    startWork(app, throwing(error));
    const [id] = await app.queues.enqueue(crawlQueue, [image(1)]);
    await untilState(app, String(id), 'failed');
    expect(await counted(app)).toEqual({ [reason]: 1 });
    expect((await listFailed(app.queues, {}, 20)).reasons).toEqual({ [reason]: 1 });
    const said = world.logs.filter((line) => line.msg === 'job failed' && line.jobId === id);
    expect(said.length).toBe(error instanceof UnrecoverableError ? 1 : 5);
    expect(new Set(said.map((line) => line.reason))).toEqual(new Set([reason]));
    expect(said.filter((line) => line.willRetry === false)).toHaveLength(1);
  });

  test('as invalid-payload, where the payload is malformed', async () => {
    const app = freshApp();
    startWork(app, async () => DONE);
    const { id } = await app.queues.get('crawl').add('crawl', { v: 1, tenantId: 'acme' });
    await untilState(app, String(id), 'failed');
    expect(await counted(app)).toEqual({ 'invalid-payload': 1 });
  });

  test('and not while it has attempts left, is put off, or completes', async () => {
    const app = freshApp();
    const ends = [new RetryableError('timeout', 'no answer'), new DeferredError(1, 'claimed')];
    startWork(app, async () => {
      const error = ends.shift();
      if (error) throw error;
      return DONE;
    });
    const [id] = await app.queues.enqueue(crawlQueue, [image(1)]);
    await untilState(app, String(id), 'completed');
    expect(await counted(app)).toEqual({});
  });

  test('and not by a worker that has lost it: another one decides', async () => {
    const app = freshApp();
    const { id } = await app.queues.get('crawl').add('crawl', image(1), { attempts: 1 });
    const job = await app.queues.get('crawl').getJob(String(id));
    const lost = AbortSignal.abort(new Error('the lock was lost'));
    const never = new AbortController().signal;
    const processor = processorOf(crawlQueue, throwing(new RetryableError('timeout', 'no answer')), app.events, never);
    if (!job) throw new Error('the job is gone');
    await expect(processor(job, 'token', lost)).rejects.toThrow('timeout: no answer');
    expect(await counted(app)).toEqual({});
  });

  test('again where it is retried by hand, and fails again', async () => {
    const app = freshApp();
    startWork(app, throwing(new RetryableError('dns', 'no such host')));
    const { id } = await app.queues.get('crawl').add('crawl', image(1), { attempts: 1 });
    await untilState(app, String(id), 'failed');
    await (await app.queues.get('crawl').getJob(String(id)))?.retry('failed', { resetAttemptsMade: true });
    await until('it has failed again', async () => (await counted(app)).dns === 2);
  });
});

test('an embedding job that fails for good is counted once, as failed', async () => {
  const app = freshApp();
  let runs = 0;
  const perform = async () => {
    runs += 1;
    throw new RetryableError('engine', 'the face engine failed');
  };
  const never = new AbortController().signal;
  const worker = app.backend.worker('embedding', processorOf(embeddingQueue, perform, app.events, never), 1);
  app.closer.add('worker', worker, (one) => one.close(true));
  worker.run().catch(() => undefined);
  const [id] = await app.queues.enqueue(embeddingQueue, [{ v: 1, tenantId: 'acme', contentHash: HASH }]);
  await until('it has failed', async () => (await app.queues.job('embedding', String(id)))?.state === 'failed');
  expect(runs).toBe(5);
  const { values } = await app.metrics.embeddingImages.get();
  expect(values).toEqual([{ labels: { outcome: 'failed' }, value: 1 }]);
  expect(await counted(app)).toEqual({});
  expect((await listFailed(app.queues, {}, 20)).reasons).toEqual({ engine: 1 });
});
