/** Pages of other origins change nothing, whatever a browser sends along by itself. */
import { createServer as createHttpServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { launchBrowser } from '../support/browser.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const TOKEN = 'root-token';
const PAUSE = '/dashboard/api/queues/crawl/pause';
const RESUME = '/dashboard/api/queues/crawl/resume';

/** A page that sends everything it can to another origin: seven POSTs go out, the rest is asked for first. */
const EVIL = `<title>evil</title><iframe name="away"></iframe><script>
async function attack(target) {
  const add = target + '/dashboard/api/queues/crawl/add';
  const job = '{"name":"crawl","data":{"v":1,"tenantId":"acme","url":"https://example.com/evil.jpg"},"options":{}}';
  const quietly = (url, init) => fetch(url, { credentials: 'include', ...init }).catch(() => undefined);
  await quietly(target + '/dashboard/api/queues', { mode: 'no-cors' });
  await quietly(add, { mode: 'no-cors', method: 'POST' });
  await quietly(add, { mode: 'no-cors', method: 'POST', body: job });
  await quietly(target + '/v1/crawl-jobs', { mode: 'no-cors', method: 'POST', body: job });
  await quietly(target + '/v1/crawl-jobs', { mode: 'no-cors', method: 'POST', body: new URLSearchParams({ job }) });
  for (const method of ['PUT', 'DELETE', 'PATCH']) {
    await quietly(target + '${PAUSE}', { method });
    await quietly(target + '/v1/tenants/acme/cache', { method });
  }
  await quietly(add, { method: 'POST', headers: { 'content-type': 'application/json' }, body: job });
  navigator.sendBeacon(add, job);
  for (const enctype of ['application/x-www-form-urlencoded', 'text/plain']) {
    const form = Object.assign(document.createElement('form'), { action: add, method: 'post', enctype, target: 'away' });
    form.append(Object.assign(document.createElement('input'), { name: '{"name":"crawl","x":"', value: '"}' }));
    document.body.append(form);
    const loaded = new Promise((done) => document.querySelector('iframe').addEventListener('load', done, { once: true }));
    form.submit();
    await loaded;
  }
}
</script>`;

let world: World;
let openApp: App;
let open: FastifyInstance;
let locked: FastifyInstance;

beforeAll(async () => {
  world = await createWorld();
  openApp = world.app();
  open = await createServer(openApp, { api: true });
  locked = await createServer(world.app({ API_TOKENS: `${TOKEN}=*` }), { api: true });
});

afterAll(async () => {
  await open?.close();
  await locked?.close();
  await world?.[Symbol.asyncDispose]();
});

const basic = { authorization: `Basic ${Buffer.from(`:${TOKEN}`).toString('base64')}` };
const bearer = { authorization: `Bearer ${TOKEN}` };

const FROM_ELSEWHERE: [string, Record<string, string>][] = [
  ['another site, says the browser', { 'sec-fetch-site': 'cross-site' }],
  ['another port of this machine', { 'sec-fetch-site': 'same-site' }],
  ['another site, whatever its Origin', { 'sec-fetch-site': 'cross-site', origin: 'http://localhost:3000' }],
  ['another origin', { origin: 'http://evil.example' }],
  ['another port', { origin: 'http://localhost:3001' }],
  ['a sandboxed frame', { origin: 'null' }],
];

const FROM_HERE: [string, Record<string, string>][] = [
  ['the page itself', { 'sec-fetch-site': 'same-origin', origin: 'http://localhost:3000' }],
  ['the address bar', { 'sec-fetch-site': 'none' }],
  ['a browser that tells the origin alone', { origin: 'http://localhost:3000' }],
  ['a browser behind a proxy that took off TLS', { origin: 'https://localhost:3000' }],
  ['no browser', {}],
];

describe('what changes something, asked for by', () => {
  test.each(FROM_ELSEWHERE)('%s, is 403 on every route, with and without tokens', async (_, more) => {
    const headers = { ...more, host: 'localhost:3000' };
    const payload = { tenantId: 'acme', images: [{ url: 'https://example.com/1.jpg' }] };
    const answers = [
      await open.inject({ method: 'PUT', url: PAUSE, headers }),
      await open.inject({ method: 'POST', url: '/v1/crawl-jobs', payload, headers }),
      await open.inject({ method: 'DELETE', url: '/v1/tenants/acme/cache', headers }),
      await locked.inject({ method: 'PUT', url: PAUSE, headers: { ...headers, ...basic } }),
      await locked.inject({ method: 'POST', url: '/v1/crawl-jobs', payload, headers: { ...headers, ...basic } }),
    ];
    for (const answer of answers) {
      expect(answer.statusCode).toBe(403);
      expect(answer.headers['content-type']).toMatch(/^application\/problem\+json/);
      expect(answer.json()).toMatchObject({ title: 'Forbidden', status: 403 });
    }
    expect(await openApp.queues.get('crawl').isPaused()).toBe(false);
    expect(await openApp.queues.get('crawl').count()).toBe(0);
  });

  test.each(FROM_HERE)('%s, is done', async (_, more) => {
    const headers = { ...more, host: 'localhost:3000' };
    expect((await open.inject({ method: 'PUT', url: PAUSE, headers })).statusCode).toBe(200);
    expect(await openApp.queues.get('crawl').isPaused()).toBe(true);
    expect((await locked.inject({ method: 'PUT', url: RESUME, headers: { ...headers, ...basic } })).statusCode).toBe(
      200,
    );
    expect(await openApp.queues.get('crawl').isPaused()).toBe(false);
    const forgotten = await open.inject({ method: 'DELETE', url: '/v1/tenants/nobody/cache', headers });
    expect(forgotten.json()).toEqual({ invalidated: 0 });
  });
});

test('a page that brings a token of its own may come from anywhere', async () => {
  const headers = { ...bearer, 'sec-fetch-site': 'cross-site', origin: 'https://console.example' };
  const response = await locked.inject({ method: 'DELETE', url: '/v1/tenants/nobody/cache', headers });
  expect(response.json()).toEqual({ invalidated: 0 });
});

test('no answer is kept or guessed at, also none that refuses', async () => {
  for (const url of ['/v1/cache/stats', '/v1/nothing', '/healthz', '/metrics']) {
    const { headers } = await locked.inject({ url });
    expect([headers['cache-control'], headers['x-content-type-options']]).toEqual(['no-store', 'nosniff']);
  }
});

test('looking is no matter of origin, but nobody else may frame the dashboard', async () => {
  const response = await open.inject({ url: '/dashboard', headers: { 'sec-fetch-site': 'cross-site' } });
  expect([response.statusCode, response.headers['x-frame-options']]).toEqual([200, 'SAMEORIGIN']);
  expect(response.headers['content-security-policy']).toContain("frame-ancestors 'self'");
});

describe('in a browser that is logged in', () => {
  let browser: Browser;
  let evil: Server;
  const addressOf = (server: Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

  beforeAll(async () => {
    await open.listen({ host: '127.0.0.1', port: 0 });
    await locked.listen({ host: '127.0.0.1', port: 0 });
    evil = createHttpServer((_request, response) => {
      response.setHeader('content-type', 'text/html');
      response.end(EVIL);
    });
    await new Promise<void>((resolve) => evil.listen(0, '127.0.0.1', resolve));
    browser = await launchBrowser();
  });

  afterAll(async () => {
    await browser?.close();
    evil?.close();
  });

  test.each([
    ['without tokens', () => open],
    ['with tokens', () => locked],
  ])('a page of another origin posts forms and fetches in vain, %s', async (_, served) => {
    const target = addressOf(served().server as Server);
    await using page = await browser.newPage({ httpCredentials: { username: 'anyone', password: TOKEN } });
    await page.goto(`${target}/dashboard`); // the browser has the credentials from here on
    const since = world.logs.length;
    for (const host of ['127.0.0.1', 'localhost']) {
      await page.goto(addressOf(evil).replace('127.0.0.1', host));
      await page.evaluate(`attack('${target}')`);
    }
    const answered = () =>
      world.logs.slice(since).filter(({ msg, method }) => msg === 'request answered' && method !== 'GET');
    const posts = () => answered().filter(({ method }) => method === 'POST');
    await until('the forms and fetches are answered', () => posts().length >= 2 * 7);
    expect(posts().map(({ status }) => status)).toEqual(Array(2 * 7).fill(403));
    // What is no simple request is asked for first (CORS preflight), and nobody says yes.
    expect([...new Set(answered().map(({ method }) => method))].sort()).toEqual(['OPTIONS', 'POST']);
    // The credentials were on their way: looking was answered, though the page may not read it.
    const looked = world.logs.slice(since).filter(({ path }) => path === '/dashboard/api/queues');
    expect(looked.map(({ status }) => status)).toContain(200);
    expect(await openApp.queues.get('crawl').isPaused()).toBe(false);
    expect(await openApp.queues.get('crawl').count()).toBe(0);
  });

  test.each([
    ['without tokens', () => open],
    ['with tokens', () => locked],
  ])('the dashboard itself still can, %s', async (_, served) => {
    await using page = await browser.newPage({ httpCredentials: { username: 'anyone', password: TOKEN } });
    await page.goto(`${addressOf(served().server as Server)}/dashboard`);
    const put = (url: string) => page.evaluate(async (path) => (await fetch(path, { method: 'PUT' })).status, url);
    expect(await put(PAUSE)).toBe(200);
    expect(await openApp.queues.get('crawl').isPaused()).toBe(true);
    expect(await put(RESUME)).toBe(200);
    expect(await openApp.queues.get('crawl').isPaused()).toBe(false);
  });
});
