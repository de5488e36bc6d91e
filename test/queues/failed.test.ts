/** The failed set by reason, host and tenant, and its jobs run again: the same on both backends. */
import { Client } from 'pg';
import { describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { type FailureReason, RetryableError } from '../../src/errors.js';
import { jobOptions, type QueueName } from '../../src/queues/contract.js';
import { type CrawlPayload, crawlQueue } from '../../src/queues/crawl.js';
import { type EmbeddingPayload, embeddingQueue } from '../../src/queues/embedding.js';
import { listFailed, retryFailed } from '../../src/queues/failed.js';
import { QueueUnavailableError } from '../../src/queues/index.js';
import { processorOf } from '../../workers/run.js';
import { type CrawlWork, enqueueOne, gate, image, startWork, untilState } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const DONE = { outcome: 'stored' };
const HASH = 'ab'.repeat(32);
const WAITING = ['waiting', 'prioritized'];

describe.each(['redis', 'postgres'] as const)('with queues on %s', (backend) => {
  const appOf = (world: World): App => world.app(backend === 'postgres' ? { REDIS_URL: 'none' } : {}, {});

  describe('the list', () => {
    test('counts by reason and by host, the most first, and shows the newest jobs whole', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      await failed(app, image(1), 'timeout');
      await failed(app, image(2, { tenantId: 'globex' }), 'timeout');
      await failed(app, { ...image(3), url: 'https://other.example:8080/a/b.jpg' }, 'server-error');
      const embedding = await failedEmbedding(app, { v: 1, tenantId: 'acme', contentHash: HASH });
      const crawl = await failed(app, image(4), 'internal');

      const found = await listFailed(app.queues, {}, 2);

      expect(found).toEqual({
        failed: 5,
        reasons: { timeout: 2, engine: 1, internal: 1, 'server-error': 1 },
        hosts: [
          { host: 'example.com', failed: 3 },
          { host: 'other.example:8080', failed: 1 },
        ],
        hostCount: 2,
        jobs: [
          {
            id: crawl,
            queue: 'crawl',
            reason: 'internal',
            error: 'internal: on purpose',
            failedAt: expect.any(Date),
            attempts: 1,
            tenantId: 'acme',
            host: 'example.com',
            path: '/4.jpg',
            contentHash: null,
          },
          {
            id: embedding,
            queue: 'embedding',
            reason: 'engine',
            error: 'engine: on purpose',
            failedAt: expect.any(Date),
            attempts: 1,
            tenantId: 'acme',
            host: null,
            path: null,
            contentHash: HASH,
          },
        ],
      });
      expect(Object.keys(found.reasons)[0]).toBe('timeout');
      for (const { failedAt } of found.jobs) expect(Math.abs(Date.now() - failedAt.getTime())).toBeLessThan(60_000);
    });

    test('is empty where nothing failed, whatever waits or is done', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      await app.queues.enqueue(crawlQueue, [image(1), image(2)]);
      const none = { failed: 0, reasons: {}, hosts: [], hostCount: 0, jobs: [] };
      expect(await listFailed(app.queues, {}, 20)).toEqual(none);
      startWork(app, async () => DONE);
      await until('both are done', async () => (await app.queues.counts('crawl')).completed === 2);
      expect(await listFailed(app.queues, {}, 20)).toEqual(none);
      expect(await retryFailed(app.queues, {})).toEqual({ retried: 0, twins: 0, gone: 0 });
    });

    test('has no job that waits for its next attempt', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const id = await enqueueOne(app);
      startWork(app, failing('timeout'));
      await untilState(app, id, 'delayed');
      expect((await listFailed(app.queues, {}, 20)).failed).toBe(0);
    });

    test.each<[string, Parameters<typeof listFailed>[1], number[]]>([
      ['a queue', { queue: 'crawl' }, [0, 1, 2, 3]],
      ['the other queue', { queue: 'embedding' }, []],
      ['a reason', { reason: 'dns' }, [1, 2]],
      ['a reason that nothing failed for', { reason: 'poison' }, []],
      ['a tenant', { tenant: 'globex' }, [2]],
      ['a host, on any port', { host: 'example.com' }, [0, 1, 2, 3]],
      ['a name that ends alike', { host: 'ample.com' }, []],
      ['a host with its port', { host: 'example.com:8443' }, [3]],
      ['several at once', { reason: 'dns', tenant: 'acme', host: 'example.com', queue: 'crawl' }, [1]],
      ['what no job is at once', { reason: 'timeout', tenant: 'globex' }, []],
    ])('keeps to %s', async (_, filter, expected) => {
      await using world = await createWorld();
      const app = appOf(world);
      const ids = [
        await failed(app, image(0), 'timeout'),
        await failed(app, image(1), 'dns'),
        await failed(app, image(2, { tenantId: 'globex' }), 'dns'),
        await failed(app, { ...image(3), url: 'https://example.com:8443/3.jpg' }, 'storage'),
      ];
      const found = await listFailed(app.queues, filter, 20);
      expect(found.jobs.map(({ id }) => ids.indexOf(id)).sort()).toEqual(expected);
      expect(found.failed).toBe(expected.length);
      expect(await retryFailed(app.queues, filter)).toEqual({ retried: expected.length, twins: 0, gone: 0 });
      expect(await app.queues.counts('crawl')).toMatchObject({ failed: ids.length - expected.length });
    });

    test('counts every job once over many batches, also those that failed in the same millisecond', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const many = 450;
      startWork(app, failing('connection'), { concurrency: 50 });
      await app.queues.get('crawl').addBulk(
        Array.from({ length: many }, (_, n) => ({
          name: 'crawl',
          data: image(n),
          opts: { ...jobOptions(crawlQueue, image(n)), attempts: 1 },
        })),
      );
      await until('all have failed', async () => (await app.queues.counts('crawl')).failed === many);
      if (backend === 'postgres') await failAtOnce(world);
      const steps: [number, number][] = [];
      const found = await listFailed(app.queues, {}, many + 1, (done, of) => steps.push([done, of]));
      expect(found).toMatchObject({ failed: many, reasons: { connection: many }, hostCount: 1 });
      expect(new Set(found.jobs.map(({ id }) => id)).size).toBe(many);
      expect(steps).toEqual([
        [200, many],
        [400, many],
        [450, many],
      ]);
    });

    test('shows the ten hosts with the most, and says how many there are', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      startWork(app, failing('dns'), { concurrency: 10 });
      for (let host = 1; host <= 12; host++) {
        for (let n = 0; n < host; n++) await add(app, { ...image(n), url: `https://h${host}.example/${n}.jpg` });
      }
      await until('all have failed', async () => (await app.queues.counts('crawl')).failed === 78);
      const found = await listFailed(app.queues, {}, 0);
      expect(found.hosts).toEqual([12, 11, 10, 9, 8, 7, 6, 5, 4, 3].map((n) => ({ host: `h${n}.example`, failed: n })));
      expect(found).toMatchObject({ failed: 78, hostCount: 12, jobs: [] });
    });

    test('holds no query of a URL, neither of the image nor of an error', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      startWork(app, async ({ url }) => {
        throw new Error(`could not read ${url}`);
      });
      const id = await add(app, { ...image(1), url: 'https://Example.com/a%7eb.jpg?signature=hush-hush#part' });
      await untilState(app, id, 'failed');
      const found = await listFailed(app.queues, {}, 20);
      expect(found.jobs).toMatchObject([
        {
          reason: 'internal',
          host: 'example.com',
          path: '/a~b.jpg',
          error: 'could not read https://example.com/a~b.jpg?…',
        },
      ]);
      expect(JSON.stringify(found)).not.toContain('hush-hush');
      expect((await app.queues.job('crawl', id))?.error).toBe('could not read https://example.com/a~b.jpg?…');
    });

    test.each<[string, unknown, object]>([
      ['is no object', 'https://example.com/1.jpg', { tenantId: null, host: null, path: null }],
      ['is nothing', null, { tenantId: null, host: null, path: null }],
      [
        'has credentials in its URL',
        { v: 1, tenantId: 'acme', url: 'https://me:hush@example.com/1.jpg' },
        { tenantId: 'acme', host: null, path: null },
      ],
      [
        'has a tenant that is none',
        { v: 1, tenantId: 'a\u001bb', url: 'https://example.com/1.jpg' },
        { tenantId: null, host: 'example.com', path: '/1.jpg' },
      ],
      [
        'is of another version',
        { v: 2, tenantId: 'acme', url: 'https://example.com/1.jpg' },
        { tenantId: 'acme', host: 'example.com' },
      ],
    ])('has a job whose payload %s as `invalid-payload`', async (_, data, expected) => {
      await using world = await createWorld();
      const app = appOf(world);
      startWork(app, async () => DONE);
      const { id } = await app.queues.get('crawl').add('anything', data);
      await untilState(app, String(id), 'failed');
      const { jobs } = await listFailed(app.queues, { reason: 'invalid-payload' }, 20);
      expect(jobs).toMatchObject([
        { id: String(id), reason: 'invalid-payload', attempts: 1, contentHash: null, ...expected },
      ]);
      expect(jobs[0]?.error).toMatch(/^invalid-payload: (payload|url|tenantId|v): ./);
      expect(JSON.stringify(jobs)).not.toContain('hush');
    });
  });

  describe('a retry', () => {
    test('gives a job all of its attempts again, under its old id, and it can complete', async () => {
      await using world = await createWorld();
      const app = world.app(backend === 'postgres' ? { REDIS_URL: 'none' } : {}, { retryBaseMs: 1 });
      let heals = Number.POSITIVE_INFINITY;
      let runs = 0;
      const names = new Set<string>();
      startWork(app, async (_, { jobId }) => {
        runs += 1;
        names.add(jobId);
        if (runs >= heals) return DONE;
        throw new RetryableError('timeout', 'no answer');
      });
      const id = await enqueueOne(app);
      await untilState(app, id, 'failed');
      expect(runs).toBe(5);
      heals = 10;
      expect(await retryFailed(app.queues, { reason: 'timeout' })).toEqual({ retried: 1, twins: 0, gone: 0 });
      expect(await untilState(app, id, 'completed', 'failed')).toMatchObject({
        state: 'completed',
        attempts: 5,
        outcome: DONE,
      });
      expect([runs, names.size]).toEqual([10, 1]);
      expect((await listFailed(app.queues, {}, 20)).failed).toBe(0);
    });

    test('of what fails again at once is one retry, and ends', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      let runs = 0;
      startWork(app, async () => {
        runs += 1;
        throw new RetryableError('dns', 'no such host');
      });
      const ids = await Promise.all([1, 2, 3].map((n) => add(app, image(n), 1)));
      for (const id of ids) await untilState(app, id, 'failed');
      // The attempts a job came with stay its own: these fail at their first one again.
      expect(await retryFailed(app.queues, {})).toEqual({ retried: 3, twins: 0, gone: 0 });
      await until('all have failed again', async () => runs === 6 && (await app.queues.counts('crawl')).failed === 3);
      expect((await listFailed(app.queues, {}, 20)).jobs.map(({ attempts }) => attempts)).toEqual([1, 1, 1]);
    });

    test('begins the wait of a job anew, and what the job remembered of its failed runs is forgotten', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const day = 24 * 3_600_000;
      const options = { attempts: 1, timestamp: Date.now() - day };
      const { id } = await app.queues.get('crawl').add('crawl', image(1), options);
      const worker = startWork(app, async (_, run) => {
        await run.remember({ contentHash: HASH });
        throw new RetryableError('timeout', 'no answer');
      });
      await untilState(app, String(id), 'failed');
      await worker.close();
      expect(await retryFailed(app.queues, {})).toMatchObject({ retried: 1 });
      expect(await app.queues.oldestWaitingSeconds('crawl')).toBeLessThan(3_600);
      const job = await app.queues.get('crawl').getJob(String(id));
      expect(job?.timestamp).toBe(options.timestamp);
      expect(job?.progress).toEqual({ retriedAt: expect.any(Number) });
    });

    test('leaves a job whose twin waits, and takes it once the twin is gone', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const old = await failed(app, image(1), 'timeout');
      const twin = await enqueueOne(app, image(1));
      expect(twin).not.toBe(old);
      expect(await retryFailed(app.queues, {})).toEqual({ retried: 0, twins: 1, gone: 0 });
      expect(await app.queues.job('crawl', old)).toMatchObject({ state: 'failed', error: 'timeout: on purpose' });
      // A twin that completed stands in nobody's way.
      const worker = startWork(app, async () => DONE);
      await untilState(app, twin, 'completed');
      await worker.close();
      expect(await retryFailed(app.queues, {})).toEqual({ retried: 1, twins: 0, gone: 0 });
      expect(WAITING).toContain((await app.queues.job('crawl', old))?.state);
    });

    test('leaves a job whose twin runs', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const old = await failed(app, image(1), 'timeout');
      const held = gate();
      const twin = await enqueueOne(app, image(1));
      startWork(app, async () => {
        await held.opened;
        return DONE;
      });
      await untilState(app, twin, 'active');
      expect(await retryFailed(app.queues, {})).toEqual({ retried: 0, twins: 1, gone: 0 });
      expect(await app.queues.job('crawl', old)).toMatchObject({ state: 'failed' });
      held.open();
    });

    test('takes the newest alone of several that failed with the same image', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const older = await failed(app, image(1), 'timeout');
      const newer = await failed(app, image(1), 'dns');
      const forced = await failed(app, image(1, { force: true }), 'dns');
      expect(await retryFailed(app.queues, {})).toEqual({ retried: 2, twins: 1, gone: 0 });
      for (const id of [newer, forced]) expect(WAITING).toContain((await app.queues.job('crawl', id))?.state);
      expect(await app.queues.job('crawl', older)).toMatchObject({ state: 'failed' });
    });

    test('takes the jobs of clients that ask for no deduplication, each by itself', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const worker = startWork(app, failing('timeout'));
      const ids = [await addPlain(app), await addPlain(app)];
      for (const id of ids) await untilState(app, id, 'failed');
      await worker.close();
      expect(await retryFailed(app.queues, {})).toEqual({ retried: 2, twins: 0, gone: 0 });
    });

    test('that meets another one retries each job once between them', async () => {
      await using world = await createWorld();
      const [here, there] = [appOf(world), appOf(world)];
      const worker = startWork(here, failing('timeout'), { concurrency: 20 });
      const many = 300;
      for (let n = 0; n < many; n++) await add(here, image(n));
      await until('all have failed', async () => (await here.queues.counts('crawl')).failed === many);
      await worker.close();
      const ends = await Promise.all([retryFailed(here.queues, {}), retryFailed(there.queues, {})]);
      expect(ends.reduce((sum, { retried }) => sum + retried, 0)).toBe(many);
      expect(ends.map(({ twins }) => twins)).toEqual([0, 0]);
      const { failed: left, waiting = 0, prioritized = 0 } = await here.queues.counts('crawl');
      expect([left, waiting + prioritized]).toEqual([0, many]);
    });

    test('goes on past jobs that an operator removes or retries meanwhile, and counts them', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const worker = startWork(app, failing('timeout'), { concurrency: 20 });
      const many = 210;
      const ids: string[] = [];
      for (let n = 0; n < many; n++) ids.push(await add(app, image(n)));
      await until('all have failed', async () => (await app.queues.counts('crawl')).failed === many);
      await worker.close();
      const queue = app.queues.get('crawl');
      const before = await queue.getRanges(['failed'], 0, -1);
      // The last ten ids are read by then, their jobs are not.
      const [gone = '', taken = ''] = before.slice(-2);
      let meddled: Promise<unknown> | undefined;
      const result = await retryFailed(app.queues, {}, () => {
        meddled ??= Promise.all([queue.remove(gone), queue.getJob(taken).then((job) => job?.retry('failed'))]);
      });
      await meddled;
      expect(result.twins).toBe(0);
      expect(result.retried).toBeLessThanOrEqual(many);
      expect(result.retried + result.gone).toBeGreaterThanOrEqual(many - 2);
      expect(await app.queues.counts('crawl')).toMatchObject({ failed: 0 });
    });
  });
});

