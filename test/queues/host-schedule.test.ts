/** Who may ask a host, and when: over several workers, on both stores, with a host that counts. */
import { setTimeout as pause } from 'node:timers/promises';
import { Client } from 'pg';
import { describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { DeferredError } from '../../src/errors.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { HostSchedule, type VisitStep } from '../../src/queues/host-schedule.js';
import { type CrawlWork, enqueueOne, image, startWork, untilState } from '../support/queue-work.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';

/** Longer than any test: who waits for a lease to end, waits in vain. */
const LONG_MS = 600_000;
/** What the clocks of a store and of this process differ by where each drops, or rounds, what is below a millisecond. */
const ROUNDED_MS = 2;
const HOST = 'images.example:8080';

/** A host that counts whom it serves. */
class Counting {
  /** When each one asked for its permit, and when it had it: it began somewhere in between. */
  readonly begun: { asked: number; had: number }[] = [];
  inFlight = 0;
  most = 0;

  async serve(ms: number, asked: number): Promise<void> {
    this.begun.push({ asked, had: Date.now() });
    this.most = Math.max(this.most, ++this.inFlight);
    await pause(ms);
    this.inFlight--;
  }

  /** The least gap between any two beginnings that these times allow for, in milliseconds. */
  get leastGap(): number {
    const gaps = this.begun.flatMap((one, i) =>
      this.begun.slice(i + 1).map((other) => Math.max(other.had - one.asked, one.had - other.asked)),
    );
    return Math.min(...gaps);
  }
}

describe.each(['redis', 'postgres'])('host schedule on %s', (backend) => {
  const env: Record<string, string> = backend === 'postgres' ? { REDIS_URL: 'none' } : {};
  const scheduleOf = (app: App) => new HostSchedule(app.backend.state, app.queues.get('crawl'));
  const rules = (changes = {}) => ({ most: 2, gapMs: 0, leaseMs: LONG_MS, ...changes });

  /** A worker whose jobs visit the hosts of their URLs, for as long as `msOf` says. */
  function visiting(app: App, hosts: Map<string, Counting>, ruled: ReturnType<typeof rules>, msOf: () => number) {
    const schedule = scheduleOf(app);
    const work: CrawlWork = async ({ url }, { id }) => {
      const { host } = new URL(url);
      const asked = Date.now();
      const permit = await schedule.enter(host, id, 'acme', ruled);
      await hosts.get(host)?.serve(msOf(), asked);
      await permit.leave(ruled);
      return { outcome: 'stored' };
    };
    return startWork(app, work, { concurrency: 8 });
  }

  async function completed(app: App, ids: readonly string[]): Promise<number[]> {
    const queue = app.queues.get('crawl');
    await until('all jobs to complete', async () => (await queue.getCompletedCount()) === ids.length, 60_000);
    const jobs = await Promise.all(ids.map((id) => queue.getJob(id)));
    expect(jobs.map((job) => job?.attemptsMade)).toEqual(ids.map(() => 1));
    return jobs.map((job) => job?.attemptsStarted ?? 0);
  }

  test('no host has more than its limit at once, over three workers; nobody is woken only to be turned away', async () => {
    await using world = await createWorld();
    const apps = [1, 2, 3].map(() => world.app(env));
    const names = ['a.example', 'b.example', 'c.example:81'];
    const hosts = new Map(names.map((name) => [name, new Counting()]));
    for (const app of apps) visiting(app, hosts, rules({ most: 3 }), () => 5 + Math.random() * 20);
    const [app] = apps as [App];
    const payloads = Array.from({ length: 90 }, (_, n) => image(n, { url: `http://${names[n % 3]}/${n}.jpg` }));
    const runs = await completed(app, await app.queues.enqueue(crawlQueue, payloads));
    for (const host of hosts.values()) {
      expect(host.begun).toHaveLength(30);
      expect(host.most).toBeLessThanOrEqual(3);
    }
    expect(Math.max(...[...hosts.values()].map(({ most }) => most))).toBeGreaterThan(1);
    // The run that queued up, and the one that had its turn.
    expect(Math.max(...runs)).toBeLessThanOrEqual(2);
  });

  test('there is a gap between any two beginnings at a host, and none between hosts', async () => {
    await using world = await createWorld();
    const apps = [1, 2].map(() => world.app(env));
    const hosts = new Map(['a.example', 'b.example'].map((name) => [name, new Counting()]));
    for (const app of apps) visiting(app, hosts, rules({ most: 4, gapMs: 60 }), () => 5);
    const [app] = apps as [App];
    const payloads = [...hosts.keys()].flatMap((name) =>
      Array.from({ length: 12 }, (_, n) => image(n, { url: `http://${name}/${n}.jpg` })),
    );
    await completed(app, await app.queues.enqueue(crawlQueue, payloads));
    for (const { begun, leastGap } of hosts.values()) {
      expect(begun).toHaveLength(12);
      expect(leastGap).toBeGreaterThanOrEqual(60 - ROUNDED_MS);
      const [first, last] = [Math.min(...begun.map(({ asked }) => asked)), Math.max(...begun.map(({ had }) => had))];
      expect(last - first).toBeGreaterThanOrEqual(11 * 60 - ROUNDED_MS);
    }
    const all = [...hosts.values()].flatMap(({ begun }) => begun.map(({ had }) => had)).sort((a, b) => a - b);
    expect(all.slice(1).some((at, i) => at - (all[i] as number) < 40)).toBe(true);
  });

  test('the next beginning is booked, and the one behind it once that has begun', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const ruled = rules({ most: 3, gapMs: 60_000 });
    await schedule.enter(HOST, 'first', 'acme', ruled);
    const second = await deferral(schedule.enter(HOST, 'second', 'acme', ruled));
    expect(second.delayMs).toBeGreaterThan(30_000);
    expect(second.delayMs).toBeLessThanOrEqual(60_000);
    // Asking again changes nothing.
    expect((await deferral(schedule.enter(HOST, 'second', 'acme', ruled))).delayMs).toBeLessThanOrEqual(second.delayMs);
    // The third is woken once the second begins, and looks up by itself should all of them die.
    expect((await deferral(schedule.enter(HOST, 'third', 'acme', ruled))).delayMs).toBeGreaterThan(LONG_MS / 2);
    await schedule.leave(HOST, 'second', ruled);
    const third = await deferral(schedule.enter(HOST, 'third', 'acme', ruled));
    expect(third.delayMs).toBeLessThanOrEqual(120_000);
  });

  test('a gap need not be a whole number of milliseconds', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const ruled = rules({ most: 3, gapMs: 60_009.999_999_999_8 });
    const permit = await schedule.enter(HOST, 'first', 'acme', ruled);
    const second = await deferral(schedule.enter(HOST, 'second', 'acme', ruled));
    expect(second.delayMs).toBeGreaterThan(30_000);
    await permit.leave(ruled, 0.5);
  });

  test('who begins late moves those behind it: there is a gap after the real beginning', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const ruled = rules({ most: 3, gapMs: 1_500 });
    await schedule.enter(HOST, 'first', 'acme', ruled);
    await deferral(schedule.enter(HOST, 'second', 'acme', ruled));
    await deferral(schedule.enter(HOST, 'third', 'acme', ruled));
    await pause(3_300);
    await schedule.enter(HOST, 'second', 'acme', ruled);
    await deferral(schedule.enter(HOST, 'third', 'acme', ruled));
  });

  test('who leaves wakes the next in line, first come, first served', async () => {
    await using world = await createWorld();
    const app = world.app(env);
    const schedule = scheduleOf(app);
    const order: string[] = [];
    const permit = await schedule.enter(HOST, 'holder', 'acme', rules({ most: 1 }));
    startWork(app, async ({ url }, { id }) => {
      const own = await schedule.enter(HOST, id, 'acme', rules({ most: 1 }));
      order.push(url);
      await own.leave(rules({ most: 1 }));
      return { outcome: 'stored' };
    });
    const ids: string[] = [];
    for (const n of [1, 2, 3]) {
      ids.push(await enqueueOne(app, image(n)));
      await untilState(app, ids.at(-1) as string, 'delayed');
    }
    expect(order).toEqual([]);
    await permit.leave(rules({ most: 1 }));
    for (const id of ids) await untilState(app, id, 'completed');
    expect(order).toEqual([1, 2, 3].map((n) => image(n).url));
  });

  test('tenants take turns in a line: one that comes late is not behind all that another has in it', async () => {
    await using world = await createWorld();
    const app = world.app(env);
    const schedule = scheduleOf(app);
    const one = rules({ most: 1 });
    const order: string[] = [];
    const permit = await schedule.enter(HOST, 'holder', 'large', one);
    startWork(app, async ({ tenantId }, { id }) => {
      const own = await schedule.enter(HOST, id, tenantId, one);
      order.push(tenantId);
      await own.leave(one);
      return { outcome: 'stored' };
    });
    const ids: string[] = [];
    const comes = async (tenantId: string) => {
      ids.push(await enqueueOne(app, image(ids.length, { tenantId })));
      await untilState(app, ids.at(-1) as string, 'delayed');
    };
    for (const tenantId of ['large', 'large', 'large', 'large', 'small', 'small', 'third']) await comes(tenantId);
    await permit.leave(one);
    for (const id of ids) await untilState(app, id, 'completed');
    expect(order).toEqual(['large', 'small', 'third', 'large', 'small', 'large', 'large']);

    // An empty line forgets: who was served much before is not behind.
    const again = await schedule.enter(HOST, 'holder', 'new', one);
    for (const tenantId of ['large', 'new']) await comes(tenantId);
    await again.leave(one);
    for (const id of ids) await untilState(app, id, 'completed');
    expect(order.slice(-2)).toEqual(['large', 'new']);
  });

  test('who is given a permit before it waits in its queue finds it once it does', async () => {
    await using world = await createWorld();
    const app = world.app(env);
    const schedule = scheduleOf(app);
    const holder = await schedule.enter(HOST, 'holder', 'acme', rules({ most: 1 }));
    startWork(app, async (_, { id }) => {
      const own = await schedule.enter(HOST, id, 'acme', rules({ most: 1 })).catch(async (error) => {
        // Between the answer and the queue.
        await holder.leave(rules({ most: 1 }));
        throw error;
      });
      await own.leave(rules({ most: 1 }));
      return { outcome: 'stored' };
    });
    await untilState(app, await enqueueOne(app), 'completed');
  });

  test('a host that is cooled down is left alone, by those who had booked too; then the line goes on as it was', async () => {
    await using world = await createWorld();
    const app = world.app(env);
    const schedule = scheduleOf(app);
    const ruled = rules({ most: 3, gapMs: 500 });
    const visits: { url: string; asked: number; began: number }[] = [];
    const permit = await schedule.enter(HOST, 'holder', 'acme', ruled);
    startWork(app, async ({ url }, { id }) => {
      const asked = Date.now();
      const own = await schedule.enter(HOST, id, 'acme', ruled);
      visits.push({ url, asked, began: Date.now() });
      await own.leave(ruled);
      return { outcome: 'stored' };
    });
    const ids: string[] = [];
    for (const n of [1, 2, 3, 4]) {
      ids.push(await enqueueOne(app, image(n)));
      // The first may have had its time by now.
      await untilState(app, ids.at(-1) as string, 'delayed', 'completed');
    }
    const cooled = Date.now();
    await permit.leave(ruled, 1_500);
    const left = Date.now();
    for (const id of ids) await untilState(app, id, 'completed');
    expect(visits.map(({ url }) => url)).toEqual([1, 2, 3, 4].map((n) => image(n).url));
    // Whoever asked before that may have been let in before it, too.
    const later = visits.filter(({ asked }) => asked > left);
    expect(later.length).toBeGreaterThan(0);
    expect(Math.min(...later.map(({ began }) => began)) - cooled).toBeGreaterThanOrEqual(1_500 - ROUNDED_MS);
  });

  test('who comes while a host cools down keeps the time it was given, before those who waited', async () => {
    await using world = await createWorld();
    const { state } = world.app(env).backend;
    const visit = (step: VisitStep, job: string, coolMs = 0) =>
      state.visit(step, HOST, { job, tenantId: 'acme' }, { ...rules({ most: 3, gapMs: 10_000 }), coolMs });
    for (const job of ['holder', 'booked', 'waiting']) await visit('enter', job);
    await visit('leave', 'holder', 60_000);
    const [booked] = await visit('enter', 'booked');
    expect(booked).toMatchObject({ job: 'booked', booked: true });
    expect(booked?.delayMs).toBeGreaterThan(30_000);
    expect(booked?.delayMs).toBeLessThanOrEqual(60_000);
    expect(await visit('enter', 'waiting')).toMatchObject([{ job: 'waiting', booked: false }]);
  });

  test('a host that was cooled down is asked by one at a time, until somebody comes back whom it did not send away', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const ruled = rules({ most: 3 });
    const enter = (job: string) => schedule.enter(HOST, job, 'acme', ruled);
    const [first] = [await enter('first'), await enter('second')];
    await first.leave(ruled, 200);
    // It was on its way while the host had enough already: this tells nothing of the host.
    await schedule.leave(HOST, 'second', ruled);
    await pause(250);
    const probe = await enter('third');
    await deferral(enter('fourth'));
    await probe.leave(ruled, 200);
    await pause(250);
    const again = await enter('fourth');
    await deferral(enter('fifth'));
    await again.leave(ruled);
    for (const job of ['fifth', 'sixth', 'seventh']) await enter(job);
    await deferral(enter('eighth'));
  });

  test('of a job that died the permit comes back, and of one that was removed at once', async () => {
    await using world = await createWorld();
    const app = world.app(env);
    const schedule = scheduleOf(app);
    const dying = rules({ most: 1, leaseMs: 400 });
    await schedule.enter(HOST, 'dead', 'acme', dying);
    startWork(app, async (_, { id }) => {
      const own = await schedule.enter(HOST, id, 'acme', dying);
      await own.leave(dying);
      return { outcome: 'stored' };
    });
    // Nobody wakes it: it looks up when the lease must have ended.
    await untilState(app, await enqueueOne(app), 'completed');

    const holder = await schedule.enter(HOST, 'holder', 'acme', rules({ most: 1 }));
    const [removed, next] = [await enqueueOne(app, image(2)), await enqueueOne(app, image(3))];
    for (const id of [removed, next]) await untilState(app, id, 'delayed');
    await (await app.queues.get('crawl').getJob(removed))?.remove();
    await holder.leave(rules({ most: 1 }));
    await untilState(app, next, 'completed');
  });

  describe('where nobody wakes a job that has its permit', () => {
    const one = rules({ most: 1 });

    /** A job in line behind a holder, with a worker that takes it once it is woken. */
    async function inLine(world: World, n = 1) {
      const app = world.app(env);
      const schedule = scheduleOf(app);
      await schedule.enter(HOST, 'holder', 'acme', one);
      startWork(app, async (_, { id }) => {
        await (await schedule.enter(HOST, id, 'acme', one)).leave(one);
        return { outcome: 'stored' };
      });
      const id = await enqueueOne(app, image(n));
      await untilState(app, id, 'delayed');
      return { app, schedule, id };
    }

    const tended = (schedule: HostSchedule) => schedule.tend(one, new AbortController().signal, 0);

    test('whoever tends the host does: its giver died in between', async () => {
      await using world = await createWorld();
      const { app, schedule, id } = await inLine(world);
      await app.backend.state.visit('leave', HOST, { job: 'holder' }, one);
      await tended(schedule);
      await untilState(app, id, 'completed');
    });

    test('whoever tends the host does: the queue could not be reached', async () => {
      await using world = await createWorld();
      const { app, schedule, id } = await inLine(world);
      const cutOff = world.app(env);
      await cutOff.queues.close();
      await scheduleOf(cutOff).leave(HOST, 'holder', one);
      await tended(schedule);
      await untilState(app, id, 'completed');
    });

    test('whoever tends the host does: those before it died, and nobody else steps there', async () => {
      await using world = await createWorld();
      const { app, schedule, id } = await inLine(world);
      await app.backend.state.visit('enter', HOST, { job: 'holder' }, { ...one, leaseMs: 1 });
      await until('the first in line to be found', async () => {
        await tended(schedule);
        return (await app.queues.job('crawl', id))?.state === 'completed';
      });
    });

    test('whoever tends the host does: its permit has ended meanwhile', async () => {
      await using world = await createWorld();
      const { app, schedule, id } = await inLine(world);
      await app.backend.state.visit('leave', HOST, { job: 'holder' }, { ...one, leaseMs: 1 });
      await until('the first in line to be found', async () => {
        await tended(schedule);
        return (await app.queues.job('crawl', id))?.state === 'completed';
      });
    });

    test('hosts that nobody waits at are not tended, nor those where somebody just came', async () => {
      await using world = await createWorld();
      const app = world.app(env);
      const schedule = scheduleOf(app);
      await schedule.enter('busy.example', 'holder', 'acme', one);
      await schedule.enter(HOST, 'holder', 'acme', one);
      await deferral(schedule.enter(HOST, 'waiting', 'acme', one));
      expect(await app.backend.state.overdueHosts(0, 10)).toEqual({ hosts: [], more: false });
      await app.backend.state.visit('leave', HOST, { job: 'holder' }, one);
      expect(await app.backend.state.overdueHosts(LONG_MS, 10)).toEqual({ hosts: [], more: false });
      expect(await app.backend.state.overdueHosts(0, 1)).toEqual({ hosts: [HOST], more: true });
    });
  });

  test('a job that ended otherwise does not keep the permit of its place in the line', async () => {
    await using world = await createWorld();
    const app = world.app(env);
    const schedule = scheduleOf(app);
    const one = rules({ most: 1 });
    const holder = await schedule.enter(HOST, 'holder', 'acme', one);
    startWork(app, async ({ url }, { id }) => {
      if (url === image('known').url) {
        await deferral(schedule.enter(HOST, id, 'acme', one));
        return { outcome: 'skipped' };
      }
      await (await schedule.enter(HOST, id, 'acme', one)).leave(one);
      return { outcome: 'stored' };
    });
    await untilState(app, await enqueueOne(app, image('known')), 'completed');
    const next = await enqueueOne(app, image('next'));
    await untilState(app, next, 'delayed');
    await holder.leave(one);
    await untilState(app, next, 'completed');
  });

  test('of a host that nobody asks any more, nothing is kept', async () => {
    await using world = await createWorld();
    const app = world.app(env);
    const schedule = scheduleOf(app);
    const brief = rules({ most: 1, gapMs: 1, leaseMs: 1_000 });
    await schedule.enter('died.example', 'holder', 'acme', brief);
    for (const host of ['a.example', 'b.example']) {
      const permit = await schedule.enter(host, 'holder', 'acme', brief);
      await deferral(schedule.enter(host, 'waiting', 'acme', brief));
      await permit.leave(brief);
      await schedule.leave(host, 'waiting', brief);
    }
    const cooled = await schedule.enter('cooled.example', 'holder', 'acme', brief);
    await cooled.leave(brief, 1);
    await until('the others to be forgotten', async () => {
      await schedule.tend(brief, new AbortController().signal, 0);
      return (await keptOf(world, backend)).join() === 'cooled.example';
    });
  });

  test('a job that runs again after its death has its permit still', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    await schedule.enter(HOST, 'one', 'acme', rules({ most: 1 }));
    await schedule.enter(HOST, 'one', 'acme', rules({ most: 1 }));
    await deferral(schedule.enter(HOST, 'other', 'acme', rules({ most: 1 })));
  });

  test('a job that was cut short and comes again makes another request: there is a gap before it too', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const far = rules({ gapMs: 60_000 });
    await schedule.enter(HOST, 'one', 'acme', far);
    const { delayMs } = await deferral(schedule.enter(HOST, 'one', 'acme', far));
    expect(delayMs).toBeGreaterThan(30_000);
    expect(delayMs).toBeLessThanOrEqual(60_000);
    // Behind it, and not beside it.
    expect((await deferral(schedule.enter(HOST, 'other', 'acme', far))).delayMs).toBeGreaterThan(60_000);
  });

  test('`also` is at once, and the gap of the next one counts from it', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const far = rules({ gapMs: 60_000 });
    const permit = await schedule.enter(HOST, 'one', 'acme', far);
    const first = Date.now();
    await pause(50);
    await permit.also(far);
    const { delayMs } = await deferral(permit.again(far));
    expect(delayMs).toBeGreaterThan(60_000 - (Date.now() - first) + 25);
    expect(delayMs).toBeLessThanOrEqual(60_000);
  });

  test('whoever knows of a gap keeps it from those who began without knowing, and are not back yet', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const far = rules({ most: 4, gapMs: 60_000 });
    const permit = await schedule.enter(HOST, 'asks for the rules', 'acme', rules({ most: 1 }));
    // It has read and told them, and did not book its image yet.
    const { delayMs } = await deferral(schedule.enter(HOST, 'knows the rules', 'acme', far));
    expect(delayMs).toBeGreaterThan(30_000);
    expect(delayMs).toBeLessThanOrEqual(60_000);
    // Behind that one.
    const own = await deferral(permit.again(far));
    expect(own.delayMs).toBeGreaterThan(60_000);
    expect(own.delayMs).toBeLessThanOrEqual(120_000);
    // Who gives its booking back leaves the gap.
    await schedule.leave(HOST, 'knows the rules', far);
    const next = await deferral(schedule.enter(HOST, 'comes later', 'acme', far));
    expect(next.delayMs).toBeGreaterThan(60_000);
  });

  test('a gap that nobody knew of counts from the last beginning also where that job has died', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const brief = rules({ most: 1, leaseMs: 100 });
    await schedule.enter(HOST, 'asks for the rules', 'acme', brief);
    await deferral(schedule.enter(HOST, 'other', 'acme', brief));
    await pause(150);
    const { delayMs } = await deferral(schedule.enter(HOST, 'other', 'acme', rules({ gapMs: 60_000 })));
    expect(delayMs).toBeGreaterThan(30_000);
    expect(delayMs).toBeLessThanOrEqual(60_000);
  });

  test('who was booked waits for the gap once more where somebody began beside it', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const ruled = rules({ most: 3, gapMs: 1_000 });
    await schedule.enter(HOST, 'dies', 'acme', ruled);
    await deferral(schedule.enter(HOST, 'booked', 'acme', ruled));
    await pause(2_100);
    // Both come late, and the one that died makes another request.
    await schedule.enter(HOST, 'dies', 'acme', ruled);
    const { delayMs } = await deferral(schedule.enter(HOST, 'booked', 'acme', ruled));
    expect(delayMs).toBeGreaterThan(0);
    expect(delayMs).toBeLessThanOrEqual(1_000);
    await pause(delayMs + ROUNDED_MS);
    await schedule.enter(HOST, 'booked', 'acme', ruled);
  });

  test('`again` keeps the place, and books a gap later', async () => {
    await using world = await createWorld();
    const schedule = scheduleOf(world.app(env));
    const permit = await schedule.enter(HOST, 'one', 'acme', rules({ most: 1 }));
    await deferral(schedule.enter(HOST, 'other', 'acme', rules({ most: 1 })));
    await permit.again(rules({ most: 1 }));
    // The gap counts from the last request, also where nobody knew of it then.
    const later = await deferral(permit.again(rules({ most: 1, gapMs: 60_000 })));
    expect(later.delayMs).toBeGreaterThan(30_000);
    expect(later.delayMs).toBeLessThanOrEqual(60_000);
    await deferral(schedule.enter(HOST, 'other', 'acme', rules({ most: 1 })));
  });
});

