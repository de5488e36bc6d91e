/** What the cache knows and holds over HTTP, and forgetting a tenant. */
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { sha256 } from '../../src/kinds/identity.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { storeSampleImage } from '../support/stored-image.js';
import { createWorld, type World } from '../support/world.js';

const API_TOKENS = 'acme-token=acme,globex-token=globex,root-token=*';

let world: World;
let app: App;
let server: FastifyInstance;

beforeAll(async () => {
  world = await createWorld();
  app = world.app({ API_TOKENS, CRAWL_REVALIDATE_AFTER: '3600' }, { engine: new PuppetEngine() });
  server = await createServer(app, { api: true });
});

afterAll(async () => {
  await server?.close();
  await world?.[Symbol.asyncDispose]();
});

const bearer = (token: string) => ({ authorization: `Bearer ${token}` });

function explain(url: string, { tenant = 'acme', token = 'acme-token' } = {}) {
  return server.inject({ url: `/v1/tenants/${tenant}/explain`, query: { url }, headers: bearer(token) });
}

test('a URL of which nothing is known would be fetched', async () => {
  const response = await explain('HTTP://Example.com:80/a/../new.jpg#top');
  expect(response.statusCode).toBe(200);
  expect(response.json()).toEqual({
    url: 'http://example.com/new.jpg',
    wouldSkip: false,
    reason: null,
    because: 'nothing is known of it',
    record: null,
    content: null,
    refusal: null,
    robots: null,
  });
});

test('a URL that is known is told with its image, the tier that told it and its age', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 1);
  const first = (await explain('https://example.com/1.png')).json();
  expect(first).toMatchObject({
    wouldSkip: true,
    reason: 'url',
    because: expect.stringMatching(/^its image is known since \d{4}-/),
    record: { contentHash, rawKey: expect.stringContaining(contentHash), tier: 'redis', jobId: null, sourceUrl: null },
    content: { mimeType: 'image/png', width: 64, height: 48, tier: 'redis' },
    refusal: null,
  });
  expect(Date.parse(first.record.fetchedAt)).toBeLessThanOrEqual(Date.now());
  expect(first.record.ageSeconds).toBeGreaterThanOrEqual(0);
  await app.connection.tiers.redis?.tier.drop([
    { id: `crawl_url:acme:${sha256('https://example.com/1.png')}`, version: Number.MAX_SAFE_INTEGER },
  ]);
  expect((await explain('https://example.com/1.png')).json().record.tier).toBe('postgres');
});

test('a refusal is told with its reason and its end; a record after it ends it', async () => {
  const url = 'https://example.com/gone.jpg';
  await app.records.reject('acme', { url }, { reason: 'gone', detail: 'status 410', jobId: 'job-1' });
  expect((await explain(url)).json()).toMatchObject({
    wouldSkip: true,
    reason: 'gone',
    because: expect.stringMatching(/^refused as gone \(status 410\), until \d{4}-/),
    refusal: { reason: 'gone', detail: 'status 410', jobId: 'job-1', counts: true },
  });
  await app.cache.storeCrawledImage(url, Buffer.from('bytes'), { rawKey: 'raw/x' }, 'acme');
  expect((await explain(url)).json()).toMatchObject({ wouldSkip: true, reason: 'url', refusal: { counts: false } });
});

test('a URL that is old enough to be asked again is told so', async () => {
  const url = 'https://example.com/old.jpg';
  await app.cache.storeCrawledImage(url, Buffer.from('old bytes'), { rawKey: 'raw/old' }, 'acme');
  const age = "update crawl_cache set fetched_at = fetched_at - interval '2 hours' where url = $1";
  await app.connection.pool.query(age, [url]);
  await app.connection.tiers.redis?.tier.drop([
    { id: `crawl_url:acme:${sha256(url)}`, version: Number.MAX_SAFE_INTEGER },
  ]);
  const told = (await explain(url)).json();
  expect(told).toMatchObject({ wouldSkip: false, reason: null, because: expect.stringContaining('asked whether') });
  expect(told.record.ageSeconds).toBeGreaterThan(7_000);
});

test('what is no URL is named', async () => {
  const response = await explain('not a url');
  expect(response.statusCode).toBe(400);
  expect(response.json()).toMatchObject({ field: 'url', title: 'Bad Request' });
  const without = await server.inject({ url: '/v1/tenants/acme/explain', headers: bearer('acme-token') });
  expect(without.json()).toMatchObject({ status: 400, field: 'url' });
});

test('another tenant’s token is answered as if nothing were there', async () => {
  for (const [method, url] of [
    ['GET', '/v1/tenants/acme/explain?url=https://example.com/1.png'],
    ['DELETE', '/v1/tenants/acme/cache'],
    ['GET', '/v1/cache/stats'],
  ] as const) {
    expect((await server.inject({ method, url, headers: bearer('globex-token') })).statusCode, url).toBe(404);
    expect((await server.inject({ method, url })).statusCode, url).toBe(401);
  }
});

test('a tenant forgets everything of its own, and is told how much that was', async () => {
  await storeSampleImage(app, 'globex', 7);
  const { contentHash } = await storeSampleImage(app, 'acme', 7);
  const response = await server.inject({
    method: 'DELETE',
    url: '/v1/tenants/globex/cache',
    headers: bearer('globex-token'),
  });
  expect(response.statusCode).toBe(200);
  expect(response.json()).toEqual({ invalidated: 3 }); // its URL, its content, its hash
  expect(
    (await explain('https://example.com/7.png', { tenant: 'globex', token: 'globex-token' })).json().record,
  ).toBeNull();
  expect((await explain('https://example.com/7.png')).json().record.contentHash).toBe(contentHash);
});

test('statistics of both tiers are for those who may see all tenants', async () => {
  const response = await server.inject({ url: '/v1/cache/stats', headers: bearer('root-token') });
  expect(response.json()).toMatchObject({
    redisEnabled: true,
    postgresEnabled: true,
    postgresStats: { crawlCacheCount: expect.any(Number) },
    redisStats: { usedMemoryHuman: expect.any(String) },
    service: { totalRequests: expect.any(Number) },
  });
});
