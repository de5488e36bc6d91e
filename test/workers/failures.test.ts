/** Jobs that fail for good: each is counted once, by the reason that the failed set shows. */
import { UnrecoverableError } from 'bullmq';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { DeferredError, RejectedError, RetryableError } from '../../src/errors.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { embeddingQueue } from '../../src/queues/embedding.js';
import { listFailed } from '../../src/queues/failed.js';
import { tellEnds } from '../../workers/ends.js';
import { processorOf } from '../../workers/run.js';
import { type CrawlWork, image, startWork, untilState } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';

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

/** Takes from its worker, at the first call, the lock of the only job. */
function losingLock(app: App): () => Promise<void> {
  let lost = false;
  return async () => {
    if (lost) return;
    lost = true;
    const [job] = await app.queues.get('crawl').getActive();
    const redis = redisClient(world);
    expect(await redis.del(`${app.overrides.queueNamespace}:crawl:${job?.id}:lock`)).toBe(1);
    redis.disconnect();
  };
}

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
    const unlock = losingLock(app);
    startWork(app, async () => {
      await unlock();
      throw new RetryableError('timeout', 'no answer');
    });
    const { id } = await app.queues.get('crawl').add('crawl', image(1), { attempts: 1 });
    await untilState(app, String(id), 'failed');
    await until('it to be counted', async () => (await counted(app)).timeout);
    expect(await counted(app)).toEqual({ timeout: 1 });
    const said = world.logs.filter((line) => line.msg === 'job failed' && line.jobId === id);
    expect(said.filter((line) => line.reason === 'timeout')).toHaveLength(1);
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

test('an outcome is counted once, however many runs came to it: the queue took one', async () => {
  const app = freshApp();
  const unlock = losingLock(app);
  startWork(app, async () => {
    await unlock();
    return DONE;
  });
  const [id] = await app.queues.enqueue(crawlQueue, [image(1)]);
  await untilState(app, String(id), 'completed');
  const ends = async () => (await app.metrics.crawlImages.get()).values;
  await until('it to be counted', async () => (await ends()).length > 0);
  expect(await ends()).toEqual([{ labels: { outcome: 'stored', reason: '' }, value: 1 }]);
  const { values } = await app.metrics.jobAttempts.get();
  const results = values.map(({ labels, value }) => [labels.result, value]);
  expect(results).toEqual(expect.arrayContaining([['completed', 1]]));
  expect(world.logs.filter((line) => line.msg === 'image crawled' && line.jobId === id)).toHaveLength(1);
});

test('an embedding job that fails for good is counted once, as failed', async () => {
  const app = freshApp();
  let runs = 0;
  const perform = async () => {
    runs += 1;
    throw new RetryableError('engine', 'the face engine failed');
  };
  const never = new AbortController().signal;
  const processor = processorOf(embeddingQueue, perform, app.events, never);
  const worker = tellEnds(app.backend.worker('embedding', processor, 1), app.events);
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