/** Hosts that something is kept of. */
async function keptOf(world: World, backend: string): Promise<string[]> {
  if (backend === 'postgres') {
    const client = new Client({ connectionString: world.databaseUrl });
    await client.connect();
    const kept = `select host from queue_state.hosts union select host from queue_state.host_permits
      union select host from queue_state.host_waiting order by host`;
    const { rows } = await client.query<{ host: string }>(kept).finally(() => client.end());
    return rows.map(({ host }) => host);
  }
  const redis = redisClient(world);
  const prefix = `${world.namespace}:host:`;
  const keys = await redis.keys(`${prefix}*`).finally(() => redis.disconnect());
  return [...new Set(keys.map((key) => key.slice(prefix.length).split(':')[0] as string))].sort();
}

async function deferral(work: Promise<unknown>): Promise<DeferredError> {
  const error = await work.then(
    () => new Error('it was not put off'),
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(DeferredError);
  return error as DeferredError;
}

test('with queues on PostgreSQL, a job whose numbers the store refuses fails, and is not handed back for ever', async () => {
  await using world = await createWorld();
  const app = world.app({ REDIS_URL: 'none' }, { retryBaseMs: 1 });
  const schedule = new HostSchedule(app.backend.state, app.queues.get('crawl'));
  startWork(app, async (_, { id }) => {
    await schedule.enter(HOST, id, 'acme', { most: 1, gapMs: Number.NaN, leaseMs: 1 });
    return { outcome: 'stored' };
  });
  const job = await untilState(app, await enqueueOne(app), 'failed');
  expect(job).toMatchObject({ attempts: 5, error: expect.stringContaining('NaN') });
});

test('with queues on PostgreSQL, a job that was taken while it was woken is not put back', async () => {
  await using world = await createWorld();
  const app = world.app({ REDIS_URL: 'none' });
  const queue = app.queues.get('crawl');
  const job = await queue.add('crawl', image(1), { delay: LONG_MS });
  const taker = await app.connection.pool.connect();
  await taker.query('begin');
  await taker.query(`update bullmq.job set state = 'active' where queue = 'crawl' and id = $1`, [job.id]);
  const waking = app.backend.state.promote(job);
  await until('the row to be waited for', async () => {
    const waits = `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
    return (await app.connection.pool.query(waits)).rowCount;
  });
  await taker.query('commit');
  taker.release();
  await waking;
  expect(await queue.getJobState(job.id as string)).toBe('active');
});
