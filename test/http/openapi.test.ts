/** The OpenAPI document says what the server does: no route more or less, and no field. */
import { readFileSync } from 'node:fs';
import { Validator } from '@seriousme/openapi-schema-validator';
import { Ajv2020 } from 'ajv/dist/2020.js';
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { type Operation, operations } from '../../src/http/api.js';
import { openApiDocument } from '../../src/http/openapi.js';
import { namedSchemas, problem } from '../../src/http/schemas.js';
import { createServer } from '../../src/http/server.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { startWork } from '../support/queue-work.js';
import { storeSampleImage } from '../support/stored-image.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

type Doc = { paths: Record<string, Record<string, { responses: Record<string, unknown>; security: object[] }>> };

let world: World;
let app: App;
let server: FastifyInstance;
const document = openApiDocument() as unknown as Doc;

beforeAll(async () => {
  world = await createWorld();
  app = world.app({ API_TOKENS: 'acme-token=acme,root-token=*' }, { engine: new PuppetEngine() });
  server = await createServer(app, { api: true });
});

afterAll(async () => {
  await server?.close();
  await world?.[Symbol.asyncDispose]();
});

const headers = { authorization: 'Bearer root-token' };

test('the document is valid OpenAPI 3.1, and so are all of its references', async () => {
  const validator = new Validator();
  const result = await validator.validate(structuredClone(openApiDocument()));
  expect(result).toEqual({ valid: true });
  expect(validator.version).toBe('3.1');
  expect(() => validator.resolveRefs()).not.toThrow();
});

test('it is served to everybody, and shipped with the package', async () => {
  const response = await server.inject('/openapi.json');
  expect(response.statusCode).toBe(200);
  expect(response.headers['content-type']).toMatch(/^application\/json/);
  expect(response.json()).toEqual(openApiDocument());
  expect(JSON.parse(readFileSync('openapi.json', 'utf8'))).toEqual(openApiDocument());
  const { files } = JSON.parse(readFileSync('package.json', 'utf8')) as { files: string[] };
  expect(files).toContain('openapi.json');
});

test('an image to be crawled may say force for itself', () => {
  const { schemas } = openApiDocument().components as { schemas: Record<string, { properties: object }> };
  expect(schemas.CrawlImage?.properties).toMatchObject({ force: { type: 'boolean' } });
});

/** `METHOD /path`, as Fastify prints its tree of routes. */
function mountedRoutes(): string[] {
  const parents: string[] = [];
  return server
    .printRoutes({ commonPrefix: false })
    .split('\n')
    .flatMap((line) => {
      const [, indent, part, methods] = /^([│ ]*)[├└]── (.*?) \((.*)\)$/.exec(line) ?? [];
      if (indent === undefined) return [];
      parents.length = indent.length / 4;
      parents.push(part as string);
      const path = parents.join('').replace(/:(\w+)/g, '{$1}');
      return (methods as string).split(', ').map((method) => `${method} ${path}`);
    });
}

test('every route of the API is in it, and nothing that is not served', () => {
  const declared = Object.values(operations).map(({ method, path }) => `${method} ${path}`);
  const served = mountedRoutes().filter((route) => !/^(HEAD|OPTIONS) /.test(route));
  expect(declared.filter((route) => !served.includes(route))).toEqual([]);
  const published = served.filter((route) => route.includes(' /v1/'));
  expect(published.length).toBeGreaterThan(8);
  expect(published.filter((route) => !declared.includes(route))).toEqual([]);
  const written = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
  );
  expect(written.sort()).toEqual(declared.sort());
});

test('what it names as open needs no token, and everything else does', async () => {
  for (const { method, path, access } of Object.values<Operation>(operations)) {
    const url = path.replace(/\{queue\}/, 'crawl').replace(/\{\w+\}/g, 'a');
    const { statusCode } = await server.inject({ method, url });
    expect([path, statusCode]).toEqual([path, access === 'open' ? 200 : 401]);
    const { security } = document.paths[path]?.[method.toLowerCase()] as { security: object[] };
    expect(security.length > 0).toBe(access !== 'open');
  }
});

const ajv = new Ajv2020({ strict: false, validateFormats: false }).addSchema(openApiDocument(), 'document');

/** Good by the document, and of no more fields than the schema names, which takes away what it does not know. */
function expectAnswer({ schema }: Operation['answer'], body: unknown): void {
  const name = namedSchemas.get(schema)?.id;
  if (name) {
    ajv.validate(`document#/components/schemas/${name}`, body);
    expect([name, ajv.errorsText()]).toEqual([name, 'No errors']);
  }
  expect(schema.parse(body)).toEqual(body);
}

/** Asks, and holds the answer against what is declared: a field that is not there, or not declared, is a difference. */
async function answered(
  { method, path, answer }: Operation,
  parts: Record<string, string>,
  ask: { payload?: object; query?: Record<string, string> } = {},
): Promise<unknown> {
  const url = path.replace(/\{(\w+)\}/g, (_, name) => parts[name] as string);
  const response = await server.inject({ method, url, headers, ...ask });
  expect([path, response.statusCode]).toEqual([path, answer.status]);
  expect(response.headers['content-type']).toMatch(
    new RegExp(`^${(answer.type ?? 'application/json').replace('*', '')}`),
  );
  if (answer.type) return response.body;
  const body: unknown = response.json();
  expectAnswer(answer, body);
  return body;
}

