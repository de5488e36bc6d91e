/** Crawl workers and their hosts: permission first, one at a time where they ask for it, and never more than they bear. */
import { setTimeout as pause } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import type { App } from '../../src/app.js';
import { DeferredError, JobLostError } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { retryFailed } from '../../src/queues/failed.js';
import { HostSchedule } from '../../src/queues/host-schedule.js';
import { Politeness } from '../../workers/politeness.js';
import { startWorkers, type Workers } from '../../workers/start.js';
import { crawled, crawlJob, ended } from '../support/crawl-run.js';
import { flatImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import {
  CRAWL_DELAY_S,
  LARGE_CLOSES,
  ROBOTS_ELSEWHERE,
  type Site,
  type SiteRequest,
  startSite,
  throttled,
} from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const PICTURE = await flatImage(20, 20, '#305070');

describe.each([
  { backend: 'redis', env: {} },
  { backend: 'postgres', env: { QUEUE_BACKEND: 'postgres' } },
])('politeness, queues on $backend', ({ env }) => {
  let world: World;
  let site: Site;
  let app: App;
  let running: Workers[];

  beforeEach(async () => {
    world = await createWorld();
    site = await startSite();
    running = [];
  });

  afterEach(async () => {
    await Promise.all(running.map((workers) => workers.stop(5_000)));
    await site.close();
    await world[Symbol.asyncDispose]();
  });

  function start(more: Record<string, string> = {}): App {
    const limits = { FETCH_ALLOW: '127.0.0.0/8:*', FETCH_ROBOTS: 'honour', FETCH_TIMEOUT_MS: '10000' };
    const started = world.app({ ...env, ...limits, ...more }, { engine: new PuppetEngine(), retryBaseMs: 20 });
    running.push(startWorkers(started, ['crawl']));
    return started;
  }

  const picture = (n: number | string, on = site) => on.put(`/${n}.png`, { body: PICTURE, type: 'image/png' });
  const enqueue = (urls: readonly string[], tenantId = 'acme') =>
    app.queues.enqueue(
      crawlQueue,
      urls.map((url) => ({ v: 1 as const, tenantId, url })),
    );
  const allEnded = (ids: readonly string[]) => Promise.all(ids.map((id) => ended(app, 'crawl', id)));

  describe('robots.txt', () => {
    test.each([
      'allow',
      'empty',
      'html',
      'binary',
      'missing',
      'gone',
      'unauthorized',
      'forbidden',
      'redirect',
      'redirect-loop',
    ] as const)('%s: the image is fetched, and the file once a host', async (sort) => {
      app = start();
      site.robots(sort);
      for (const n of [1, 2]) expect(await crawled(app, 'acme', picture(n))).not.toMatchObject({ outcome: 'rejected' });
      expect(site.requests.filter(({ path }) => path === '/robots.txt')).toHaveLength(1);
      expect(site.requests[0]?.headers['user-agent']).toMatch(/^hybrid-cache-service\//);
    });

    test.each(['disallow', 'byte-order-mark', 'gzip'] as const)('%s: no image is ever asked for', async (sort) => {
      app = start();
      site.robots(sort);
      const url = picture(1);
      const refusal = { outcome: 'rejected', reason: 'robots', detail: `${site.url}/robots.txt: Disallow: /` };
      expect(await crawled(app, 'acme', url)).toEqual(refusal);
      expect(await crawled(app, 'acme', `${url}?again`)).toEqual(refusal);
      expect(site.requests.map(({ path }) => path)).toEqual(['/robots.txt']);
      // The refusal is remembered: not even the rules are looked at again.
      expect(await crawled(app, 'acme', url)).toEqual(refusal);
    });

    test.each([
      ['error', 'server-error'],
      ['reset', 'connection'],
      ['hang', 'timeout'],
      ['slow', 'timeout'],
      ['endless', 'server-error'],
      ['throttled', 'throttled'],
      ['unavailable', 'throttled'],
    ] as const)('%s: nothing is allowed while nobody can say', async (sort, reason) => {
      app = start(reason === 'timeout' ? { FETCH_TIMEOUT_MS: '1500' } : {});
      site.robots(sort);
      const [id = ''] = await enqueue([picture(1)]);
      await site.until(({ requests }) => requests.length > 0);
      const job = await waitingForRetry(app, id);
      expect(job.failedReason || job.stacktrace?.join()).toContain(reason);
      expect(site.countOf('/1.png')).toBe(0);
    });

    test('while nobody can say, only the job that asked has spent an attempt; the others wait', async () => {
      app = start();
      site.robots('error');
      const [asking = ''] = await enqueue([picture(0)]);
      await waitingForRetry(app, asking);
      const others = await enqueue([1, 2, 3].map((n) => picture(n)));
      await delayed(app, others);
      for (const id of others) expect(await app.queues.job('crawl', id)).toMatchObject({ attempts: 0 });
      expect(site.requests.map(({ path }) => path)).toEqual(['/robots.txt']);
    });

    test('large: what stands in the first 500 KiB counts', async () => {
      app = start();
      site.robots('large');
      const early = picture(LARGE_CLOSES.early.slice(1));
      expect(await crawled(app, 'acme', early)).toMatchObject({ outcome: 'rejected', reason: 'robots' });
      expect(await crawled(app, 'acme', picture(LARGE_CLOSES.late.slice(1)))).toMatchObject({ outcome: 'stored' });
    });

    test('each tenant asks for itself, and nobody else’s answer is told', async () => {
      app = start();
      site.robots('disallow');
      for (const tenant of ['acme', 'other']) {
        expect(await crawled(app, tenant, picture(1))).toMatchObject({ outcome: 'rejected', reason: 'robots' });
      }
      expect(site.countOf('/robots.txt')).toBe(2);
    });

    test('where a redirect leads is asked too', async () => {
      app = start();
      await using other = await startSite({ host: '127.0.0.2' });
      site.robots('allow');
      other.robots('disallow');
      const url = site.redirect('/moved.png', picture(1, other));
      expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'rejected', reason: 'robots' });
      expect(other.requests.map(({ path }) => path)).toEqual(['/robots.txt']);
    });

    test('where robots.txt leads to its own host, whoever asked for it stays in front', async () => {
      app = start({ FETCH_HOST_CONCURRENCY: '1', FETCH_HOST_GAP_MS: '50' });
      const rules = site.hold(ROBOTS_ELSEWHERE, { body: 'User-agent: *\nAllow: /', type: 'text/plain' });
      site.robots('redirect');
      const [asking = ''] = await enqueue([picture(0)]);
      await site.until(({ requests }) => requests.some(({ path }) => path === ROBOTS_ELSEWHERE));
      const others = await enqueue([1, 2, 3].map((n) => picture(n)));
      await delayed(app, others);
      rules.release();
      for (const job of await allEnded([asking, ...others])) expect(job).toMatchObject({ state: 'completed' });
      const paths = site.requests.map(({ path }) => path);
      expect(paths.slice(0, 3)).toEqual(['/robots.txt', ROBOTS_ELSEWHERE, '/0.png']);
    });

    test('where robots.txt leads to another host that has had enough, its own host is not left alone for it', async () => {
      app = start({ FETCH_TIMEOUT_MS: '600000' });
      await using other = await startSite({ host: '127.0.0.2' });
      site.redirect('/robots.txt', other.put('/robots.txt', throttled(429, 3_600)));
      const [asking = ''] = await enqueue([picture(0)]);
      await waitingForRetry(app, asking);
      await (await occupied(site)).leave();
      await expect(occupied(other)).rejects.toThrow(DeferredError);
    });

    /** The only permit of a host, for as long as the test wants it. */
    async function occupied({ url }: Site): Promise<{ leave(): Promise<void> }> {
      const schedule = new HostSchedule(app.backend.state, app.queues.get('crawl'));
      const one = { most: 1, gapMs: 0, leaseMs: 600_000 };
      const permit = await schedule.enter(new URL(url).host, 'another', 'acme', one);
      return { leave: () => permit.leave(one) };
    }

    test('where robots.txt leads to a host that is busy, the job waits there, and goes on there', async () => {
      app = start({ FETCH_HOST_CONCURRENCY: '1' });
      await using other = await startSite({ host: '127.0.0.2' });
      site.redirect('/robots.txt', other.put('/robots.txt', { body: '', type: 'text/plain' }));
      const busy = await occupied(other);
      const ids = await enqueue([picture(0)]);
      await delayed(app, ids);
      await busy.leave();
      for (const job of await allEnded(ids)) expect(job).toMatchObject({ state: 'completed', attempts: 1 });
      expect([site, other].map((host) => host.countOf('/robots.txt'))).toEqual([1, 1]);
    });

    test.each([
      { page: { body: '', status: 500 }, state: 'delayed', told: 'status 500' },
      { page: { body: 'User-agent: *\nDisallow: /', type: 'text/plain' }, state: 'completed', told: 'Disallow: /' },
    ])('what such a host says of it then counts, and the own host is free: $told', async ({ page, state, told }) => {
      app = start({ FETCH_HOST_CONCURRENCY: '1' });
      await using other = await startSite({ host: '127.0.0.2' });
      site.redirect('/robots.txt', other.put('/robots.txt', page));
      const busy = await occupied(other);
      const [id = ''] = await enqueue([picture(0)]);
      await delayed(app, [id]);
      await busy.leave();
      const job = await until('an attempt to be spent', async () => {
        const view = await app.queues.job('crawl', id);
        return view?.attempts === 1 && view.state === state ? view : null;
      });
      expect(job.error ?? (job.outcome as { detail: string }).detail).toContain(told);
      await (await occupied(site)).leave();
      expect(site.countOf('/0.png')).toBe(0);
    });

    test('two hosts whose robots.txt lead to each other hold up nobody for ever', async () => {
      app = start({ FETCH_HOST_CONCURRENCY: '1', FETCH_TIMEOUT_MS: '3000' });
      await using other = await startSite({ host: '127.0.0.2' });
      const ways = [[site, other] as const, [other, site] as const].map(([from, to]) =>
        from.hold('/robots.txt', { body: '', status: 302, headers: { location: `${to.url}/robots.txt` } }),
      );
      const ids = await enqueue([picture(0), picture(0, other)]);
      // Each holds one host, and is led to the other's.
      for (const host of [site, other]) await host.until(({ requests }) => requests.length === 1);
      for (const way of ways) way.release();
      for (const job of await allEnded(ids)) expect(job).toMatchObject({ state: 'completed', attempts: 1 });
    });

    test('a crowd of a host that nobody knows asks for its rules once', async () => {
      app = start();
      site.robots('allow');
      const ids = await enqueue(Array.from({ length: 20 }, (_, n) => picture(n)));
      for (const job of await allEnded(ids)) expect(job.state).toBe('completed');
      expect(site.countOf('/robots.txt')).toBe(1);
    });

    test('who is refused gives what it had booked to the next, while nobody knew the rules', async () => {
      // Whoever had to wait for a lease to end would wait in vain.
      app = start({ FETCH_TIMEOUT_MS: '600000', FETCH_HOST_GAP_MS: '40' });
      site.put('/robots.txt', { body: 'User-agent: *\nDisallow: /no', type: 'text/plain' });
      const names = ['no1', 'no2', 'no3', 'yes1', 'no4', 'no5', 'yes2', 'no6', 'yes3', 'no7', 'no8', 'yes4'];
      const jobs = await allEnded(await enqueue(names.map((name) => picture(name))));
      const outcomes = jobs.map(({ outcome }) => (outcome as { outcome: string }).outcome);
      expect(outcomes.map((outcome) => outcome === 'rejected')).toEqual(names.map((name) => name.startsWith('no')));
      expect(site.requests.filter(({ path }) => path.startsWith('/no'))).toEqual([]);
    });

    test('`force` asks anew for rules that refuse, once they are older than a minute', async () => {
      app = start();
      const url = picture('opened');
      site.put('/robots.txt', { body: 'User-agent: *\nDisallow: /', type: 'text/plain' });
      expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'rejected', reason: 'robots' });
      site.put('/robots.txt', { body: '', type: 'text/plain' });
      expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({ reason: 'robots' });
      expect(site.countOf('/robots.txt')).toBe(1);
      vi.useFakeTimers({ now: Date.now() + 90_000, toFake: ['Date'] });
      onTestFinished(() => void vi.useRealTimers());
      expect(await crawled(app, 'acme', picture('other'))).toMatchObject({ reason: 'robots' });
      expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({ outcome: 'stored' });
      expect(site.countOf('/robots.txt')).toBe(2);
    });

    test('Crawl-delay is kept', async () => {
      app = start();
      site.robots('crawl-delay');
      const ids = await enqueue([1, 2, 3].map((n) => picture(n)));
      for (const job of await allEnded(ids)) expect(job).toMatchObject({ state: 'completed', attempts: 1 });
      const times = site.requests.map(({ at }) => at);
      expect(times).toHaveLength(4);
      for (let i = 1; i < times.length; i++) {
        expect((times[i] as number) - (times[i - 1] as number)).toBeGreaterThan(CRAWL_DELAY_S * 500);
      }
    });

    test('Crawl-delay is kept where URLs are refused, and give up their place in the line', async () => {
      app = start();
      site.put('/robots.txt', {
        body: `User-agent: *\nCrawl-delay: ${CRAWL_DELAY_S}\nDisallow: /private`,
        type: 'text/plain',
      });
      const secret = (n: number) => site.put(`/private/${n}.png`, { body: PICTURE, type: 'image/png' });
      // The first asks for the rules, and is refused by them.
      const ids = await enqueue([secret(1), picture(1), secret(2), picture(2), secret(3), picture(3), picture(4)]);
      for (const job of await allEnded(ids)) expect(job).toMatchObject({ state: 'completed', attempts: 1 });
      const times = site.requests.map(({ at }) => at);
      expect(times).toHaveLength(5);
      for (let i = 1; i < times.length; i++) {
        expect((times[i] as number) - (times[i - 1] as number)).toBeGreaterThan(CRAWL_DELAY_S * 500);
      }
    });

    test('`ignore` asks for no rules', async () => {
      app = start({ FETCH_ROBOTS: 'ignore' });
      site.robots('disallow');
      const url = site.put('/noindex.png', {
        body: PICTURE,
        type: 'image/png',
        headers: { 'x-robots-tag': 'noindex' },
      });
      expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'stored' });
      expect(site.countOf('/robots.txt')).toBe(0);
    });
  });

  test.each(['noimageindex', 'none', 'noai', 'noimageai'])(
    'X-Robots-Tag: %s: the image is not read, one that others may not index is',
    async (directive) => {
      app = start();
      const tagged = (path: string, tag: string) =>
        site.put(path, { body: PICTURE, type: 'image/png', headers: { 'x-robots-tag': tag } });
      const refused = await crawled(app, 'acme', tagged('/no.png', directive));
      expect(refused).toMatchObject({
        outcome: 'rejected',
        reason: 'robots',
        detail: expect.stringContaining('X-Robots-Tag'),
      });
      expect(await crawled(app, 'acme', tagged('/yes.png', `googlebot: ${directive}`))).toMatchObject({
        outcome: 'stored',
      });
    },
  );

  test('no host sees more than its limit, nor requests without a gap, over three workers; no attempt is spent on waiting', async () => {
    const politely = { FETCH_HOST_CONCURRENCY: '2', FETCH_HOST_GAP_MS: '300', FETCH_ROBOTS: 'ignore' };
    app = start(politely);
    start(politely);
    start(politely);
    await using other = await startSite({ host: '127.0.0.2' });
    const slow = (on: Site, n: number) => {
      const { url, release } = on.hold(`/${n}.png`, { body: PICTURE, type: 'image/png' });
      void on
        .until(({ requests }) => requests.some(({ path }) => path === `/${n}.png`))
        .then(() => pause(400).then(release));
      return url;
    };
    const urls = Array.from({ length: 12 }, (_, n) => [slow(site, n), slow(other, n)]).flat();
    for (const job of await allEnded(await enqueue(urls)))
      expect(job).toMatchObject({ state: 'completed', attempts: 1 });
    for (const one of [site, other]) {
      expect(one.requests).toHaveLength(12);
      expect(one.inFlight().highest).toBe(2);
      const times = one.requests.map(({ at }) => at);
      const gaps = times.slice(1).map((at, i) => at - (times[i] as number));
      // From the permit to the wire a process may take a moment, and the next one less. Without gaps, half are next to none.
      expect(gaps.filter((gap) => gap < 150).length).toBeLessThanOrEqual(2);
    }
  });

  test('as many requests are under way at a host as it may have, also where that is many', async () => {
    const many = 24;
    app = start({
      FETCH_HOST_CONCURRENCY: '24',
      CRAWL_CONCURRENCY: '24',
      FETCH_HOST_GAP_MS: '0',
      FETCH_ROBOTS: 'ignore',
    });
    const held = Array.from({ length: many }, (_, n) => site.hold(`/${n}.png`, { body: PICTURE, type: 'image/png' }));
    const ids = await enqueue(held.map(({ url }) => url));
    await site.until(() => site.inFlight().now === many);
    for (const { release } of held) release();
    for (const job of await allEnded(ids)) expect(job.state).toBe('completed');
  });

  test('a redirect is a request of its own: it waits for its host, and goes on from there', async () => {
    app = start({ FETCH_HOST_CONCURRENCY: '1', FETCH_HOST_GAP_MS: '2000', FETCH_ROBOTS: 'ignore' });
    const url = site.redirect('/from.png', picture('to'));
    expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'stored' });
    expect(site.requests.map(({ path }) => path)).toEqual(['/from.png', '/to.png']);
    const [first, second] = site.requests.map(({ at }) => at) as [number, number];
    expect(second - first).toBeGreaterThan(1_000);
  });

  test('a redirect to an address that is closed is refused at once, and waits for nobody there', async () => {
    app = start();
    const schedule = new HostSchedule(app.backend.state, app.queues.get('crawl'));
    await schedule.enter('169.254.169.254', 'another', 'acme', { most: 1, gapMs: 0, leaseMs: 600_000 });
    const url = site.redirect('/inside.png', 'http://169.254.169.254/latest/meta-data');
    expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'rejected', reason: 'blocked-address' });
    expect(site.countOf('/inside.png')).toBe(1);
  });

  test('where a redirect led before the wait says nothing of the URL: it is asked once more', async () => {
    app = start({ FETCH_HOST_CONCURRENCY: '1', FETCH_ROBOTS: 'ignore' });
    await using other = await startSite({ host: '127.0.0.2' });
    const outdated = other.put('/signed-for-a-minute.png', { status: 403 });
    const held = other.hold('/held.png', { body: PICTURE, type: 'image/png' });
    const [holding = ''] = await enqueue([held.url]);
    await other.until(({ requests }) => requests.length === 1);
    const waiting = await enqueue([site.redirect('/fresh.png', outdated), site.redirect('/gone.png', outdated)]);
    await delayed(app, waiting);
    site.redirect('/fresh.png', picture('signed-anew', other));
    held.release();
    const [, fresh, gone] = await allEnded([holding, ...waiting]);
    expect(fresh).toMatchObject({ attempts: 1, outcome: { outcome: 'skipped', reason: 'content' } });
    expect(gone).toMatchObject({ attempts: 1, outcome: { outcome: 'rejected', reason: 'forbidden' } });
    expect([site.countOf('/fresh.png'), site.countOf('/gone.png')]).toEqual([2, 2]);
  });

  test('a worker that stops closes the request that it waits for, and gives its permit back', async () => {
    // Nobody could wait for the lease to end.
    app = start({ FETCH_TIMEOUT_MS: '600000', FETCH_HOST_CONCURRENCY: '1', FETCH_ROBOTS: 'ignore' });
    const { url } = site.hold('/held.png', { body: PICTURE, type: 'image/png' });
    const [id = ''] = await enqueue([url]);
    await site.until(({ requests }) => requests.length === 1);
    await running[0]?.stop(500);
    await site.until(({ openConnections }) => openConnections === 0);
    expect(await app.queues.job('crawl', id)).toMatchObject({ state: 'delayed', attempts: 0 });
    const schedule = new HostSchedule(app.backend.state, app.queues.get('crawl'));
    await schedule.enter(new URL(url).host, 'another', 'acme', { most: 1, gapMs: 0, leaseMs: 1_000 });
  });

  test('a run that has lost its job leaves the permit to the next run of it', async () => {
    app = start();
    const schedule = new HostSchedule(app.backend.state, app.queues.get('crawl'));
    const options = { hostConcurrency: 1, hostGapMs: 0, leaseMs: 600_000, coolMs: 1_000, crawler: null };
    const fetcher = { fetch: () => Promise.reject(new Error('there are no rules to ask for')) };
    const politeness = new Politeness(schedule, app.connection.hybrid, fetcher, options);
    const [lost, alive] = [new AbortController(), new AbortController()];
    const admit = (jobId: string, { signal }: AbortController) =>
      politeness.admit({ tenantId: 'acme', jobId, signal, robotsTrail: [] }, `${site.url}/1.png`);
    const leave = await admit('job', lost);
    const leaveNext = await admit('job', alive);
    lost.abort(new JobLostError('its lock was lost'));
    await leave();
    await expect(admit('another', alive)).rejects.toThrow(DeferredError);
    await leaveNext();
    await (await admit('another', alive))();
  });

  test('a host that has had enough is left alone for as long as it says, by all', async () => {
    app = start({ FETCH_ROBOTS: 'ignore', FETCH_HOST_CONCURRENCY: '1' });
    start({ FETCH_ROBOTS: 'ignore', FETCH_HOST_CONCURRENCY: '1' });
    picture(0);
    const first = site.failTimes('/0.png', 1, throttled(429, 1));
    const ids = await enqueue([first]);
    await site.until(({ requests }) => requests.length === 1);
    ids.push(...(await enqueue([1, 2, 3].map((n) => picture(n)))));
    for (const job of await allEnded(ids)) expect(job.state).toBe('completed');
    const refusedAt = site.requests.find(({ path }) => path === '/0.png')?.at as number;
    const after = site.requests.filter(({ at }) => at > refusedAt).map(({ at }) => at - refusedAt);
    expect(after).toHaveLength(4);
    expect(Math.min(...after)).toBeGreaterThan(980);
    expect((await allEnded(ids)).map(({ attempts }) => attempts)).toEqual([2, 1, 1, 1]);
  });

  test.each([
    ['0', 0],
    ['a date in the past', new Date(0)],
  ])(
    'a host that has had enough and says Retry-After: %s is left alone too, and asked by one at a time',
    async (_, after) => {
      app = start({ FETCH_ROBOTS: 'ignore', FETCH_HOST_CONCURRENCY: '2' });
      picture(0);
      const first = site.failTimes('/0.png', 1, throttled(503, after));
      const ids = await enqueue([first]);
      const { requests } = site;
      await site.until(() => requests[0]?.endedAt !== undefined);
      // Its permit is given back in moments, and no later than by its next attempt.
      await until('the job waits', async () => (await app.queues.job('crawl', ids[0] as string))?.state === 'delayed');
      const held = [1, 2, 3].map((n) => site.hold(`/${n}.png`, { body: PICTURE, type: 'image/png' }));
      ids.push(...(await enqueue(held.map(({ url }) => url))));
      await site.until(() => requests.length > 1);
      const [refused, next] = requests as [SiteRequest, SiteRequest];
      expect(next.at - (refused.endedAt as number)).toBeGreaterThan(900);
      await delayed(app, ids.slice(2));
      for (const { release } of held) release();
      for (const job of await allEnded(ids)) expect(job.state).toBe('completed');
    },
  );

  test('a job that nobody told of its turn at a host is found by the workers', async () => {
    app = start({ FETCH_ROBOTS: 'ignore', FETCH_HOST_CONCURRENCY: '1' });
    const { host } = new URL(site.url);
    const long = { most: 1, gapMs: 0, leaseMs: 600_000 };
    await app.backend.state.visit('enter', host, { job: 'a-worker-that-dies', tenantId: 'acme' }, long);
    const [id = ''] = await enqueue([picture(1)]);
    await delayed(app, [id]);
    await app.backend.state.visit('leave', host, { job: 'a-worker-that-dies' }, long);
    expect(await ended(app, 'crawl', id)).toMatchObject({ state: 'completed', attempts: 1 });
  });

  test('a job that finds its image known gives its place at the host back', async () => {
    app = start({ FETCH_HOST_CONCURRENCY: '1', FETCH_ROBOTS: 'ignore' });
    const held = site.hold('/held.png', { body: PICTURE, type: 'image/png' });
    const [holding = ''] = await enqueue([held.url]);
    await site.until(({ requests }) => requests.length === 1);
    const waiting = await enqueue([picture('a'), picture('b')]);
    await delayed(app, waiting);
    // While they are in line, the images become known by other means.
    const keys = { rawKey: 'raw/of/another' };
    for (const name of ['a', 'b']) await app.cache.storeCrawledImage(`${site.url}/${name}.png`, PICTURE, keys, 'acme');
    const [last = ''] = await enqueue([picture('c')]);
    await delayed(app, [last]);
    held.release();
    for (const job of await allEnded([holding, ...waiting, last])) expect(job.state).toBe('completed');
    expect(site.requests.map(({ path }) => path)).toEqual(['/held.png', '/c.png']);
  });

  test('a job whose URL another one works on gives its place at the host back', async () => {
    app = start({ FETCH_HOST_CONCURRENCY: '1', FETCH_ROBOTS: 'ignore' });
    const held = site.hold('/held.png', { body: PICTURE, type: 'image/png' });
    const [holding = ''] = await enqueue([held.url]);
    await site.until(({ requests }) => requests.length === 1);
    const [first = ''] = await enqueue([picture('a')]);
    await delayed(app, [first]);
    const claim = { tenantId: 'acme', subject: `url:${sha256(`${site.url}/a.png`)}`, holder: 'another job' };
    await app.claims.take(claim, 600_000);
    const [last = ''] = await enqueue([picture('b')]);
    await delayed(app, [last]);
    held.release();
    for (const job of await allEnded([holding, last])) expect(job.state).toBe('completed');
    expect(site.countOf('/a.png')).toBe(0);
    await app.claims.releaseAll(claim);
    expect(await ended(app, 'crawl', first)).toMatchObject({ state: 'completed', attempts: 1 });
  });

  test('a name that nobody can resolve is not asked for again for an hour, unless it is forced', async () => {
    app = start();
    const url = 'http://no-such-host.invalid/a.png';
    expect(await crawlJob(app, 'acme', url)).toMatchObject({
      state: 'failed',
      attempts: 5,
      error: expect.stringMatching(/^dns: /),
    });
    const again = await crawlJob(app, 'acme', url);
    expect(again).toMatchObject({
      state: 'failed',
      attempts: 1,
      error: expect.stringMatching(/^dns: no-such-host\.invalid: .*within the last hour/),
    });
    expect(await crawlJob(app, 'acme', url, { force: true })).toMatchObject({ state: 'failed', attempts: 5 });
  });

  test('a job that failed because its name did not resolve asks for it again when it is retried by hand', async () => {
    app = start();
    const [id = ''] = await enqueue(['http://no-such-host.invalid/b.png']);
    expect(await ended(app, 'crawl', id)).toMatchObject({ state: 'failed', attempts: 5 });
    await retryFailed(app.queues, { reason: 'dns' });
    const again = { state: 'failed', attempts: 5, error: expect.not.stringContaining('within the last hour') };
    expect(await ended(app, 'crawl', id)).toMatchObject(again);
  });
});

async function waitingForRetry(app: App, id: string) {
  const queue = app.queues.get('crawl');
  for (;;) {
    const job = await queue.getJob(id);
    if (job && job.attemptsMade > 0) return job;
    await pause(20);
  }
}

async function delayed(app: App, ids: readonly string[]): Promise<void> {
  const queue = app.queues.get('crawl');
  for (const id of ids) while ((await queue.getJobState(id)) !== 'delayed') await pause(10);
}
