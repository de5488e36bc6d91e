/** Each answer names its request, and the log does too. */
import type { AddressInfo } from 'node:net';
import { connect } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { createLogger } from '../../src/logger.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/;

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

const idOf = async (headers: Record<string, string> = {}) =>
  (await server.inject({ url: '/healthz', headers })).headers['x-request-id'];

describe('the id of a request', () => {
  test.each(['a', 'req-42', '0af7651916cd43dd8448eb211c80319c', 'Root=1-67891233:a/b+c.d_e=', 'x'.repeat(128)])(
    '%j is kept',
    async (id) => {
      expect(await idOf({ 'x-request-id': id })).toBe(id);
    },
  );

  test.each(['', ' ', 'x'.repeat(129), 'two words', 'a"b', '<script>', 'a,b', 'ä', '{}'])(
    '%j is replaced by a new one',
    async (id) => {
      expect(await idOf({ 'x-request-id': id })).toMatch(UUID);
    },
  );

  test('is new for every request that brings none', async () => {
    const ids = await Promise.all(Array.from({ length: 20 }, () => idOf()));
    expect(new Set(ids).size).toBe(20);
    for (const id of ids) expect(id).toMatch(UUID);
  });

  test.each([
    [404, { url: '/nowhere' }],
    [404, { url: '/v1/jobs/crawl/none' }],
    [400, { url: '/%zz' }],
    [415, { method: 'POST', url: '/v1/crawl-jobs', payload: 'x', headers: { 'content-type': 'text/plain' } }],
    [400, { method: 'POST', url: '/v1/crawl-jobs', payload: '{', headers: { 'content-type': 'application/json' } }],
    [403, { method: 'PUT', url: '/dashboard/api/queues/crawl/pause', headers: { 'sec-fetch-site': 'cross-site' } }],
    [200, { url: '/dashboard' }],
    [200, { url: '/metrics' }],
  ] as const)('is in an answer with %i to %j', async (status, request) => {
    const response = await server.inject(request);
    expect([response.statusCode, response.headers['x-request-id']]).toEqual([status, expect.stringMatching(UUID)]);
    if (status >= 400) expect(response.headers['content-type']).toMatch(/^application\/problem\+json/);
  });
});

test('every answer is a line at debug, without the query', async () => {
  const url = 'https://images.example/a.jpg?signature=hush-hush';
  const headers = { 'x-request-id': 'access-1' };
  await server.inject({ url: '/v1/tenants/acme/explain', query: { url }, headers });
  const lines = world.logs.filter(({ requestId }) => requestId === 'access-1');
  expect(lines).toEqual([
    {
      level: 'debug',
      time: expect.any(String),
      msg: 'request answered',
      requestId: 'access-1',
      method: 'GET',
      path: '/v1/tenants/acme/explain',
      status: 200,
      ms: expect.any(Number),
    },
  ]);
  expect(JSON.stringify(world.logs)).not.toContain('hush-hush');
});

test('at info only a request that failed is a line, with its id', async () => {
  const lines: Record<string, unknown>[] = [];
  const logger = createLogger('info', { write: (line: string) => void lines.push(JSON.parse(line)) });
  const own = await createServer(world.app({}, { logger }), { api: true });
  own.get('/bug', async () => Promise.reject(new Error('nobody foresaw this')));
  await own.inject('/healthz');
  const response = await own.inject({ url: '/bug', headers: { 'x-request-id': 'failed-1' } });
  expect([response.statusCode, response.headers['x-request-id']]).toEqual([500, 'failed-1']);
  const told = lines.filter(({ msg }) => String(msg).startsWith('request'));
  expect(told).toMatchObject([{ level: 'error', msg: 'request failed', requestId: 'failed-1' }]);
  await own.close();
});

test('two ids in one request are none', async () => {
  await server.listen({ host: '127.0.0.1', port: 0 });
  const socket = connect((server.server.address() as AddressInfo).port, '127.0.0.1');
  let answer = '';
  socket.setEncoding('utf8').on('data', (text) => {
    answer += text;
  });
  socket.write('GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-request-id: a\r\nx-request-id: b\r\n\r\n');
  await until('the answer', () => answer.includes('"ok"'));
  socket.destroy();
  expect(/^x-request-id: (.*)\r$/m.exec(answer)?.[1]).toMatch(UUID);
});
