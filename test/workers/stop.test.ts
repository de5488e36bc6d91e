/** How a service ends: within its time, whoever does not read, does not hear or does not end. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { UNKNOWN_VERSION } from '../../src/cache/crawl-records.js';
import { sha256 } from '../../src/kinds/identity.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { rawKey } from '../../src/storage/object-store.js';
import { run } from '../../workers/main.js';
import { startWorkers } from '../../workers/start.js';
import { startCommand } from '../support/command.js';
import { ended } from '../support/crawl-run.js';
import { noiseImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

let world: World;

beforeEach(async () => {
  world = await createWorld();
});

afterEach(() => world[Symbol.asyncDispose]());

/** More than the buffers of two sockets hold. */
const LARGE = 64 * 1024 * 1024;

/** A client that asked for an image, saw the beginning of it, and reads no further. */
async function lazyReader(address: string, path: string): Promise<Socket> {
  const { hostname, port } = new URL(address);
  const socket = connect(Number(port), hostname);
  await once(socket, 'connect');
  socket.write(`GET ${path} HTTP/1.1\r\nhost: ${hostname}\r\n\r\n`);
  await once(socket, 'readable');
  return socket;
}

test('a client that never sends all of its request holds nobody up', async () => {
  const app = world.app({ SHUTDOWN_TIMEOUT_MS: '1000' });
  const running = await run(app, { workers: [], api: true });
  const { hostname, port } = new URL(running.address);
  const socket = connect(Number(port), hostname);
  const cutOff = new Promise((resolve) => socket.once('close', resolve));
  socket.on('error', () => undefined);
  const head = `POST /v1/crawl-jobs HTTP/1.1\r\nhost: ${hostname}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n`;
  socket.write(`${head}expect: 100-continue\r\n\r\n`);
  const [answer] = await once(socket, 'data');
  expect(String(answer)).toMatch(/^HTTP\/1.1 100 /); // the server has the head, and waits for the body
  await running.stop();
  await cutOff;
});

/** An image as a crawl leaves it, of a size that no test fetches. */
async function storeLarge(app: App): Promise<string> {
  const bytes = Buffer.alloc(LARGE, 7);
  const contentHash = sha256(bytes);
  const key = rawKey('acme', contentHash, 'image/png');
  await app.objects.put(key, bytes);
  const content = { rawKey: key, thumbnailKey: null, mimeType: 'image/png', byteSize: LARGE, width: 1, height: 1 };
  await app.records.store('acme', {
    ...{ url: 'https://example.com/large.png', sourceUrl: null, contentHash, validators: UNKNOWN_VERSION, phash: null },
    content: { ...content, jobId: null, storedAt: Date.now() },
  });
  return contentHash;
}

test('a client that does not read its answer holds nobody up', async () => {
  const app = world.app({ SHUTDOWN_TIMEOUT_MS: '1000' });
  const contentHash = await storeLarge(app);
  const running = await run(app, { workers: [], api: true });
  const reader = await lazyReader(running.address, `/v1/tenants/acme/images/${contentHash}/raw`);
  const cutOff = new Promise((resolve) => reader.once('close', resolve));
  reader.on('error', () => undefined);
  await running.stop();
  reader.resume();
  await cutOff;
  expect(reader.bytesRead).toBeLessThan(LARGE);
  // That request is logged as ended, at about the same time.
  expect(world.logs.map(({ msg }) => msg)).toContain('service stopped');
});

test('an answer that is under way is sent to its end', async () => {
  const app = world.app({ SHUTDOWN_TIMEOUT_MS: '30000' });
  const contentHash = await storeLarge(app);
  const running = await run(app, { workers: [], api: true });
  const reader = await lazyReader(running.address, `/v1/tenants/acme/images/${contentHash}/raw`);
  const stopping = running.stop();
  const answered = new Promise((resolve) => reader.once('close', resolve));
  reader.resume();
  await answered;
  await stopping;
  expect(reader.bytesRead).toBeGreaterThan(LARGE);
});

describe('a worker process whose job never ends', () => {
  let site: Site;
  let app: App;
  let env: Record<string, string>;
  let url: string;
  let id: string;

  beforeEach(async () => {
    site = await startSite();
    // A command has the namespace of everybody: these queues are in a database of their own.
    env = {
      ...{ DATABASE_URL: world.databaseUrl, REDIS_URL: 'none', QUEUE_BACKEND: 'postgres', METRICS_PORT: '0' },
      ...{ FETCH_ALLOW: '127.0.0.1/32:*', FETCH_ROBOTS: 'ignore', FETCH_TIMEOUT_MS: '600000' },
    };
    app = world.app(env, { engine: new PuppetEngine() });
    const { folder } = app.config.storage as { folder: string };
    env.STORAGE_URL = `file:${folder}`;
    url = site.behave('/hang.png', 'hang');
    [id = ''] = await app.queues.enqueue(crawlQueue, [{ v: 1, tenantId: 'acme', url }]);
  });

  afterEach(() => site.close());

  async function startedWorker(shutdownTimeoutMs: string) {
    const worker = startCommand(['worker', 'crawl'], { ...env, SHUTDOWN_TIMEOUT_MS: shutdownTimeoutMs }, null);
    await until('its request', () => site.countOf('/hang.png') === 1);
    return worker;
  }

  test('hands it back within its time, without an attempt, and ends with 0; another one runs it', async () => {
    await using worker = await startedWorker('2000');
    worker.process.kill('SIGTERM');
    expect(await worker.ended).toMatchObject({ code: 0 });
    expect(await app.queues.job('crawl', id)).toMatchObject({ attempts: 0, error: null });
    expect((await app.queues.counts('crawl')).active).toBe(0);
    site.put('/hang.png', { body: await noiseImage(20, 20), type: 'image/png' });
    const workers = startWorkers(app, ['crawl']);
    expect(await ended(app, 'crawl', id)).toMatchObject({ state: 'completed', attempts: 1 });
    expect((await app.queues.get('crawl').getJob(id))?.stalledCounter).toBe(0);
    await workers.stop(5_000);
  });

  test('is ended by a second signal at once, with 130', async () => {
    await using worker = await startedWorker('3600000');
    worker.process.kill('SIGTERM');
    await until('it to be stopping', () => worker.out().includes('service stopping'));
    worker.process.kill('SIGTERM');
    expect(await worker.ended).toMatchObject({ code: 130 });
  });
});
