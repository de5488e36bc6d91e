/** Tenants take turns: what `src/queues/turns.ts` says, on both stores. */
import type { Job, Worker } from 'bullmq';
import fc from 'fast-check';
import { Client } from 'pg';
import { describe, expect, test, vi } from 'vitest';
import type { App } from '../../src/app.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { Queues } from '../../src/queues/index.js';
import { TURN_RULES, type TurnRules, Turns } from '../../src/queues/turns.js';
import { gate, image, startWork } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';

const LONG_MS = 600_000;
/** Enqueuing is over when it resolves, where nobody else does it. */
const AT_ONCE: TurnRules = { ...TURN_RULES, inFlightMs: 0 };

describe.each(['redis', 'postgres'] as const)('turns on %s', (backend) => {
  const env: Record<string, string> = backend === 'postgres' ? { REDIS_URL: 'none' } : {};

  /** Queues by these rules, and a worker that does nothing by itself. */
  function line(world: World, rules: TurnRules = AT_ONCE, app = world.app(env)) {
    const queues = app.closer.add('queues', new Queues(app.backend, rules), (all) => all.close());
    const worker = app.backend.worker('crawl', async () => ({ outcome: 'stored' }), 1);
    app.closer.add('worker', worker, (one) => one.close(true));
    const enqueue = (tenantId: string, names: readonly string[]) =>
      queues.enqueue(
        crawlQueue,
        names.map((name) => image(name, { tenantId })),
      );
    const turns = app.closer.add('turns', new Turns(app.backend.state, rules), (all) => all.close());
    /** Once every job has its number in the present numbering. */
    const settled = () =>
      until('every job is renumbered', async () => {
        await turns.take('crawl', [{ tenantId: 'nobody', identity: 'nothing' }]); // sees to it
        return !(await app.backend.state.takeTurns('crawl', [], rules)).outdated;
      });
    return { app, queues, queue: queues.get('crawl'), enqueue, settled, ...byHand(worker) };
  }

  describe('the order of jobs', () => {
    test('is that of start-time fair queuing, also over renumberings', { timeout: 300_000 }, async () => {
      await using world = await createWorld();
      const rules = { ...AT_ONCE, most: 100, page: 7 };
      const { queue, enqueue, settled, take, complete } = line(world, rules);
      let names = 0;
      const held: Job[] = [];
      const run = async (steps: readonly Step[]) => {
        await queue.obliterate({ force: true });
        await queue.resume();
        const model = new Model();
        const ran: string[] = [];
        const expected: string[] = [];
        const rest: Step[] = [{ does: 'release' }, { does: 'run', jobs: 1_000 }];
        for (const step of [...steps, ...rest]) {
          if (step.does === 'enqueue') {
            const fresh = Array.from({ length: step.jobs }, () => `${step.tenant}-${++names}`);
            // What waits is named again: twins take no turn.
            await enqueue(step.tenant, [...model.waitingOf(step.tenant), ...fresh]);
            await settled();
            model.enqueue(step.tenant, fresh);
          } else if (step.does === 'remove') {
            for (const job of await queue.getJobs(['prioritized']))
              if (tenantOf(job) === step.tenant) await job.remove();
            model.remove(step.tenant);
          } else if (step.does === 'hold') {
            const job = await take();
            if (job) held.push(await holdBack(job));
            model.hold();
          } else if (step.does === 'release') {
            for (const job of held.splice(0)) await job.promote();
            model.release();
          } else {
            for (let left = step.jobs; left > 0; left--) {
              const job = await take();
              if (!job) break;
              ran.push(nameOf(job));
              await complete(job);
            }
            expected.push(...model.run(step.jobs));
          }
        }
        expect(ran).toEqual(expected);
      };
      await fc.assert(fc.asyncProperty(fc.array(aStep, { minLength: 5, maxLength: 25 }), run), { numRuns: 25 });
    });

    test('gives a tenant that comes later its share at once', async () => {
      await using world = await createWorld();
      const { enqueue, run } = line(world);
      await enqueue('large', numbered('a', 50));
      await run(20);
      await enqueue('small', numbered('b', 3));
      expect(await run(6)).toEqual(['a20', 'b0', 'a21', 'b1', 'a22', 'b2']);
    });

    test('puts nobody behind for jobs that are done', async () => {
      await using world = await createWorld();
      const { enqueue, run } = line(world);
      await enqueue('alone', numbered('a', 50));
      await run(50);
      await enqueue('other', numbered('b', 3));
      await enqueue('alone', numbered('c', 3));
      expect(await run(6)).toEqual(['b0', 'c0', 'b1', 'c1', 'b2', 'c2']);
    });

    test('puts nobody behind for jobs that were removed, while others wait', async () => {
      await using world = await createWorld();
      const { enqueue, queue, run } = line(world);
      await enqueue('removed', numbered('a', 50));
      await enqueue('other', numbered('b', 20));
      for (const job of await queue.getJobs(['prioritized'])) if (tenantOf(job) === 'removed') await job.remove();
      await enqueue('removed', numbered('c', 2));
      expect(await run(4)).toEqual(['b0', 'c0', 'b1', 'c1']);
    });

    test('puts nobody behind for jobs that were drained', async () => {
      await using world = await createWorld();
      const { enqueue, queue, run } = line(world);
      await enqueue('drained', numbered('a', 50));
      await run(5);
      await queue.drain();
      await enqueue('other', numbered('b', 20));
      await enqueue('drained', numbered('c', 2));
      expect(await run(4)).toEqual(['b0', 'c0', 'b1', 'c1']);
    });

    test('counts jobs that are still on their way, for those who enqueue meanwhile', async () => {
      await using world = await createWorld();
      const { app, enqueue, run } = line(world, TURN_RULES);
      const comers = numbered('x', 5).map((identity) => ({ tenantId: 'a', identity }));
      await app.backend.state.takeTurns('crawl', comers, TURN_RULES);
      await enqueue('b', numbered('b', 7));
      await enqueue('a', numbered('a', 2));
      expect(await run(9)).toEqual(['b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'a0', 'b6', 'a1']);
    });

    test('is that of each tenant where one call enqueues for several', async () => {
      await using world = await createWorld();
      const { queues, run } = line(world);
      const names = ['a0', 'a1', 'a2', 'b0', 'b1', 'c0'];
      await queues.enqueue(
        crawlQueue,
        names.map((name) => image(name, { tenantId: name.slice(0, 1) })),
      );
      expect(await run(6)).toEqual(['a0', 'b0', 'c0', 'a1', 'b1', 'a2']);
    });

    test('has a twin in one call take one turn', async () => {
      await using world = await createWorld();
      const { enqueue, run } = line(world);
      await enqueue('a', ['a0', 'a0', 'a0', 'a1']);
      await enqueue('b', numbered('b', 2));
      expect(await run(4)).toEqual(['a0', 'b0', 'a1', 'b1']);
    });

    test('has jobs that were held back, or failed and are retried, come before all later ones', async () => {
      await using world = await createWorld();
      const { enqueue, run, take, fail } = line(world);
      await enqueue('a', numbered('a', 20));
      const held = await holdBack((await take()) as Job);
      const failed = (await take()) as Job;
      await fail(failed);
      await run(5);
      await enqueue('b', numbered('b', 20));
      await held.promote();
      await failed.retry('failed');
      expect((await run(2)).toSorted()).toEqual(['a0', 'a1']);
      expect(await run(3)).toEqual(['a7', 'b0', 'a8']);
    });

    test('has them come first also where nothing else waited meanwhile', async () => {
      await using world = await createWorld();
      const { enqueue, run, take } = line(world);
      await enqueue('a', numbered('a', 20));
      await run(15);
      const held = await holdBack((await take()) as Job);
      await run(4);
      await enqueue('b', numbered('b', 20));
      await run(1);
      await held.promote();
      expect(await run(2)).toEqual(['a15', 'b1']);
    });

    test('counts jobs that are held back as their tenant’s', async () => {
      await using world = await createWorld();
      const { enqueue, run, take } = line(world);
      await enqueue('a', numbered('a', 5));
      const held = [];
      for (let job = await take(); job; job = await take()) held.push(await holdBack(job));
      await enqueue('a', ['a5']);
      await enqueue('b', numbered('b', 7));
      for (const job of held) await job.promote();
      expect((await run(12)).toSorted()).toEqual(['a0', 'a1', 'a2', 'a3', 'a4', 'a5', ...numbered('b', 6)]);
    });

    test('is not led astray by an old job that is next', async () => {
      await using world = await createWorld();
      const { enqueue, run, take } = line(world);
      await enqueue('a', numbered('a', 40));
      const held = await holdBack((await take()) as Job);
      await run(20);
      await held.promote();
      await enqueue('b', numbered('b', 20));
      expect(await run(5)).toEqual(['a0', 'b0', 'a21', 'b1', 'a22']);
    });

    test('goes by all jobs that ended in the last millisecond', async () => {
      await using world = await createWorld();
      const { enqueue, run, take } = line(world);
      await enqueue('a', numbered('a', 40));
      const held = await holdBack((await take()) as Job);
      vi.useFakeTimers({ toFake: ['Date'], now: Date.now() });
      await run(20).finally(() => vi.useRealTimers());
      await held.promote();
      await enqueue('b', numbered('b', 20));
      expect(await run(5)).toEqual(['a0', 'b0', 'a21', 'b1', 'a22']);
    });

    test('has jobs of other clients without a priority come first, and leaves the turns as they are', async () => {
      await using world = await createWorld();
      const { enqueue, queue, run } = line(world);
      await enqueue('a', numbered('a', 3));
      await enqueue('b', numbered('b', 3));
      await queue.add('anything', image('x0', { tenantId: 'a' }));
      await queue.add('anything', image('x1', { tenantId: 'c' }));
      expect(await run(8)).toEqual(['x0', 'x1', 'a0', 'b0', 'a1', 'b1', 'a2', 'b2']);
    });

    test('goes on where what was kept of the turns is lost', async () => {
      await using world = await createWorld();
      const { app, enqueue, run, settled } = line(world, { ...AT_ONCE, most: 40 });
      for (let round = 0; round < 3; round++) {
        await enqueue('a', numbered(`a${round}-`, 20));
        await settled();
        await run(round < 2 ? 20 : 5); // comes past renumberings
      }
      await forgetTurns(world, backend);
      await enqueue('b', numbered('b', 3));
      await enqueue('c', numbered('c', 3));
      expect(await run(6)).toEqual(['a2-5', 'b0', 'c0', 'a2-6', 'b1', 'c1']);
      expect(await app.queues.counts('crawl')).toMatchObject({ prioritized: 15 });
    });
  });

  describe('a tenant with many jobs', () => {
    test('has nearly all of them left when another’s ten are done', { timeout: 120_000 }, async () => {
      await using world = await createWorld();
      const app = world.app(env);
      const concurrency = 4;
      const ran: string[] = [];
      const both = gate();
      await app.queues.enqueue(
        crawlQueue,
        numbered('l', 10_000).map((name) => image(name, { tenantId: 'large' })),
      );
      startWork(
        app,
        async ({ tenantId }) => {
          ran.push(tenantId);
          if (ran.length > 100) await both.opened;
          return { outcome: 'stored' };
        },
        { concurrency },
      );
      await until('the large one is at it', () => ran.length >= 100 + concurrency);
      await app.queues.enqueue(
        crawlQueue,
        numbered('s', 10).map((name) => image(name, { tenantId: 'small' })),
      );
      both.open();
      await until('the ten have run', () => ran.filter((tenant) => tenant === 'small').length === 10);
      const last = ran.lastIndexOf('small');
      expect(last).toBeLessThan(100 + concurrency + 2 * 10 + concurrency);
      expect((await app.queues.counts('crawl')).prioritized).toBeGreaterThan(9_000);
    });

    test('takes the turns of its jobs one by one, also from producers in several places', async () => {
      await using world = await createWorld();
      const apps = [world.app(env), world.app(env), world.app(env)];
      const one = (app: App, tenantId: string, name: string) =>
        app.queues.enqueue(
          crawlQueue,
          numbered(name, 40).map((each) => image(each, { tenantId })),
        );
      await Promise.all(
        apps.flatMap((app, i) =>
          ['a', 'b'].flatMap((tenant) => [one(app, tenant, `x${i}-`), one(app, tenant, `y${i}-`)]),
        ),
      );
      const jobs = await line(world).queue.getJobs(['prioritized']);
      for (const tenant of ['a', 'b']) {
        const turns = jobs.filter((job) => tenantOf(job) === tenant).map(({ priority }) => priority);
        expect(turns).toHaveLength(240);
        expect(new Set(turns).size).toBe(240);
        expect(Math.max(...turns) - Math.min(...turns)).toBe(2 * 239);
      }
    });

    test('has jobs beyond the range run in their order, and others still come at once', async () => {
      await using world = await createWorld();
      const { enqueue, settled, run } = line(world, { ...AT_ONCE, most: 16, page: 5 });
      await enqueue('many', numbered('m', 100));
      const ran: string[] = [];
      for (let round = 0; round < 25; round++) {
        await enqueue('few', [`f${round}`]);
        await settled();
        const next = await run(5);
        expect(next.slice(0, 3)).toContain(`f${round}`);
        ran.push(...next.filter((name) => name.startsWith('m')));
      }
      expect(ran).toEqual(numbered('m', 100));
    });
  });

  describe('renumbering', () => {
    const SMALL: TurnRules = { ...TURN_RULES, most: 60, page: 10, inFlightMs: 20, leaseMs: 1_000 };

    test('goes on under load, loses nothing, and keeps every tenant’s share', { timeout: 180_000 }, async () => {
      await using world = await createWorld();
      const tenants = ['a', 'b', 'c'];
      const lines = [line(world, SMALL), line(world, SMALL)];
      for (const { queues } of lines) await until('connected', () => queues.isUp());
      const ran: string[] = [];
      const app = world.app(env);
      startWork(app, async ({ url }) => {
        ran.push(nameIn(url));
        return { outcome: 'stored' };
      });
      const enqueued: string[] = [];
      for (let round = 0; round < 40; round++) {
        await Promise.all(
          tenants.map((tenant, i) => {
            const names = numbered(`${tenant}${round}-`, 10);
            enqueued.push(...names);
            const { enqueue } = lines[(round + i) % lines.length] as (typeof lines)[0];
            return until('a queue that answers', () => enqueue(tenant, names)); // as a producer does
          }),
        );
        await until('few wait', async () => enqueued.length - ran.length < 80);
      }
      await until('all have run', () => ran.length >= enqueued.length);
      expect(ran.toSorted()).toEqual(enqueued.toSorted());
      await until('all are done', async () => (await app.queues.counts('crawl')).completed === 1_200);
      expect(await app.queues.counts('crawl')).toMatchObject({ failed: 0, delayed: 0 });
      // At no time has one tenant run more than another by more than what waited.
      for (let n = 0; n < ran.length; n++) {
        const counts = tenants.map((tenant) => ran.slice(0, n).filter((name) => name.startsWith(tenant)).length);
        expect(Math.max(...counts) - Math.min(...counts)).toBeLessThan(40);
      }
    });

    test('reaches jobs that are held back, run or have failed', async () => {
      await using world = await createWorld();
      const { enqueue, run, take, fail, settled } = line(world, { ...AT_ONCE, most: 60, page: 10 });
      await enqueue('a', numbered('a', 50));
      await run(10);
      const held = await holdBack((await take()) as Job);
      const failed = (await take()) as Job;
      await fail(failed);
      const running = (await take()) as Job;
      await run(25);
      await enqueue('b', numbered('b', 30)); // past the middle of the range
      await settled();
      await held.promote();
      await failed.retry('failed');
      await holdBack(running);
      await running.promote();
      expect((await run(3)).toSorted()).toEqual(['a10', 'a11', 'a12']);
      expect(await run(4)).toEqual(['a38', 'b0', 'a39', 'b1']);
    });

    test('is one’s to do at a time, and goes on after who was at it has ended', async () => {
      await using world = await createWorld();
      const first = line(world, { ...SMALL, inFlightMs: LONG_MS, leaseMs: LONG_MS });
      const { state } = first.app.backend;
      await first.enqueue('a', numbered('a', 50));
      await first.run(40);
      await first.enqueue('b', ['b0']);
      await until('it waits for those in flight', async () => {
        const jobs = await first.queue.getJobs(['prioritized', 'completed']);
        return new Set(jobs.map(({ priority }) => priority % 2)).size === 1;
      });
      const second = line(world, { ...SMALL, inFlightMs: 0 });
      expect(await state.renumber('crawl', 'another', '', SMALL)).toBeNull();
      await first.app.close();
      await second.enqueue('c', ['c0']);
      await second.settled();
      expect(await second.run(4)).toEqual(['a40', 'b0', 'c0', 'a41']);
    });

    test('goes on once the lease of who died at it has ended', async () => {
      await using world = await createWorld();
      const rules = { ...SMALL, inFlightMs: 0 };
      const { app, enqueue, run, settled } = line(world, rules);
      await enqueue('a', numbered('a', 50));
      await run(40);
      const { state } = app.backend;
      expect(await state.takeTurns('crawl', [], rules)).toMatchObject({ outdated: true });
      expect(await state.renumber('crawl', 'dead', '', { ...rules, page: 3, leaseMs: 500 })).toMatchObject({
        renumbered: 3,
      });
      await until('somebody else is at it', async () => {
        await enqueue('b', ['b0']);
        return !(await state.takeTurns('crawl', [], rules)).outdated;
      });
      await settled();
      expect(await run(3)).toEqual(['a40', 'b0', 'a41']);
    });
  });
});

type Step =
  | { readonly does: 'enqueue'; readonly tenant: string; readonly jobs: number }
  | { readonly does: 'run'; readonly jobs: number }
  | { readonly does: 'remove'; readonly tenant: string }
  | { readonly does: 'hold' }
  | { readonly does: 'release' };

const aTenant = fc.constantFrom('a', 'b', 'c', 'd');
const aStep: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ does: fc.constant('enqueue'), tenant: aTenant, jobs: fc.integer({ min: 0, max: 8 }) }),
  },
  { weight: 6, arbitrary: fc.record({ does: fc.constant('run'), jobs: fc.integer({ min: 1, max: 15 }) }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('remove'), tenant: aTenant }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constantFrom('hold', 'release') }) },
) as fc.Arbitrary<Step>;

