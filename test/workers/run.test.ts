/** Around every processor: what each end of a run becomes, in the queue, in the metrics and in the log. */
import { getEventListeners } from 'node:events';
import { DelayedError, type Job, UnrecoverableError } from 'bullmq';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { DeferredError, RejectedError, RetryableError, TierUnavailableError } from '../../src/errors.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { QueueUnavailableError } from '../../src/queues/index.js';
import { processorOf, type Run } from '../../workers/run.js';
import { type CrawlWork, enqueueOne, gate, image, promote, startWork, untilState } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const DONE = { outcome: 'stored' };
const LONG_MS = 600_000;

let world: World;

beforeAll(async () => {
  world = await createWorld();
});

afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

let apps = 0;

/** An app with queues and metrics of its own. */
function freshApp(): App {
  apps += 1;
  return world.app({}, { retryBaseMs: LONG_MS, queueNamespace: `${world.namespace}-${apps}` });
}

/** The runs that were counted, by how they ended. */
async function attempts(app: App): Promise<Record<string, number>> {
  const { values } = await app.metrics.jobAttempts.get();
  return Object.fromEntries(values.map(({ labels, value }) => [String(labels.result), value]));
}

async function durations(app: App): Promise<Record<string, number>> {
  const { values } = await app.metrics.jobDuration.get();
  const counts = values.filter(({ metricName }) => metricName === 'job_duration_seconds_count');
  return Object.fromEntries(counts.map(({ labels, value }) => [String(labels.outcome), value]));
}

const throwing = (error: unknown): CrawlWork => {
  return async () => {
    throw error;
  };
};

describe('an end of a run becomes', () => {
  const table: [string, CrawlWork, { state: string; attempts: number; result: string; outcome: string }][] = [
    ['an outcome', async () => DONE, { state: 'completed', attempts: 1, result: 'completed', outcome: 'stored' }],
    [
      'a retryable error',
      throwing(new RetryableError('timeout', 'no answer')),
      { state: 'delayed', attempts: 1, result: 'retried', outcome: 'none' },
    ],
    [
      'an error that nobody foresaw',
      throwing(new TypeError('x is undefined')),
      { state: 'delayed', attempts: 1, result: 'retried', outcome: 'none' },
    ],
    [
      'a thrown thing that is no error',
      throwing('words'),
      { state: 'delayed', attempts: 1, result: 'retried', outcome: 'none' },
    ],
    [
      'an error that says it is final',
      throwing(new UnrecoverableError('no use')),
      { state: 'failed', attempts: 1, result: 'failed', outcome: 'none' },
    ],
    [
      'a rejection that no job made an outcome of',
      throwing(new RejectedError('corrupt', 'half an image')),
      { state: 'delayed', attempts: 1, result: 'retried', outcome: 'none' },
    ],
    [
      'a claim of another',
      throwing(new DeferredError(LONG_MS, 'claimed')),
      { state: 'delayed', attempts: 0, result: 'deferred', outcome: 'none' },
    ],
    [
      'a tier that is away',
      throwing(new TierUnavailableError('postgres', 'gone')),
      { state: 'delayed', attempts: 0, result: 'handed_back', outcome: 'none' },
    ],
    [
      'a queue that is away',
      throwing(new QueueUnavailableError()),
      { state: 'delayed', attempts: 0, result: 'handed_back', outcome: 'none' },
    ],
  ];

  test.each(table)('%s', async (_, work, { state, attempts: spent, result, outcome }) => {
    const app = freshApp();
    const id = await enqueueOne(app);
    let runs = 0;
    // An outage's wait is short: what comes after the first run is held back for good.
    const once: CrawlWork = (payload, run) => (++runs === 1 ? work(payload, run) : new Promise(() => undefined));
    startWork(app, once);
    const job = await untilState(app, id, state);
    expect(job.attempts).toBe(spent);
    expect(await attempts(app)).toEqual({ [result]: 1 });
    expect(await durations(app)).toEqual({ [outcome]: 1 });
  });

  test('the failed set, counted and logged as failed, when it was the last attempt', async () => {
    const app = freshApp();
    startWork(app, throwing(new RetryableError('timeout', 'no answer')));
    const { id } = await app.queues.get('crawl').add('crawl', image(1), { attempts: 1 });
    await untilState(app, String(id), 'failed');
    expect(await attempts(app)).toEqual({ failed: 1 });
    expect(logOf(String(id))).toMatchObject({
      msg: 'job failed',
      level: 'warn',
      queue: 'crawl',
      tenantId: 'acme',
      willRetry: false,
    });
  });

  test('a failure, counted and logged, where the payload is malformed', async () => {
    const app = freshApp();
    startWork(app, async () => DONE);
    const { id } = await app.queues.get('crawl').add('crawl', { v: 1, tenantId: 'acme' });
    await untilState(app, String(id), 'failed');
    expect(await attempts(app)).toEqual({ failed: 1 });
    expect(logOf(String(id))).toMatchObject({ msg: 'job failed', willRetry: false });
  });

  test('a job handed back, no attempt spent, where the process shuts down meanwhile', async () => {
    const app = freshApp();
    const shutdown = new AbortController();
    const entered = gate();
    const id = await enqueueOne(app);
    const work: CrawlWork = (_, { signal }) => {
      entered.open();
      return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
    };
    const worker = startWork(app, work, { shutdown: shutdown.signal });
    await entered.opened;
    const closing = worker.close();
    shutdown.abort(new Error('the process shuts down'));
    await closing;
    const job = await app.queues.job('crawl', id);
    expect(job).toMatchObject({ attempts: 0, error: null });
    expect(['prioritized', 'delayed']).toContain(job?.state);
    expect(await attempts(app)).toEqual({ handed_back: 1 });
  });

  test('the same where the work is deaf to its signal, and another worker runs it', async () => {
    const app = freshApp();
    const shutdown = new AbortController();
    const entered = gate();
    const id = await enqueueOne(app);
    const deaf: CrawlWork = () => {
      entered.open();
      return new Promise(() => undefined);
    };
    const worker = startWork(app, deaf, { shutdown: shutdown.signal });
    await entered.opened;
    const closing = worker.close();
    shutdown.abort(new Error('the process shuts down'));
    await closing;
    expect(await app.queues.job('crawl', id)).toMatchObject({ attempts: 0, error: null });
    expect(await attempts(app)).toEqual({ handed_back: 1 });
    startWork(app, async (_, { deaths }) => ({ ...DONE, deaths }));
    expect(await untilState(app, id, 'completed')).toMatchObject({ attempts: 1, outcome: { ...DONE, deaths: 0 } });
  });

  test('DelayedError to the queue also where the store cannot take the job back: its lock ends by itself', async () => {
    const app = freshApp();
    const job = await storedJob(app);
    await job.remove(); // gone from the store: every operation on it fails
    const processor = processorOf(
      crawlQueue,
      throwing(new DeferredError(1, 'claimed')),
      app.events,
      new AbortController().signal,
    );
    await expect(processor(job, 'token')).rejects.toThrow(DelayedError);
  });
});