test('a store that is away is said, and not waited for', { timeout: 15_000 }, async () => {
  await using world = await createWorld();
  const app = world.app({ QUEUE_REDIS_URL: 'redis://127.0.0.1:1/0' });
  await expect(listFailed(app.queues, {}, 20)).rejects.toThrow(QueueUnavailableError);
  await expect(retryFailed(app.queues, {})).rejects.toThrow(QueueUnavailableError);
});

function failing(reason: Exclude<FailureReason, 'invalid-payload' | 'poison'>): CrawlWork {
  return async () => {
    throw new RetryableError(reason, 'on purpose');
  };
}

/** A job as we enqueue it, but for its one attempt. */
async function add(app: App, payload: CrawlPayload, attempts = 1): Promise<string> {
  const job = await app.queues.get('crawl').add('crawl', payload, { ...jobOptions(crawlQueue, payload), attempts });
  return String(job.id);
}

async function addPlain(app: App): Promise<string> {
  return String((await app.queues.get('crawl').add('crawl', image(1), { attempts: 1 })).id);
}

/** The id of a crawl job that failed for this reason, with nobody left who takes jobs. */
async function failed(app: App, payload: CrawlPayload, reason: Parameters<typeof failing>[0]): Promise<string> {
  const id = await add(app, payload);
  const worker = startWork(app, failing(reason));
  await untilState(app, id, 'failed');
  await worker.close();
  return id;
}

async function failedEmbedding(app: App, payload: EmbeddingPayload): Promise<string> {
  const queue: QueueName = 'embedding';
  const options = { ...jobOptions(embeddingQueue, payload), attempts: 1 };
  const id = String((await app.queues.get(queue).add(queue, payload, options)).id);
  const never = new AbortController().signal;
  const perform = async () => {
    throw new RetryableError('engine', 'on purpose');
  };
  const worker = app.backend.worker(queue, processorOf(embeddingQueue, perform, app.events, never), 1);
  worker.run().catch(() => undefined);
  await until('it has failed', async () => (await app.queues.job(queue, id))?.state === 'failed');
  await worker.close();
  return id;
}

/** As a burst leaves them: all in the same millisecond. */
async function failAtOnce(world: World): Promise<void> {
  const client = new Client({ connectionString: world.databaseUrl });
  await client.connect();
  await client.query("update bullmq.job set finished_at_ms = 1 where state = 'failed'");
  await client.end();
}
