/** What whoever posts is told while a store is frozen, on servers of this file's own. */
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { within } from '../../src/lifecycle.js';
import { type OwnStack, startOwnStack } from '../support/own-stack.js';

let stack: OwnStack;

beforeAll(async () => {
  stack = await startOwnStack();
});

afterAll(async () => {
  await stack?.[Symbol.asyncDispose]();
});

async function serve(env: Record<string, string>): Promise<{ app: App; server: FastifyInstance }> {
  const app = stack.app(env);
  const server = await createServer(app, { api: true });
  onTestFinished(() => server.close().then(() => undefined));
  return { app, server };
}

async function freeze(...names: ('redis' | 'postgres')[]): Promise<void> {
  for (const name of names) await stack.servers.kill(name, 'SIGSTOP');
  onTestFinished(async () => {
    for (const name of names) await stack.servers.kill(name, 'SIGCONT');
  });
}

const UNKNOWN = 'a'.repeat(64);
const ON_REDIS = { name: 'Redis', env: {} };
const ON_POSTGRES = { name: 'PostgreSQL', env: { REDIS_URL: 'none' } };

function expectUnavailable(response: Awaited<ReturnType<FastifyInstance['inject']>>): void {
  expect(response.statusCode).toBe(503);
  expect(response.headers['content-type']).toMatch(/^application\/problem\+json/);
  expect(response.headers['retry-after']).toBe('5');
  expect(response.json()).toMatchObject({ type: 'about:blank', status: 503 });
}

test.each([ON_REDIS, ON_POSTGRES])(
  'with PostgreSQL frozen and the queue on $name, an embedding job is refused before the cache gives up',
  async ({ env }) => {
    const { app, server } = await serve(env);
    const payload = { tenantId: 'acme', contentHash: UNKNOWN };
    const post = () => server.inject({ method: 'POST', url: '/v1/embedding-jobs', payload });
    expect((await post()).statusCode).toBe(404);
    await freeze('postgres');
    // Asked first, so that an answer which waits for the cache comes after it.
    const gaveUp = app.records.content('acme', 'b'.repeat(64)).catch(() => 'the cache gave up');
    const first = await Promise.race([gaveUp, post()]);
    expect(first).not.toBe('the cache gave up');
    expectUnavailable(first as Awaited<ReturnType<typeof post>>);
    expect(await gaveUp).toBe('the cache gave up');
  },
);

test.each([
  { ...ON_REDIS, images: 1 },
  { ...ON_REDIS, images: 2 },
  { ...ON_POSTGRES, images: 1 },
  { ...ON_POSTGRES, images: 2 },
])(
  'with both frozen and the queue on $name, a request of $images waits for quota and queue together, not for one after the other',
  async ({ env, images }) => {
    const { app, server } = await serve({ ...env, API_IMAGES_PER_MINUTE: '1000' });
    let next = 0;
    const post = () => {
      const urls = Array.from({ length: images }, () => ({ url: `https://example.com/${++next}.jpg` }));
      return server.inject({ method: 'POST', url: '/v1/crawl-jobs', payload: { tenantId: 'acme', images: urls } });
    };
    expect((await post()).statusCode).toBe(202);
    await freeze('postgres', 'redis');
    const never = new Promise<never>(() => undefined);
    // What the quota is waited for, and then the queue.
    const both = within(500, never, null).then(() => app.queues.isUp());
    const first = await Promise.race([both, post()]);
    expect(first).not.toBe(false);
    expectUnavailable(first as Awaited<ReturnType<typeof post>>);
  },
);

test("the dashboard's data is refused where the queue's store is frozen, and not waited for", async () => {
  const { server } = await serve({});
  const get = () => server.inject('/dashboard/api/queues');
  expect((await get()).statusCode).toBe(200);
  await freeze('redis');
  expectUnavailable(await get());
});
