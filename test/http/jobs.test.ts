/** Asking for work over HTTP, and looking at it. */
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { startWork } from '../support/queue-work.js';
import { storeSampleImage } from '../support/stored-image.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

let world: World;
let app: App;
let server: FastifyInstance;

beforeAll(async () => {
  world = await createWorld();
  app = world.app();
  server = await createServer(app, { api: true });
});

afterAll(async () => {
  await server?.close();
  await world?.[Symbol.asyncDispose]();
});

const post = (url: string, payload: object | string, headers: Record<string, string> = {}) =>
  server.inject({ method: 'POST', url, payload, headers: { 'content-type': 'application/json', ...headers } });
const crawl = (images: unknown, more: object = {}) => post('/v1/crawl-jobs', { tenantId: 'acme', images, ...more });

/** A problem of RFC 9457 and nothing else: no stack, no path, no name of a part inside. */
function expectProblem(response: Awaited<ReturnType<typeof post>>, status: number): Record<string, unknown> {
  expect(response.statusCode).toBe(status);
  expect(response.headers['content-type']).toMatch(/^application\/problem\+json/);
  const problem = response.json();
  expect(problem).toMatchObject({ type: 'about:blank', status });
  for (const key of Object.keys(problem)) expect(['type', 'title', 'status', 'detail', 'field']).toContain(key);
  expect(response.body).not.toMatch(/node_modules|\bat \/|\.ts:|\.js:|ECONN|select |insert |bullmq|127\.0\.0\.1/i);
  return problem;
}

