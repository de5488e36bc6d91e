/** The bad site itself, by a plain client: what other tests take on trust. What it does to a fetcher is in test/crawl/. */
import { request } from 'undici';
import { describe, expect, it } from 'vitest';
import {
  CRAWL_DELAY_S,
  LARGE_CLOSES,
  ROBOTS_ELSEWHERE,
  type RobotsSort,
  type Site,
  startSite,
  throttled,
} from './site.js';

const get = (url: string, headers: Record<string, string> = {}) => fetch(url, { headers, redirect: 'manual' });
const text = async (url: string) => (await get(url)).text();
/** By a name that no resolver knows. */
const getNamed = (site: Site, host: string, path: string) =>
  request(site.url + path, { headers: { host: `${host}:${site.port}` } });

describe('a page', () => {
  it('is served as it was given, for any query, and replaced by the next', async () => {
    await using site = await startSite();
    const url = site.put('/a', {
      body: 'one',
      type: 'image/png',
      headers: { 'x-robots-tag': ['noindex', 'bot: none'] },
    });
    const response = await get(`${url}?q`);
    expect([response.status, response.headers.get('content-type'), await response.text()]).toEqual([
      200,
      'image/png',
      'one',
    ]);
    expect(response.headers.get('x-robots-tag')).toBe('noindex, bot: none');
    site.put('/a', { body: 'two' });
    expect(await text(url)).toBe('two');
    expect((await get(`${site.url}/b`)).status).toBe(404);
  });

  it('may depend on the request', async () => {
    await using site = await startSite();
    const url = site.put('/a', ({ headers }) => ({ body: `for ${headers['user-agent']}` }));
    expect(await (await get(url, { 'user-agent': 'bot/1' })).text()).toBe('for bot/1');
  });

  it.each<[Record<string, string>, number]>([
    [{}, 200],
    [{ 'if-none-match': '"1"' }, 304],
    [{ 'if-none-match': 'W/"1"' }, 304],
    [{ 'if-none-match': '"0", "1"' }, 304],
    [{ 'if-none-match': '*' }, 304],
    [{ 'if-none-match': '"2"' }, 200],
    [{ 'if-modified-since': 'Sun, 06 Nov 1994 08:49:37 GMT' }, 304],
    [{ 'if-modified-since': 'Mon, 07 Nov 1994 08:49:37 GMT' }, 304],
    [{ 'if-modified-since': 'Sat, 05 Nov 1994 08:49:37 GMT' }, 200],
    // The tag alone decides where there is one.
    [{ 'if-none-match': '"2"', 'if-modified-since': 'Mon, 07 Nov 1994 08:49:37 GMT' }, 200],
  ])('answers conditions: %j with %i', async (conditions, status) => {
    await using site = await startSite();
    const headers = { etag: '"1"', 'last-modified': 'Sun, 06 Nov 1994 08:49:37 GMT' };
    const url = site.put('/a', { body: 'one', headers });
    const response = await get(url, conditions);
    expect([response.status, await response.text()]).toEqual(status === 304 ? [304, ''] : [200, 'one']);
    expect(response.headers.get('etag')).toBe('"1"');
    expect((await get(site.put('/b', { headers, forgetful: true }), conditions)).status).toBe(200);
    expect((await get(site.put('/c', {}), conditions)).status).toBe(200);
  });

  it('may fail for a while', async () => {
    await using site = await startSite();
    site.put('/a', { body: 'x' });
    site.failTimes('/a', 1, 500);
    const url = site.failTimes('/a', 2, throttled(429, 7));
    const seen = [await get(url), await get(url), await get(url), await get(url)];
    expect(seen.map(({ status, headers }) => [status, headers.get('retry-after')])).toEqual([
      [429, '7'],
      [429, '7'],
      [500, null],
      [200, null],
    ]);
    const date = new Date(Date.UTC(1994, 10, 6, 8, 49, 37));
    expect(throttled(503, date).headers).toEqual({ 'retry-after': 'Sun, 06 Nov 1994 08:49:37 GMT' });
    expect(throttled(503)).toEqual({ status: 503, headers: {} });
  });

  it('belongs to all host names or to one', async () => {
    await using site = await startSite();
    site.put('/a', { body: 'all' });
    expect(site.named('b.test').put('/a', { body: 'b' })).toBe(`http://b.test:${site.port}/a`);
    const bodies = [];
    for (const host of ['a.test', 'b.test']) bodies.push(await (await getNamed(site, host, '/a')).body.text());
    expect(bodies).toEqual(['all', 'b']);
    expect(site.requestsFor('b.test')).toMatchObject([{ method: 'GET', path: '/a', host: 'b.test' }]);
  });
});