interface Waiting {
  readonly tenant: string;
  readonly name: string;
  readonly turn: number;
  /** Orders those of one turn. */
  came: number;
}

/** Start-time fair queuing in the plainest words: one list of all that wait, and one of what is held back. */
class Model {
  #waiting: Waiting[] = [];
  #held: Waiting[] = [];
  readonly #last = new Map<string, Waiting>();
  #present = 0;
  #count = 0;

  waitingOf(tenant: string): string[] {
    return this.#waiting.filter((job) => job.tenant === tenant).map(({ name }) => name);
  }

  enqueue(tenant: string, names: readonly string[]): void {
    this.#present = Math.max(this.#present, this.#waiting[0]?.turn ?? 0);
    for (const name of names) {
      const last = this.#last.get(tenant);
      const isAhead = last && (this.#waiting.includes(last) || this.#held.includes(last));
      const job = { tenant, name, turn: Math.max(this.#present, isAhead ? last.turn + 1 : 0), came: 0 };
      this.#last.set(tenant, job);
      this.#add(job);
    }
  }

  run(jobs: number): string[] {
    const ran = this.#waiting.splice(0, jobs);
    for (const { turn } of ran) this.#present = Math.max(this.#present, turn);
    return ran.map(({ name }) => name);
  }

  remove(tenant: string): void {
    this.#waiting = this.#waiting.filter((job) => job.tenant !== tenant);
  }

  hold(): void {
    this.#held.push(...this.#waiting.splice(0, 1));
  }

  release(): void {
    for (const job of this.#held.splice(0)) this.#add(job);
  }

  #add(job: Waiting): void {
    job.came = ++this.#count;
    this.#waiting.push(job);
    this.#waiting.sort((one, other) => one.turn - other.turn || one.came - other.came);
  }
}

/** Takes one job after the other, when it is told to. */
function byHand(worker: Worker) {
  const token = 'by-hand';
  const take = async (): Promise<Job | undefined> => await worker.getNextJob(token, { block: false });
  const complete = async (job: Job) => void (await job.moveToCompleted({ outcome: 'stored' }, token, false));
  return {
    take,
    complete,
    fail: async (job: Job) => {
      job.opts.attempts = 1;
      await job.moveToFailed(new Error('not this time'), token, false);
    },
    /** @returns the names of the jobs that were next, at most `jobs` */
    run: async (jobs: number) => {
      const names: string[] = [];
      for (let job = await take(); job; job = names.length < jobs ? await take() : undefined) {
        names.push(nameOf(job));
        await complete(job);
      }
      return names;
    },
  };
}

async function holdBack(job: Job): Promise<Job> {
  await job.moveToDelayed(Date.now() + LONG_MS, 'by-hand');
  return job;
}

function numbered(name: string, count: number): string[] {
  return Array.from({ length: count }, (_, n) => `${name}${n}`);
}

function nameOf(job: Job): string {
  return nameIn(job.data.url);
}

function nameIn(url: string): string {
  return url.replace(/^.*\/(.*)\.jpg$/, '$1');
}

function tenantOf(job: Job): string {
  return job.data.tenantId;
}

async function forgetTurns(world: World, backend: 'redis' | 'postgres'): Promise<void> {
  if (backend === 'redis') {
    const redis = redisClient(world);
    await redis.del(`${world.namespace}:turns:crawl`);
    redis.disconnect();
    return;
  }
  const client = new Client({ connectionString: world.databaseUrl });
  await client.connect();
  await client.query('truncate queue_state.tenant_turns, queue_state.numberings');
  await client.end();
}