describe('POST /v1/crawl-jobs', () => {
  test('accepts good images under the URLs as given, and rejects bad ones by index and reason', async () => {
    const long = `https://example.com/${'a'.repeat(2_048)}`;
    const response = await crawl([
      { url: 'HTTPS://Example.com:443/a%7Eb.jpg#top', sourceUrl: 'https://example.com/page' },
      { url: 'not a url' },
      { url: 'ftp://example.com/1.jpg' },
      { url: 'https://user:secret@example.com/1.jpg' },
      { url: long },
      { url: 17 },
      {},
      null,
      'https://example.com/bare.jpg',
      { url: 'https://example.com/2.jpg', sourceUrl: 5 },
      { url: 'https://example.com/last.jpg' },
    ]);
    expect(response.statusCode).toBe(202);
    const { accepted, rejected } = response.json();
    expect(accepted).toEqual([
      { url: 'HTTPS://Example.com:443/a%7Eb.jpg#top', jobId: expect.any(String) },
      { url: 'https://example.com/last.jpg', jobId: expect.any(String) },
    ]);
    expect(rejected).toEqual([
      { index: 1, url: 'not a url', reason: 'url: must be an absolute http or https URL' },
      { index: 2, url: 'ftp://example.com/1.jpg', reason: 'url: must be an http or https URL' },
      { index: 3, url: 'https://user:secret@example.com/1.jpg', reason: 'url: must be a URL without credentials' },
      { index: 4, url: long, reason: 'url: must be at most 2048 characters' },
      { index: 5, url: null, reason: expect.stringMatching(/^url: /) },
      { index: 6, url: null, reason: expect.stringMatching(/^url: /) },
      { index: 7, url: null, reason: expect.stringMatching(/^url: /) },
      { index: 8, url: null, reason: expect.stringMatching(/^url: /) },
      { index: 9, url: 'https://example.com/2.jpg', reason: expect.stringMatching(/^sourceUrl: /) },
    ]);
    const job = await app.queues.get('crawl').getJob(accepted[0].jobId);
    expect(job?.data).toEqual({
      v: 1,
      tenantId: 'acme',
      url: 'https://example.com/a~b.jpg',
      sourceUrl: 'https://example.com/page',
    });
  });

  test('gives two spellings of one URL the same job, and force another', async () => {
    const images = [{ url: 'https://example.com/same.jpg' }, { url: 'https://EXAMPLE.com/x/../same.jpg' }];
    const [one, two] = (await crawl(images)).json().accepted;
    expect(two.jobId).toBe(one.jobId);
    const [forced] = (await crawl(images.slice(0, 1), { force: true })).json().accepted;
    expect(forced.jobId).not.toBe(one.jobId);
  });

  test('an image’s own force wins over that of the request, either way', async () => {
    const url = 'https://example.com/own-force.jpg';
    const forceOf = async (image: object, more: object = {}) => {
      const [{ jobId }] = (await crawl([{ url, ...image }], more)).json().accepted;
      return { jobId, force: (await app.queues.get('crawl').getJob(jobId))?.data.force === true };
    };
    const plain = await forceOf({});
    const forced = await forceOf({ force: true });
    expect([plain.force, forced.force]).toEqual([false, true]);
    expect(await forceOf({ force: false })).toEqual(plain);
    expect(await forceOf({ force: true }, { force: false })).toEqual(forced);
    expect(await forceOf({}, { force: true })).toEqual(forced);
    expect(await forceOf({ force: false }, { force: true })).toEqual(plain);
  });

  test('an image whose force is no boolean is rejected alone', async () => {
    const images = ['yes', null, 1].map((force) => ({ url: 'https://example.com/odd-force.jpg', force }));
    const { accepted, rejected } = (await crawl([...images, { url: 'https://example.com/even-force.jpg' }])).json();
    expect(accepted).toHaveLength(1);
    expect(rejected.map(({ reason }: { reason: string }) => reason)).toEqual(
      images.map(() => expect.stringMatching(/^force: /)),
    );
  });

  test('accepts nothing where every image is bad', async () => {
    const response = await crawl([{ url: 'nope' }]);
    expect(response.statusCode).toBe(202);
    expect(response.json()).toMatchObject({ accepted: [], rejected: [{ index: 0 }] });
  });

  test('takes 10,000 images, and no more', async () => {
    const images = Array.from({ length: 10_000 }, (_, n) => ({ url: `https://example.com/many/${n}.jpg` }));
    const response = await crawl(images);
    expect(response.statusCode).toBe(202);
    expect(response.json().accepted).toHaveLength(10_000);
    expect(expectProblem(await crawl([...images, { url: 'https://example.com/x.jpg' }]), 400).field).toBe('images');
  });

  test.each([
    ['tenantId', { images: [{ url: 'https://example.com/1.jpg' }] }],
    ['tenantId', { tenantId: 'a/b', images: [{ url: 'https://example.com/1.jpg' }] }],
    ['tenantId', { tenantId: '', images: [{ url: 'https://example.com/1.jpg' }] }],
    ['images', { tenantId: 'acme' }],
    ['images', { tenantId: 'acme', images: [] }],
    ['images', { tenantId: 'acme', images: 'https://example.com/1.jpg' }],
    ['force', { tenantId: 'acme', images: [{ url: 'https://example.com/1.jpg' }], force: 'yes' }],
    ['payload', []],
  ])('answers 400 naming %s for %j', async (field, body) => {
    const problem = expectProblem(await post('/v1/crawl-jobs', body), 400);
    expect(problem).toMatchObject({ field, detail: expect.stringMatching(new RegExp(`^${field}: .`)) });
  });

  test.each(['{', '', 'null', '"text"', '{"tenantId":"acme","__proto__":{"x":1}}'])(
    'answers 400 for the body %j',
    async (body) => {
      expectProblem(await post('/v1/crawl-jobs', body), 400);
    },
  );

  test.each(['text/plain', 'text/plain; charset=application/json', 'application/x-www-form-urlencoded', 'image/png'])(
    'answers 415 for the content type %s',
    async (type) => {
      const body = JSON.stringify({ tenantId: 'acme', images: [{ url: 'https://example.com/1.jpg' }] });
      expectProblem(await post('/v1/crawl-jobs', body, { 'content-type': type }), 415);
    },
  );

  test('answers 413 for a body above 32 MiB, and above 1 MiB elsewhere', async () => {
    const filler = (bytes: number) => JSON.stringify({ tenantId: 'acme', filler: 'x'.repeat(bytes) });
    expectProblem(await post('/v1/crawl-jobs', filler(32 * 1024 * 1024)), 413);
    expectProblem(await post('/v1/crawl-jobs', filler(2 * 1024 * 1024)), 400);
    expectProblem(await post('/v1/embedding-jobs', filler(1024 * 1024)), 413);
  });
});

