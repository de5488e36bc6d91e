/** At most so many images a token and minute, over all processes. */
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { createWorld, type World } from '../support/world.js';

const API_TOKENS = 'acme-token=acme,other-token=acme';
const DEAD_POSTGRES = 'postgres://somebody@127.0.0.1:1/nothing';

let world: World;
let app: App;
let servers: FastifyInstance[];

beforeAll(async () => {
  world = await createWorld();
  app = world.app();
  // Two processes, as far as this matters: they share nothing but the stores. 20 s fill three images up again.
  const env = { API_TOKENS, API_IMAGES_PER_MINUTE: '9' };
  servers = await Promise.all([env, env].map((one) => createServer(world.app(one), { api: true })));
});

afterAll(async () => {
  for (const server of servers ?? []) await server.close();
  await world?.[Symbol.asyncDispose]();
});

const sql = (text: string) => app.connection.pool.query(text);

beforeEach(async () => {
  await sql('truncate queue_state.image_quotas');
});

let next = 0;
const urls = (count: number) => Array.from({ length: count }, () => ({ url: `https://example.com/${++next}.jpg` }));

function post(server: FastifyInstance, images: object[], token = 'acme-token') {
  const headers = { authorization: `Bearer ${token}` };
  return server.inject({ method: 'POST', url: '/v1/crawl-jobs', payload: { tenantId: 'acme', images }, headers });
}

const statusOf = async (images: number, { process = 0, token = 'acme-token' } = {}) =>
  (await post(servers[process] as FastifyInstance, urls(images), token)).statusCode;

test('what goes beyond is 429 with a time to wait; it counts for nothing, and smaller requests still fit', async () => {
  expect(await statusOf(6)).toBe(202);
  const refused = await post(servers[0] as FastifyInstance, urls(4));
  expect(refused.statusCode).toBe(429);
  expect(refused.headers['content-type']).toMatch(/^application\/problem\+json/);
  const wait = Number(refused.headers['retry-after']);
  expect(wait).toBeGreaterThanOrEqual(1);
  expect(wait).toBeLessThanOrEqual(7); // one image too many
  expect(refused.json()).toEqual({
    type: 'about:blank',
    title: 'Too Many Requests',
    status: 429,
    detail: `at most 9 images a minute are taken: try again in ${wait} s`,
  });
  expect(await statusOf(3)).toBe(202);
  expect(await statusOf(3)).toBe(429);
});

test('all processes count together, each token by itself', async () => {
  expect(await statusOf(9, { process: 0 })).toBe(202);
  expect(await statusOf(3, { process: 1 })).toBe(429);
  expect(await statusOf(9, { process: 1, token: 'other-token' })).toBe(202);
});

test('who comes at the same time does not get more', async () => {
  const statuses = await Promise.all(Array.from({ length: 12 }, (_, n) => statusOf(3, { process: n % 2 })));
  expect(statuses.filter((status) => status === 202)).toHaveLength(3);
  expect(statuses.filter((status) => status === 429)).toHaveLength(9);
});

test('it fills up again with time', async () => {
  expect(await statusOf(9)).toBe(202);
  await sql('update queue_state.image_quotas set full_at = full_at - 20000');
  expect(await statusOf(3)).toBe(202);
  expect(await statusOf(3)).toBe(429);
  await sql('update queue_state.image_quotas set full_at = full_at - 3600000');
  expect(await statusOf(9)).toBe(202);
  expect(await statusOf(3)).toBe(429);
});

test('images that are refused for themselves are not counted, and more than a minute’s are never taken', async () => {
  const bad = Array.from({ length: 50 }, () => ({ url: 'nope' }));
  expect((await post(servers[0] as FastifyInstance, [...bad, ...urls(9)])).statusCode).toBe(202);
  const never = await post(servers[1] as FastifyInstance, urls(10), 'other-token');
  expect(never.json()).toMatchObject({ status: 400, field: 'images' });
  expect(await statusOf(9, { token: 'other-token' })).toBe(202);
});

test('no token is kept', async () => {
  await statusOf(1);
  const { rows } = await sql('select * from queue_state.image_quotas');
  expect(rows).toEqual([{ holder: expect.stringMatching(/^[0-9a-f]{64}$/), full_at: expect.any(Number) }]);
});

describe('a server', () => {
  async function serve(env: Record<string, string>): Promise<FastifyInstance> {
    const server = await createServer(world.app(env), { api: true });
    onTestFinished(() => server.close().then(() => undefined));
    return server;
  }

  test('without tokens has one quota, whatever is sent as a token', async () => {
    const server = await serve({ API_IMAGES_PER_MINUTE: '9' });
    expect((await post(server, urls(9), 'one')).statusCode).toBe(202);
    expect((await post(server, urls(3), 'another')).statusCode).toBe(429);
  });

  test('without PostgreSQL turns nobody away', async () => {
    const server = await serve({ API_TOKENS, API_IMAGES_PER_MINUTE: '9', DATABASE_URL: DEAD_POSTGRES });
    for (let round = 0; round < 3; round++) expect((await post(server, urls(9))).statusCode).toBe(202);
  });

  test('without a quota counts nothing', async () => {
    const server = await serve({ API_TOKENS });
    expect((await post(server, urls(100))).statusCode).toBe(202);
    expect((await sql('select * from queue_state.image_quotas')).rows).toEqual([]);
  });
});