describe('the counters', () => {
  it('know what is in flight, of each host and of all, and the most there was', async () => {
    await using site = await startSite();
    const held = site.hold('/a', { body: 'x' });
    const asked = ['a.test', 'a.test', 'b.test'].map((host) => getNamed(site, host, '/a'));
    await site.until(() => site.inFlight().now === 3);
    expect([site.inFlight('a.test'), site.inFlight('b.test'), site.inFlight('c.test')]).toEqual([
      { now: 2, highest: 2 },
      { now: 1, highest: 1 },
      { now: 0, highest: 0 },
    ]);
    expect(site.requests.every(({ endedAt }) => endedAt === undefined)).toBe(true);
    held.release();
    for (const { body } of await Promise.all(asked)) await body.dump();
    await site.until(() => site.inFlight().now === 0);
    expect([site.inFlight(), site.inFlight('a.test')]).toEqual([
      { now: 0, highest: 3 },
      { now: 0, highest: 2 },
    ]);
    for (const { at, endedAt } of site.requests) expect(endedAt).toBeGreaterThanOrEqual(at);
    expect((await get(held.url)).status).toBe(200);
    expect(site.countOf('/a')).toBe(4);
  });

  it('see a client leave', async () => {
    await using site = await startSite();
    const leave = new AbortController();
    const asked = fetch(site.behave('/a', 'hang'), { signal: leave.signal }).catch((error) => error.name);
    await site.until(() => site.inFlight('127.0.0.1').now === 1);
    leave.abort();
    expect(await asked).toBe('AbortError');
    await site.until(() => site.inFlight('127.0.0.1').now === 0);
    expect(site.requests[0]?.endedAt).toBeGreaterThan(0);
  });
});

describe('robots.txt', () => {
  const served = async (sort: RobotsSort) => {
    await using site = await startSite();
    const response = await get(site.robots(sort));
    return [response.status, await response.text()];
  };

  it.each<[RobotsSort, string]>([
    ['allow', 'User-agent: *\nAllow: /\n'],
    ['disallow', 'User-agent: *\nDisallow: /\n'],
    ['empty', ''],
    ['crawl-delay', `User-agent: *\nCrawl-delay: ${CRAWL_DELAY_S}\nDisallow:\n`],
    ['gzip', 'User-agent: *\nDisallow: /\n'],
    ['html', '<!doctype html><title>Welcome</title>\n'],
  ])('that is %s has its text', async (sort, body) => {
    expect(await served(sort)).toEqual([200, body]);
  });

  it.each<[RobotsSort, number]>([
    ['missing', 404],
    ['gone', 410],
    ['unauthorized', 401],
    ['forbidden', 403],
    ['throttled', 429],
    ['error', 500],
    ['unavailable', 503],
    ['redirect', 302],
    ['redirect-loop', 302],
  ])('that is %s has the status %i', async (sort, status) => {
    expect(await served(sort)).toEqual([status, '']);
  });

  it('that is a redirect leads to where a test can put one', async () => {
    await using site = await startSite();
    site.put(ROBOTS_ELSEWHERE, { type: 'text/plain', body: 'elsewhere' });
    expect(await (await fetch(site.robots('redirect'))).text()).toBe('elsewhere');
  });

  it('that is large has a rule on either side of the 500 KiB that everybody reads', async () => {
    await using site = await startSite();
    const body = await text(site.robots('large'));
    expect(body.length).toBeGreaterThan(600 * 1024);
    expect(body.indexOf(LARGE_CLOSES.early)).toBeLessThan(100);
    expect(body.indexOf(LARGE_CLOSES.late)).toBeGreaterThan(500 * 1024);
  });

  it('that is endless begins with rules', async () => {
    await using site = await startSite();
    const reader = (await get(site.robots('endless'))).body?.getReader();
    const { value } = (await reader?.read()) ?? {};
    expect(Buffer.from(value ?? []).toString('latin1')).toMatch(/^User-agent: \*\nDisallow: \/\n/);
    await reader?.cancel().catch(() => undefined);
  });

  it('is of one host name where it was given for one', async () => {
    await using site = await startSite();
    site.named('closed.test').robots('disallow');
    const statuses = [];
    for (const host of ['closed.test', 'open.test']) {
      const { statusCode, body } = await getNamed(site, host, '/robots.txt');
      await body.dump();
      statuses.push(statusCode);
    }
    expect(statuses).toEqual([200, 404]);
  });
});