test('every answer is what it says, with each field and no other', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 1);
  await storeSampleImage(app, 'acme', 2);
  const faces = [{ bbox: [1, 2, 3, 4] as [number, number, number, number], embedding: [0.5], det_score: 0.5, age: 31 }];
  await app.cache.cacheFaceEmbeddings(contentHash, 'acme', faces);
  await app.records.reject(
    'acme',
    { url: 'https://example.com/gone.jpg' },
    { reason: 'gone', detail: '410', jobId: '1' },
  );
  const image = { tenantId: 'acme', contentHash };
  const images = [{ url: 'https://example.com/new.jpg', sourceUrl: 'https://example.com/' }, { url: 'nope' }, {}];
  const { accepted } = (await answered(operations.enqueueCrawl, {}, { payload: { tenantId: 'acme', images } })) as {
    accepted: { jobId: string }[];
  };
  await answered(operations.enqueueEmbedding, {}, { payload: image });
  await answered(operations.job, { queue: 'crawl', id: String(accepted[0]?.jobId) });
  await answered(operations.image, image);
  await answered(operations.raw, image);
  await answered(operations.thumbnail, image);
  for (const url of ['https://example.com/1.png', 'https://example.com/gone.jpg', 'https://example.com/unknown.jpg']) {
    await answered(operations.explain, { tenantId: 'acme' }, { query: { url } });
  }
  await answered(operations.statistics, {});
  await answered(operations.overview, {});
  await answered(operations.invalidate, { tenantId: 'acme' });
  await answered(operations.metrics, {});
  await answered(operations.health, {});
  await answered(operations.ready, {});
  await answered(operations.openapi, {});
});

const hash = 'f'.repeat(64);
const near = [{ contentHash: hash, distance: 3 }];
test.each([
  { outcome: 'stored', contentHash: hash, rawKey: 'r', thumbnailKey: 't', phash: 'a'.repeat(16), nearDuplicates: near },
  { outcome: 'skipped', reason: 'content', contentHash: hash, rawKey: 'r' },
  { outcome: 'rejected', reason: 'not-an-image', detail: 'text/html' },
  { outcome: 'embedded', faces: 2, model: 'm' },
])('a job that ended as $outcome is what it says', async (outcome) => {
  const own = world.app({}, { queueNamespace: `${world.namespace}-${outcome.outcome}` });
  const other = await createServer(own, { api: true });
  const payload = { tenantId: 'acme', images: [{ url: 'https://example.com/view.jpg' }] };
  const { jobId } = (await other.inject({ method: 'POST', url: '/v1/crawl-jobs', payload })).json().accepted[0];
  startWork(own, async () => outcome);
  const look = async () => (await other.inject(`/v1/jobs/crawl/${jobId}`)).json();
  const job = await until('the job is completed', async () => {
    const seen = await look();
    return seen.state === 'completed' && seen;
  });
  expect(job.outcome).toEqual(outcome);
  expectAnswer(operations.job.answer, job);
  await other.close();
});

test('bytes that the caller has still are answered with 304, as declared', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 3);
  for (const { path } of [operations.raw, operations.thumbnail]) {
    const url = path.replace('{tenantId}', 'acme').replace('{contentHash}', contentHash);
    const { etag } = (await server.inject({ url, headers })).headers;
    const again = await server.inject({ url, headers: { ...headers, 'if-none-match': etag } });
    expect([path, again.statusCode]).toEqual([path, 304]);
    const { responses } = document.paths[path]?.get as { responses: Record<string, { headers: object }> };
    for (const status of ['200', '304']) {
      expect(Object.keys(responses[status]?.headers ?? {})).toEqual(['x-request-id', 'etag']);
    }
  }
});

test('every refusal is a problem, with a status that is declared', async () => {
  const post = { method: 'POST', url: '/v1/crawl-jobs' } as const;
  const elsewhere = { 'sec-fetch-site': 'cross-site' };
  const json = { ...headers, 'content-type': 'application/json' };
  const crawl = document.paths['/v1/crawl-jobs']?.post;
  const asked = [
    [400, crawl, { ...post, payload: '{', headers: json }],
    [401, crawl, { ...post, payload: {} }],
    [403, crawl, { ...post, payload: {}, headers: elsewhere }],
    [
      404,
      crawl,
      { ...post, payload: { tenantId: 'x', images: [{}] }, headers: { authorization: 'Bearer acme-token' } },
    ],
    [413, crawl, { ...post, payload: 'x'.repeat(33 << 20), headers: json }],
    [415, crawl, { ...post, payload: 'x', headers: { ...headers, 'content-type': 'text/plain' } }],
    [400, document.paths['/v1/tenants/{tenantId}/explain']?.get, { url: '/v1/tenants/acme/explain', headers }],
    [
      404,
      document.paths['/v1/cache/stats']?.get,
      { url: '/v1/cache/stats', headers: { authorization: 'Bearer acme-token' } },
    ],
  ] as const;
  for (const [status, declared, request] of asked) {
    const response = await server.inject(request);
    expect([request.url, response.statusCode]).toEqual([request.url, status]);
    expect(response.headers['content-type']).toMatch(/^application\/problem\+json/);
    expect(problem.parse(response.json())).toEqual(response.json());
    expect(Object.keys(declared?.responses ?? {})).toContain(String(status));
  }
});
