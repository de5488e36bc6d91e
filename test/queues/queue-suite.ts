/** What every queue backend must do. Each test has a world of its own, since the queues' names are fixed. */
import { setTimeout as pause } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { DeferredError, JobLostError, RetryableError, TierUnavailableError } from '../../src/errors.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { embeddingQueue } from '../../src/queues/embedding.js';
import { QueueUnavailableError } from '../../src/queues/index.js';
import { startWorkers } from '../../workers/start.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import {
  type CrawlWork,
  delayOf,
  enqueueOne,
  gate,
  image,
  promote,
  startWork,
  untilState,
} from '../support/queue-work.js';
import { standStill } from '../support/stand-still.js';
import { storeSampleImage } from '../support/stored-image.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { killableWorker } from './killable.js';

const DONE = { outcome: 'stored', contentHash: 'f00d', nearDuplicates: [{ contentHash: 'cafe', distance: 2 }] };
/** A lock that nobody renews, and how often workers look for those. */
const [LOCK_MS, CHECK_MS] = [8_000, 4_000];
/** More than the tests ever wait: a job that is delayed by it runs when it is promoted, and not before. */
const LONG_MS = 600_000;

export function queueSuite(backend: 'redis' | 'postgres'): void {
  const env: Record<string, string> = backend === 'postgres' ? { REDIS_URL: 'none' } : {};
  const appOf = (world: World, retryBaseMs = 1): App => world.app(env, { retryBaseMs });

  describe('enqueuing', () => {
    test('gives one id per payload, in their order, over any number of batches', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const payloads = Array.from({ length: 2_100 }, (_, n) => image(n, { tenantId: `tenant-${n}` }));
      const ids = await app.queues.enqueue(crawlQueue, payloads);
      expect(new Set(ids).size).toBe(2_100);
      for (const n of [0, 999, 1_000, 2_099]) {
        expect(await app.queues.job('crawl', String(ids[n]))).toMatchObject({ tenantId: `tenant-${n}` });
      }
      expect(await app.queues.counts('crawl')).toMatchObject({ prioritized: 2_100 });
    });

    test('gives ids that hold no ":" and are not all digits', async () => {
      await using world = await createWorld();
      const ids = await appOf(world).queues.enqueue(crawlQueue, [image(1), image(2), image(3)]);
      for (const id of ids) expect(id).toMatch(/^(?!\d+$)[^:]+$/);
    });

    test('gives a twin that waits the same id, also within one call and in calls that overlap', async () => {
      await using world = await createWorld();
      const [here, there] = [appOf(world), appOf(world)];
      const [first, other, again] = await here.queues.enqueue(crawlQueue, [image(1), image(2), image(1)]);
      expect(again).toBe(first);
      expect(other).not.toBe(first);
      const more = await Promise.all(Array.from({ length: 8 }, (_, n) => enqueueOne(n % 2 ? here : there)));
      expect(new Set(more)).toEqual(new Set([first]));
      const fresh = await Promise.all(Array.from({ length: 8 }, (_, n) => enqueueOne(n % 2 ? here : there, image(3))));
      expect(new Set(fresh).size).toBe(1);
      expect(await here.queues.counts('crawl')).toMatchObject({ prioritized: 3 });
    });

    test('gives a twin that runs, or waits for its next attempt, the same id', async () => {
      await using world = await createWorld();
      const app = appOf(world, LONG_MS);
      const held = gate();
      const id = await enqueueOne(app);
      startWork(app, async () => {
        await held.opened;
        throw new RetryableError('timeout', 'no answer');
      });
      await untilState(app, id, 'active');
      expect(await enqueueOne(app)).toBe(id);
      held.open();
      await untilState(app, id, 'delayed');
      expect(await enqueueOne(app)).toBe(id);
    });

    test('makes a new job once the twin has completed, and once it has failed', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      let fails = true;
      startWork(app, async () => {
        if (fails) throw new RetryableError('timeout', 'no answer');
        return DONE;
      });
      const failed = await enqueueOne(app);
      await untilState(app, failed, 'failed');
      fails = false;
      const completed = await enqueueOne(app);
      await untilState(app, completed, 'completed');
      const third = await enqueueOne(app);
      await untilState(app, third, 'completed');
      expect(new Set([failed, completed, third]).size).toBe(3);
    });

    test('tells jobs apart by tenant, URL and force', async () => {
      await using world = await createWorld();
      const payloads = [image(1), image(2), image(1, { tenantId: 'other' }), image(1, { force: true })];
      const ids = await appOf(world).queues.enqueue(crawlQueue, payloads);
      expect(new Set(ids).size).toBe(4);
    });

    test('makes a new job where an operator has removed the twin', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const queue = app.queues.get('crawl');
      const [one, two] = await app.queues.enqueue(crawlQueue, [image(1), image(2)]);
      await queue.remove(String(one));
      const again = await enqueueOne(app, image(1));
      expect(again).not.toBe(one);
      await queue.drain();
      const [afterDrain] = await app.queues.enqueue(crawlQueue, [image(2)]);
      expect(afterDrain).not.toBe(two);
      await untilState(app, String(afterDrain), 'prioritized');
      expect(await app.queues.counts('crawl')).toMatchObject({ prioritized: 1 });
    });

    test('keeps completed jobs for an hour or 100,000, and failed ones for 14 days', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const hour = 3600;
      const expected = {
        removeOnComplete: { age: hour, count: 100_000 },
        removeOnFail: { age: 14 * 24 * hour },
      };
      const ours = await app.queues.get('crawl').getJob(await enqueueOne(app));
      expect(ours?.opts).toMatchObject(expected);
      // Jobs of other clients that say nothing are kept as the worker says.
      expect(startWork(app, async () => DONE).opts).toMatchObject(expected);
    });
  });

  describe('a job', () => {
    test('completes with its outcome, and is seen in each state on the way', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const held = gate();
      const id = await enqueueOne(app);
      const seen = { queue: 'crawl', id, outcome: null, attempts: 0, error: null, tenantId: 'acme' };
      expect(await app.queues.job('crawl', id)).toEqual({ ...seen, state: 'prioritized' });
      startWork(app, async () => {
        await held.opened;
        return DONE;
      });
      expect(await untilState(app, id, 'active')).toEqual({ ...seen, state: 'active' });
      held.open();
      expect(await untilState(app, id, 'completed')).toEqual({
        ...seen,
        state: 'completed',
        outcome: DONE,
        attempts: 1,
      });
    });

    test('that nobody knows is null, also under the names that the store uses for itself', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const id = await enqueueOne(app);
      startWork(app, async () => DONE);
      await untilState(app, id, 'completed');
      for (const name of ['no-such-job', 'meta', 'events', 'completed', 'stalled-check', 'id', 'wait', '1']) {
        expect([name, await app.queues.job('crawl', name)]).toEqual([name, null]);
      }
      expect(await app.queues.job('embedding', id)).toBeNull();
    });

    test('is retried with waits that double, half of each left to chance', async () => {
      await using world = await createWorld();
      const app = appOf(world, LONG_MS);
      const id = await enqueueOne(app);
      let isWell = false;
      startWork(app, async () => {
        if (!isWell) throw new RetryableError('server-error', 'answered 500');
        return { outcome: 'stored' };
      });
      for (const [attempts, longest] of [
        [1, LONG_MS],
        [2, 2 * LONG_MS],
        [3, 4 * LONG_MS],
      ] as const) {
        const job = await until(`attempt ${attempts} is over`, async () => {
          const view = await untilState(app, id, 'delayed');
          return view.attempts === attempts ? view : null;
        });
        expect(job).toMatchObject({ outcome: null, error: 'server-error: answered 500' });
        const delay = await delayOf(app, id);
        expect(delay).toBeGreaterThanOrEqual(longest / 2);
        expect(delay).toBeLessThanOrEqual(longest);
        isWell = attempts === 3;
        await promote(app, id);
      }
      // What went wrong before is no error of a job that went well in the end.
      expect(await untilState(app, id, 'completed')).toMatchObject({ outcome: { outcome: 'stored' }, error: null });
    });

    test('waits as long as the origin asked for, no less than after any failure, and never longer than an hour', async () => {
      await using world = await createWorld();
      const app = appOf(world, 100_000);
      let retryAfterMs = 1_000;
      startWork(app, async () => {
        throw new RetryableError('throttled', 'answered 429', { retryAfterMs });
      });
      const short = await enqueueOne(app, image('short'));
      await untilState(app, short, 'delayed');
      expect(await delayOf(app, short)).toBeGreaterThanOrEqual(50_000);
      retryAfterMs = 123_456;
      const asked = await enqueueOne(app, image('asked'));
      await untilState(app, asked, 'delayed');
      expect(await delayOf(app, asked)).toBe(123_456);
      retryAfterMs = 48 * 3_600_000;
      const long = await enqueueOne(app, image('long'));
      await untilState(app, long, 'delayed');
      expect(await delayOf(app, long)).toBe(3_600_000);
    });

    test('ends in the failed set with its reason when its five attempts are spent', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const runs: string[] = [];
      startWork(app, async (_, run) => {
        runs.push(run.jobId);
        throw new RetryableError('server-error', `answered 500 for the ${runs.length}. time`);
      });
      const job = await untilState(app, await enqueueOne(app), 'failed');
      expect(job).toMatchObject({ attempts: 5, outcome: null, error: 'server-error: answered 500 for the 5. time' });
      expect(runs).toHaveLength(5);
      expect(new Set(runs).size).toBe(1);
      expect(await app.queues.counts('crawl')).toMatchObject({
        failed: 1,
        waiting: 0,
        prioritized: 0,
        delayed: 0,
        active: 0,
      });
    });

    test('that is put off, or meets an outage of ours, spends no attempt', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const putOffs = [
        new DeferredError(LONG_MS, 'claimed by another'),
        new TierUnavailableError('postgres', 'gone'),
        new QueueUnavailableError(),
      ];
      const ends = [...putOffs];
      startWork(app, async () => {
        const error = ends.shift();
        if (error) throw error;
        return DONE;
      });
      const id = await enqueueOne(app);
      const delays: number[] = [];
      for (let left = putOffs.length - 1; left >= 0; left--) {
        await until(`${left} are left`, () => ends.length === left);
        expect(await untilState(app, id, 'delayed')).toMatchObject({ attempts: 0, error: null });
        delays.push(await delayOf(app, id));
        await promote(app, id);
      }
      expect(await untilState(app, id, 'completed')).toMatchObject({ attempts: 1, error: null });
      // A wait that is computed as a point in time loses what passes until it is taken down.
      expect(delays[0]).toBeGreaterThan(LONG_MS - 10_000);
    });

    test('remembers across being put off, and starts with nothing', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const seen: unknown[] = [];
      startWork(app, async (_, run) => {
        seen.push({ ...run.remembered });
        if (seen.length > 2) return DONE;
        await run.remember({ contentHash: `hash-${seen.length}` });
        throw new DeferredError(1, 'claimed by another');
      });
      await untilState(app, await enqueueOne(app), 'completed');
      expect(seen).toEqual([{}, { contentHash: 'hash-1' }, { contentHash: 'hash-2' }]);
    });
  });

  describe('a job of another client', () => {
    test.each([
      ['url', { v: 1, tenantId: 'acme' }],
      ['url', { v: 1, tenantId: 'acme', url: 'ftp://example.com/1.jpg' }],
      ['tenantId', { v: 1, tenantId: 'a:b', url: 'https://example.com/1.jpg' }],
      ['v', { v: 2, tenantId: 'acme', url: 'https://example.com/1.jpg' }],
      ['payload', 'https://example.com/1.jpg'],
    ])('that is malformed fails at once, unretried, naming %s (%j)', async (field, data) => {
      await using world = await createWorld();
      const app = appOf(world);
      let runs = 0;
      startWork(app, async () => {
        runs += 1;
        return DONE;
      });
      const { id } = await app.queues.get('crawl').add('anything', data);
      const job = await untilState(app, String(id), 'failed', 'completed', 'delayed');
      expect(job).toMatchObject({ state: 'failed', attempts: 1 });
      expect(job.error).toMatch(new RegExp(`^invalid-payload: ${field}: .`));
      expect(runs).toBe(0);
    });

    test('gets the retry policy of the queue where it brings none', async () => {
      await using world = await createWorld();
      const app = appOf(world, LONG_MS);
      startWork(app, async () => {
        throw new RetryableError('timeout', 'no answer');
      });
      const { id } = await app.queues.get('crawl').add('anything', image(1));
      for (let attempts = 1; attempts < crawlQueue.attempts; attempts++) {
        await until(`attempt ${attempts} is over`, async () => {
          return (await untilState(app, String(id), 'delayed', 'failed')).attempts === attempts;
        });
        expect(await delayOf(app, String(id))).toBeGreaterThanOrEqual(LONG_MS / 2);
        await promote(app, String(id));
      }
      expect(await untilState(app, String(id), 'failed')).toMatchObject({ attempts: 5, error: 'timeout: no answer' });
    });

    test('keeps the attempts that it asked for', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      startWork(app, async () => {
        throw new RetryableError('timeout', 'no answer');
      });
      const { id } = await app.queues.get('crawl').add('anything', image(1), { attempts: 2 });
      expect(await untilState(app, String(id), 'failed')).toMatchObject({ attempts: 2 });
    });
  });

  describe('a worker', () => {
    test('that is killed mid-job, three times in a row, loses and fails nothing', { timeout: 120_000 }, async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const ids = await app.queues.enqueue(crawlQueue, [image(1), image(2), image(3)]);
      for (let death = 1; death <= 3; death++) {
        const { child, taken } = killableWorker(world, { env, concurrency: ids.length });
        await until(`worker ${death} runs all jobs`, () => taken.size === ids.length, 60_000);
        child.kill('SIGKILL');
      }
      startWork(app, async () => DONE, { concurrency: 3 });
      await until('all are completed', async () => (await app.queues.counts('crawl')).completed === ids.length);
      for (const id of ids) {
        expect(await app.queues.job('crawl', id)).toMatchObject({ outcome: DONE, attempts: 1, error: null });
      }
      expect(await app.queues.counts('crawl')).toMatchObject({ failed: 0, active: 0, waiting: 0, prioritized: 0 });
    });

    test('that shuts down lets a job finish, and hands back one that does not, no attempt spent', async () => {
      await using world = await createWorld();
      const engine = new PuppetEngine();
      const app = world.app(env, { engine });
      const image = await storeSampleImage(app, 'acme');
      const held = gate();
      const entered = gate();
      engine.gate = async (signal) => {
        entered.open();
        await Promise.race([held.opened, aborted(signal)]);
      };
      const [id] = await app.queues.enqueue(embeddingQueue, [{ v: 1, tenantId: 'acme', ...image }]);
      const first = startWorkers(app, ['embedding']);
      await entered.opened;
      await Promise.all([first.stop(4_000), first.stop(4_000)]);
      const back = await app.queues.job('embedding', String(id));
      expect(back).toMatchObject({ attempts: 0, error: null, outcome: null });
      expect(['prioritized', 'delayed']).toContain(back?.state);

      const second = startWorkers(app, ['embedding']);
      await until('the job runs again', async () => {
        return (await app.queues.job('embedding', String(id)))?.state === 'active';
      });
      const stopped = second.stop(30_000);
      held.open();
      await stopped;
      expect(await app.queues.job('embedding', String(id))).toMatchObject({
        state: 'completed',
        attempts: 1,
        outcome: { outcome: 'embedded' },
      });
    });

    test('keeps the lock of a job that runs while its last run is on its way out', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      let runs = 0;
      const work: CrawlWork = async () => {
        // Its next run begins in the other slot before this one is over.
        if (++runs === 1)
          throw new DeferredError(1, 'a moment', async () => {
            await until('the next run', () => runs === 2);
          });
        await pause(LOCK_MS + CHECK_MS * 2);
        return DONE;
      };
      const worker = startWork(app, work, { concurrency: 2 });
      const id = await enqueueOne(app);
      await until('the job to run again', () => runs === 2);
      // A renewal for the run before that comes now is not the loss of this one.
      expect(await worker.extendJobLocks([id], ['of the run before'], LOCK_MS)).toEqual([]);
      expect(await untilState(app, id, 'completed')).toMatchObject({ attempts: 1 });
      expect(runs).toBe(2);
      expect((await app.queues.get('crawl').getJob(id))?.stalledCounter).toBe(0);
    });

    test('that stood still for longer than a lock lasts tells a run so before it reads anything', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const redis = redisClient(world);
      app.closer.add('client', redis, (one) => one.disconnect());
      await redis.ping();
      const reasons: unknown[] = [];
      const work: CrawlWork = async (_, { signal }) => {
        if (reasons.length > 0) return DONE;
        // Sent, and answered while nothing of this process runs.
        const answer = redis.ping();
        standStill(LOCK_MS + 1_000);
        await answer;
        reasons.push(signal.reason);
        throw signal.reason;
      };
      startWork(app, work);
      const id = await enqueueOne(app);
      expect(await untilState(app, id, 'completed')).toMatchObject({ attempts: 1, outcome: DONE });
      expect(reasons).toEqual([expect.any(JobLostError)]);
    });

    test('runs as many jobs at once as it may, and no more', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      const held = gate();
      let running = 0;
      let most = 0;
      await app.queues.enqueue(
        crawlQueue,
        Array.from({ length: 12 }, (_, n) => image(n)),
      );
      const work = async () => {
        running += 1;
        most = Math.max(most, running);
        await held.opened;
        running -= 1;
        return DONE;
      };
      startWork(app, work, { concurrency: 4 });
      await until('four run', () => running === 4);
      expect(await app.queues.counts('crawl')).toMatchObject({ active: 4, prioritized: 8 });
      held.open();
      await until('all are completed', async () => (await app.queues.counts('crawl')).completed === 12);
      expect(most).toBe(4);
    });
  });

  describe('looking at a queue', () => {
    test('counts jobs by state', async () => {
      await using world = await createWorld();
      const app = appOf(world, LONG_MS);
      const held = gate();
      const work = {
        completed: async () => DONE,
        failed: async () => Promise.reject(new Error('unexpected')),
        delayed: async () => Promise.reject(new DeferredError(LONG_MS, 'claimed by another')),
        active: async () => held.opened.then(() => DONE),
      };
      type Fate = keyof typeof work;
      startWork(app, ({ tenantId }) => work[tenantId as Fate](), { concurrency: 4 });
      const queue = app.queues.get('crawl');
      for (const fate of Object.keys(work)) await queue.add('crawl', image(1, { tenantId: fate }), { attempts: 1 });
      await until('each has met its fate', async () => {
        const { completed, failed, delayed, active } = await app.queues.counts('crawl');
        return [completed, failed, delayed, active].every((count) => count === 1);
      });
      expect(await app.queues.counts('crawl')).toMatchObject({ waiting: 0, prioritized: 0 });
      expect(await app.queues.counts('embedding')).toMatchObject({ waiting: 0, prioritized: 0, completed: 0 });
      held.open();
      await until('the last is completed', async () => (await app.queues.counts('crawl')).completed === 2);
    });

    test('tells how long the longest waiting job has waited', async () => {
      await using world = await createWorld();
      const app = appOf(world);
      expect(await app.queues.oldestWaitingSeconds('crawl')).toBe(0);
      const queue = app.queues.get('crawl');
      await queue.add('crawl', image(1), { timestamp: Date.now() - 3_600_000 });
      await queue.add('crawl', image(2), { timestamp: Date.now() - 60_000 });
      await enqueueOne(app, image(3));
      const seconds = await app.queues.oldestWaitingSeconds('crawl');
      expect(seconds).toBeGreaterThanOrEqual(3_600);
      expect(seconds).toBeLessThan(3_700);
      await queue.add('crawl', image(4), { timestamp: Date.now() - 7_200_000, priority: 9 });
      expect(await app.queues.oldestWaitingSeconds('crawl')).toBeGreaterThanOrEqual(7_200);
      expect(await app.queues.oldestWaitingSeconds('embedding')).toBe(0);
    });

    test('says that the store is up', async () => {
      await using world = await createWorld();
      expect(await appOf(world).queues.isUp()).toBe(true);
    });
  });
}

function aborted(signal: AbortSignal | undefined): Promise<never> {
  return new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason), { once: true }));
}
