/** A request that is sent again gets the jobs of the first one: what waits or runs is never enqueued twice. */
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { startWork } from '../support/queue-work.js';
import { storeSampleImage } from '../support/stored-image.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

describe.each(['redis', 'postgres'])('with the queue on %s', (QUEUE_BACKEND) => {
  let world: World;
  let apps: App[];
  let servers: FastifyInstance[];

  beforeAll(async () => {
    world = await createWorld();
    // Two processes, as far as this matters.
    apps = [world.app({ QUEUE_BACKEND }), world.app({ QUEUE_BACKEND })];
    servers = await Promise.all(apps.map((app) => createServer(app, { api: true })));
  });

  afterAll(async () => {
    for (const server of servers ?? []) await server.close();
    await world?.[Symbol.asyncDispose]();
  });

  const images = (name: string, count: number) =>
    Array.from({ length: count }, (_, n) => ({ url: `https://example.com/${name}/${n}.jpg` }));

  async function idsOf(
    list: { url: string }[],
    { process = 0, ...more }: { process?: number; force?: boolean; tenantId?: string } = {},
  ) {
    const payload = { tenantId: 'acme', images: list, ...more };
    const request = { method: 'POST', url: '/v1/crawl-jobs', payload } as const;
    const response = await (servers[process] as FastifyInstance).inject(request);
    expect(response.statusCode).toBe(202);
    const { accepted } = response.json() as { accepted: { url: string; jobId: string }[] };
    return Object.fromEntries(accepted.map(({ url, jobId }) => [url, jobId]));
  }

  const waiting = async () => (await (apps[0] as App).queues.get('crawl').getJobs(['waiting', 'prioritized'])).length;

  test('the same request again, at any process, gives the same jobs', async () => {
    const before = await waiting();
    const first = await idsOf(images('again', 20));
    expect(new Set(Object.values(first)).size).toBe(20);
    expect(await idsOf(images('again', 20))).toEqual(first);
    expect(await idsOf(images('again', 20), { process: 1 })).toEqual(first);
    expect(await waiting()).toBe(before + 20);
  });

  test('so do requests at the same time, in whatever order they name the images', async () => {
    const before = await waiting();
    const list = images('at-once', 40);
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, n) => idsOf(n % 3 === 0 ? list.toReversed() : list, { process: n % 2 })),
    );
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    expect(new Set(Object.values(answers[0] ?? {})).size).toBe(40);
    expect(await waiting()).toBe(before + 40);
  });

  test('a part of it, and another with more in it, give the jobs of what they share', async () => {
    const first = await idsOf(images('shared', 3));
    expect(await idsOf(images('shared', 2))).toEqual(Object.fromEntries(Object.entries(first).slice(0, 2)));
    expect(await idsOf(images('shared', 5))).toMatchObject(first);
  });

  test('with force it is another request, and that is one, too', async () => {
    const plain = await idsOf(images('forced', 2));
    const forced = await idsOf(images('forced', 2), { force: true });
    expect(Object.values(plain)).not.toContain(Object.values(forced)[0]);
    expect(await idsOf(images('forced', 2), { force: true })).toEqual(forced);
  });

  test('another tenant’s jobs are its own', async () => {
    const acme = await idsOf(images('tenants', 1));
    expect(await idsOf(images('tenants', 1), { tenantId: 'globex' })).not.toEqual(acme);
  });

  test('an embedding that is asked for twice is one job', async () => {
    const payload = { tenantId: 'acme', ...(await storeSampleImage(apps[0] as App, 'acme', 5)) };
    const ask = (n: number) =>
      (servers[n % 2] as FastifyInstance).inject({ method: 'POST', url: '/v1/embedding-jobs', payload });
    const answers = await Promise.all([0, 1, 2, 3].map(ask));
    expect(new Set(answers.map((answer) => answer.json().jobId)).size).toBe(1);
  });

  test('while the job runs it is still the same; once it has ended, a new one', async () => {
    const [app] = apps as [App];
    await app.queues.get('crawl').drain();
    const list = images('running', 1);
    const first = await idsOf(list);
    let finish: () => void = () => undefined;
    const finished = new Promise<void>((resolve) => {
      finish = resolve;
    });
    startWork(app, async () => {
      await finished;
      return { outcome: 'rejected', reason: 'gone', detail: 'status 410' };
    });
    const [id] = Object.values(first) as [string];
    const state = async () => (await app.queues.job('crawl', id))?.state;
    await until('the job runs', async () => (await state()) === 'active');
    expect(await idsOf(list)).toEqual(first);
    finish();
    await until('the job has ended', async () => (await state()) === 'completed');
    expect(await idsOf(list)).not.toEqual(first);
  });
});