describe('a run', () => {
  test('knows its job by one name over all its attempts, and no other job has it', async () => {
    const app = freshApp();
    const names = new Map<string, string[]>();
    startWork(app, async ({ url }, { jobId }) => {
      const known = names.get(url) ?? [];
      names.set(url, [...known, jobId]);
      if (known.length < 2) throw new RetryableError('timeout', 'no answer');
      return DONE;
    });
    const ids = await app.queues.enqueue(crawlQueue, [image(1), image(2)]);
    for (const id of ids) {
      for (const spent of [1, 2]) {
        await until(`attempt ${spent} is over`, async () => (await untilState(app, id, 'delayed')).attempts === spent);
        await promote(app, id);
      }
      await untilState(app, id, 'completed');
    }
    const [one = [], two = []] = names.values();
    expect([new Set(one).size, new Set(two).size]).toEqual([1, 1]);
    expect(one[0]).not.toBe(two[0]);
    expect(await attempts(app)).toEqual({ retried: 4, completed: 2 });
  });

  test('gets the payload as its schema reads it', async () => {
    const app = freshApp();
    let seen: unknown;
    startWork(app, async (payload) => {
      seen = payload;
      return DONE;
    });
    const raw = { v: 1, tenantId: 'acme', url: 'HTTPS://Example.com:443/a%7eb#top', more: 'unknown' };
    const { id } = await app.queues.get('crawl').add('anything', raw);
    await untilState(app, String(id), 'completed');
    expect(seen).toEqual({ v: 1, tenantId: 'acme', url: 'https://example.com/a~b' });
  });

  test('has a signal that stays quiet while nothing is wrong', async () => {
    const app = freshApp();
    let signal: AbortSignal | undefined;
    startWork(app, async (_, run: Run) => {
      signal = run.signal;
      return DONE;
    });
    await untilState(app, await enqueueOne(app), 'completed');
    expect(signal?.aborted).toBe(false);
  });

  test('leaves nothing at the signal of the shutdown, which lives as long as the process', async () => {
    const app = freshApp();
    const { signal } = new AbortController();
    startWork(app, async () => DONE, { shutdown: signal });
    await untilState(app, await enqueueOne(app), 'completed');
    await until('nobody to listen', () => getEventListeners(signal, 'abort').length === 0);
    // What `AbortSignal.any` would have made of it.
    const dependants = Object.getOwnPropertySymbols(signal).filter((one) => one.description === 'kDependantSignals');
    const sets = dependants.map((one) => (signal as unknown as Record<symbol, Set<unknown> | undefined>)[one]);
    expect(sets.map((set) => set?.size ?? 0).filter((size) => size > 0)).toEqual([]);
  });

  test('has its wait counted once per job, from enqueuing to the first run', async () => {
    const app = freshApp();
    let runs = 0;
    startWork(app, async () => {
      runs += 1;
      if (runs === 1) throw new DeferredError(1, 'claimed');
      return DONE;
    });
    const { id } = await app.queues.get('crawl').add('crawl', image(1), { timestamp: Date.now() - 60_000 });
    await untilState(app, String(id), 'completed');
    const { values } = await app.metrics.jobWait.get();
    const of = (name: string) => values.find(({ metricName }) => metricName === name)?.value;
    expect(of('job_wait_seconds_count')).toBe(1);
    expect(of('job_wait_seconds_sum')).toBeGreaterThanOrEqual(60);
  });
});

function logOf(jobId: string): Record<string, unknown> | undefined {
  return world.logs.find((line) => line.msg === 'job failed' && line.jobId === jobId);
}

async function storedJob(app: App): Promise<Job> {
  const job = await app.queues.get('crawl').getJob(await enqueueOne(app));
  if (!job) throw new Error('the job is gone');
  return job;
}