describe('POST /v1/embedding-jobs', () => {
  test('accepts an image of the tenant', async () => {
    const { contentHash } = await storeSampleImage(app, 'acme');
    const response = await post('/v1/embedding-jobs', { tenantId: 'acme', contentHash });
    expect(response.statusCode).toBe(202);
    const { jobId } = response.json();
    const job = await app.queues.get('embedding').getJob(jobId);
    expect(job?.data).toEqual({ v: 1, tenantId: 'acme', contentHash });
  });

  test('answers 404 for an image that is unknown, or another tenant’s', async () => {
    const { contentHash } = await storeSampleImage(app, 'acme', 2);
    expectProblem(await post('/v1/embedding-jobs', { tenantId: 'acme', contentHash: 'a'.repeat(64) }), 404);
    expectProblem(await post('/v1/embedding-jobs', { tenantId: 'other', contentHash }), 404);
  });

  test('answers 400 for what is no content hash', async () => {
    const response = await post('/v1/embedding-jobs', { tenantId: 'acme', contentHash: 'A'.repeat(64) });
    expect(expectProblem(response, 400).field).toBe('contentHash');
  });
});

describe('GET /v1/jobs/:queue/:id', () => {
  test('shows a job from waiting to its outcome', async () => {
    const own = world.app({}, { queueNamespace: `${world.namespace}-view` });
    const other = await createServer(own, { api: true });
    const payload = { tenantId: 'acme', images: [{ url: 'https://example.com/view.jpg' }] };
    const { jobId } = (await other.inject({ method: 'POST', url: '/v1/crawl-jobs', payload })).json().accepted[0];
    const look = async () => (await other.inject(`/v1/jobs/crawl/${jobId}`)).json();
    const view = { queue: 'crawl', id: jobId, outcome: null, attempts: 0, error: null };
    expect(await look()).toEqual({ ...view, state: 'prioritized' });
    const outcome = { outcome: 'skipped', reason: 'url', contentHash: 'f00d', rawKey: 'raw/f00d' };
    startWork(own, async () => outcome);
    await until('the job is completed', async () => (await look()).state === 'completed');
    expect(await look()).toEqual({ ...view, state: 'completed', attempts: 1, outcome });
    await other.close();
  });

  test.each(['x', 'ö', 'a/'])('shows a job of another client whose id is 200 characters of %j', async (part) => {
    const own = world.app({}, { queueNamespace: `${world.namespace}-long` });
    const other = await createServer(own, { api: true });
    const jobId = part.repeat(200).slice(0, 200);
    await own.queues.get('crawl').add('crawl', { v: 1, tenantId: 'acme', url: 'https://example.com/' }, { jobId });
    const answer = await other.inject(`/v1/jobs/crawl/${encodeURIComponent(jobId)}`);
    expect([answer.statusCode, answer.json().id]).toEqual([200, jobId]);
    expectProblem(await other.inject(`/v1/jobs/crawl/${encodeURIComponent(`${jobId}x`)}`), 404);
    await other.close();
  });

  test.each(['/v1/jobs/crawl/none', '/v1/jobs/crawl/meta', '/v1/jobs/crawl/wait', '/v1/jobs/no-queue/1'])(
    'answers 404 for %s',
    async (url) => {
      expectProblem(await server.inject(url), 404);
    },
  );

  test('answers 404 for a route that is not there', async () => {
    expectProblem(await server.inject('/v2/anything'), 404);
  });
});
