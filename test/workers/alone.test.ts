/** Jobs under which workers died: they run alone, in a real process of their own. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { App, Overrides } from '../../src/app.js';
import { sha256 } from '../../src/kinds/identity.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { embeddingQueue } from '../../src/queues/embedding.js';
import { listFailed, retryFailed } from '../../src/queues/failed.js';
import { startWorkers, type Workers } from '../../workers/start.js';
import { POISON } from '../chaos/origin.js';
import { ended } from '../support/crawl-run.js';
import { flatImage, noiseImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { untilState } from '../support/queue-work.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';

/** With an engine of its own, and dead as soon as it is to store `POISON`. */
const CHILD = new URL('../../dist/test/chaos/alone-child.js', import.meta.url);
const CHILD_MS = 60_000;
/** One after the other, on a busy machine. */
const SIX_CHILDREN = { timeout: 3 * CHILD_MS };

describe.each(['redis', 'postgres'] as const)('a job under which two workers died, queues on %s', (backend) => {
  let world: World;
  let site: Site;
  let app: App;
  let workers: Workers | undefined;

  beforeEach(async () => {
    world = await createWorld();
    site = await startSite();
    app = open();
  });

  afterEach(async () => {
    await workers?.stop(0);
    workers = undefined;
    await site.close();
    await world[Symbol.asyncDispose]();
  });

  function open(overrides: Overrides = {}, more: Record<string, string> = {}): App {
    const env = { QUEUE_BACKEND: backend, FETCH_ALLOW: '127.0.0.1/32:*', ...more };
    return world.app(env, { engine: new PuppetEngine(), aloneIn: CHILD, retryBaseMs: 50, ...overrides });
  }

  async function enqueue(url: string): Promise<string> {
    const [id = ''] = await app.queues.enqueue(crawlQueue, [{ v: 1, tenantId: 'acme', url }]);
    return id;
  }

  /** What the queue would have noted when workers died. */
  async function died(queue: 'crawl' | 'embedding', id: string, times = 2): Promise<void> {
    if (backend === 'postgres') {
      const text = 'update bullmq.job set stalled_count = $3 where queue = $1 and id = $2';
      expect((await app.connection.pool.query(text, [queue, id, times])).rowCount).toBe(1);
      return;
    }
    const redis = redisClient(world);
    await redis.hset(`${world.namespace}:${queue}:${id}`, 'stc', times);
    redis.disconnect();
  }

  /** An image that kills who stores it. */
  async function poison(): Promise<string> {
    const body = Buffer.concat([await flatImage(20, 20, '#123456'), POISON]);
    return site.put('/poison.png', { body, type: 'image/png' });
  }

  async function counted(metric: 'crawlImages' | 'jobAttempts', labels: Record<string, string>): Promise<number> {
    const { values } = await app.metrics[metric].get();
    const fits = (one: object) => Object.entries(labels).every(([k, v]) => (one as Record<string, unknown>)[k] === v);
    return values.filter((one) => fits(one.labels)).reduce((sum, { value }) => sum + value, 0);
  }

  test('is done in a process of its own, with all that follows, and is counted here', async () => {
    const body = await noiseImage(40, 30);
    const id = await enqueue(site.put('/fine.png', { body, type: 'image/png' }));
    await died('crawl', id);
    workers = startWorkers(app, ['crawl']);
    const job = await ended(app, 'crawl', id, CHILD_MS);
    expect(job).toMatchObject({ state: 'completed', attempts: 1 });
    expect(job.outcome).toMatchObject({ outcome: 'stored', contentHash: sha256(body) });
    expect(await app.records.content('acme', sha256(body))).toMatchObject({ byteSize: body.length });
    expect(site.countOf('/fine.png')).toBe(1);
    expect((await app.queues.counts('embedding')).prioritized).toBe(1);
    expect(await counted('crawlImages', { outcome: 'stored' })).toBe(1);
    const { values } = await app.metrics.crawlBytes.get();
    expect(values[0]?.value).toBe(body.length);
  });

  test('that kills its process is poison at the third time; its neighbours go on', SIX_CHILDREN, async () => {
    const id = await enqueue(await poison());
    await died('crawl', id);
    workers = startWorkers(app, ['crawl']);
    const neighbours = await Promise.all(
      [1, 2, 3].map(async (n) =>
        enqueue(site.put(`/${n}.png`, { body: await noiseImage(20, 20, n), type: 'image/png' })),
      ),
    );
    for (const one of neighbours)
      expect(await ended(app, 'crawl', one, CHILD_MS)).toMatchObject({ state: 'completed' });
    const job = await ended(app, 'crawl', id, CHILD_MS);
    expect(job).toMatchObject({ state: 'failed', attempts: 1 });
    expect(job.error).toBe('poison: it killed the process that ran it alone, 3 times (SIGKILL)');
    expect(site.countOf('/poison.png')).toBe(3);
    expect((await listFailed(app.queues, { reason: 'poison' }, 10)).jobs).toMatchObject([{ id, reason: 'poison' }]);
    expect(await counted('crawlImages', { outcome: 'failed', reason: 'poison' })).toBe(1);

    // Whoever retries it gives it all of its chances again.
    expect(await retryFailed(app.queues, { reason: 'poison' })).toMatchObject({ retried: 1 });
    await until('it to be tried again', () => site.countOf('/poison.png') > 3);
    await untilState(app, id, 'failed');
    expect(site.countOf('/poison.png')).toBe(6);
  });

  test('waits, without an attempt, while another one runs alone', async () => {
    app = open({}, { FETCH_TIMEOUT_MS: '3000' });
    const first = await enqueue(site.behave('/hang.png', 'hang'));
    const second = await enqueue(site.put('/fine.png', { body: await noiseImage(20, 20), type: 'image/png' }));
    for (const id of [first, second]) await died('crawl', id);
    workers = startWorkers(app, ['crawl']);
    await until('one to be put off', async () => (await counted('jobAttempts', { result: 'deferred' })) > 0, CHILD_MS);
    expect(site.countOf('/fine.png')).toBe(0);
    expect(await ended(app, 'crawl', second, CHILD_MS)).toMatchObject({ state: 'completed', attempts: 1 });
  });

  test('is tried again where no process could be started for it', async () => {
    const id = await enqueue(site.put('/unborn.png', { body: await noiseImage(20, 20), type: 'image/png' }));
    await died('crawl', id);
    const { execPath } = process;
    process.execPath = join(tmpdir(), 'no-node-is-here');
    try {
      workers = startWorkers(app, ['crawl']);
      await until('its first run to fail', async () => (await counted('jobAttempts', { result: 'retried' })) > 0);
    } finally {
      process.execPath = execPath;
    }
    expect(await ended(app, 'crawl', id, CHILD_MS)).toMatchObject({ state: 'completed', attempts: 2 });
    expect(await counted('jobAttempts', { result: 'deferred' })).toBe(0);
  });

  test('spends no attempt where its process is killed before it has begun', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'hc-test-'));
    const killed = join(folder, 'killed.mjs');
    await writeFile(killed, "process.kill(process.pid, 'SIGKILL');");
    const id = await enqueue(site.put('/early.png', { body: await noiseImage(20, 20), type: 'image/png' }));
    await died('crawl', id);
    app = open({ aloneIn: pathToFileURL(killed) });
    workers = startWorkers(app, ['crawl']);
    await until('it to be put off', async () => (await counted('jobAttempts', { result: 'deferred' })) > 0, CHILD_MS);
    await workers.stop(4_000);
    expect(await app.queues.job('crawl', id)).toMatchObject({ attempts: 0 });
    expect((await app.queues.get('crawl').getJob(id))?.progress).not.toHaveProperty('childDeaths');
    await rm(folder, { recursive: true });
  });

  test('once is done as ever', async () => {
    const id = await enqueue(site.put('/once.png', { body: await noiseImage(20, 20), type: 'image/png' }));
    await died('crawl', id, 1);
    const here = new PuppetEngine();
    app = open({ engine: here, aloneIn: new URL('file:///nowhere/alone-child.js') });
    workers = startWorkers(app, ['crawl']);
    expect(await ended(app, 'crawl', id)).toMatchObject({ state: 'completed' });
  });

  test('fails as any other where what it does fails, and keeps its attempts', async () => {
    const id = await enqueue(site.put('/broken.png', { status: 500 }));
    await died('crawl', id);
    workers = startWorkers(app, ['crawl']);
    const job = await ended(app, 'crawl', id, CHILD_MS);
    expect(job).toMatchObject({ state: 'failed', attempts: 5 });
    expect(job.error).toMatch(/^server-error: /);
    expect(site.countOf('/broken.png')).toBe(5);
  });

  test('waits where somebody else has its claim, without an attempt, and goes on', async () => {
    const body = await noiseImage(20, 20);
    const url = site.put('/claimed.png', { body, type: 'image/png' });
    const id = await enqueue(url);
    await died('crawl', id);
    const other = { tenantId: 'acme', subject: `url:${sha256(url)}`, holder: 'another' };
    const taken = await app.claims.take(other, 60_000);
    if (!taken.taken) throw new Error('it is claimed');
    workers = startWorkers(app, ['crawl']);
    await until('it to be put off', async () => (await counted('jobAttempts', { result: 'deferred' })) > 0, CHILD_MS);
    expect(site.countOf('/claimed.png')).toBe(0);
    await app.claims.release(other, new Map([[other.subject, taken.since]]));
    expect(await ended(app, 'crawl', id, CHILD_MS)).toMatchObject({ state: 'completed', attempts: 1 });
  });

  test('is handed back, without an attempt, when its worker is told to stop', async () => {
    const id = await enqueue(site.behave('/hang.png', 'hang'));
    await died('crawl', id);
    workers = startWorkers(app, ['crawl']);
    await until('its request', () => site.countOf('/hang.png') === 1, CHILD_MS);
    await workers.stop(4_000);
    expect(await app.queues.job('crawl', id)).toMatchObject({ attempts: 0 });
    expect((await app.queues.counts('crawl')).active).toBe(0);
    expect((await app.queues.get('crawl').getJob(id))?.progress).not.toHaveProperty('childDeaths');
  });

  test('finds faces there, too', async () => {
    const body = await noiseImage(40, 30);
    const id = await enqueue(site.put('/face.png', { body, type: 'image/png' }));
    workers = startWorkers(app, ['crawl']);
    await ended(app, 'crawl', id);
    await workers.stop(5_000);
    const payload = { v: 1 as const, tenantId: 'acme', contentHash: sha256(body) };
    const [embedding = ''] = await app.queues.enqueue(embeddingQueue, [payload]);
    await died('embedding', embedding);
    workers = startWorkers(app, ['embedding']);
    const { outcome } = await ended(app, 'embedding', embedding, CHILD_MS);
    expect(outcome).toMatchObject({ outcome: 'embedded', model: 'chaos-embedder@1' });
  });

  test('says what is missing where its process cannot be started', async () => {
    const id = await enqueue(site.put('/built.png', { body: await noiseImage(20, 20), type: 'image/png' }));
    await died('crawl', id);
    app = open({ aloneIn: new URL('file:///nowhere/alone-child.js') });
    workers = startWorkers(app, ['crawl']);
    const job = await ended(app, 'crawl', id);
    expect(job).toMatchObject({ state: 'failed', attempts: 5 });
    expect(job.error).toBe('/nowhere/alone-child.js is missing: run "npm run build"');
  });
});
