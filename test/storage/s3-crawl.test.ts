/** A crawl whose objects lie in S3: stored, embedded from there, read over HTTP, and restored. */
import sharp from 'sharp';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import type { CrawlOutcome } from '../../workers/crawl-step.js';
import { startWorkers, type Workers } from '../../workers/start.js';
import { crawled, idle } from '../support/crawl-run.js';
import { noiseImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { S3_CREDENTIALS, type S3Server, startS3 } from '../support/s3.js';
import { type Site, startSite } from '../support/site.js';
import { createWorld, type World } from '../support/world.js';

type Stored = Extract<CrawlOutcome, { outcome: 'stored' }>;

let world: World;
let site: Site;
let s3: S3Server;
let app: App;
let workers: Workers;

beforeAll(async () => {
  for (const [name, value] of Object.entries(S3_CREDENTIALS)) vi.stubEnv(name, value);
  world = await createWorld();
  site = await startSite();
  s3 = await startS3('some/prefix');
  const env = { STORAGE_URL: s3.url, FETCH_ALLOW: `127.0.0.1/32:${site.port}` };
  app = world.app(env, { engine: new PuppetEngine() });
  workers = startWorkers(app, ['crawl', 'embedding']);
});

afterAll(async () => {
  await workers?.stop(5_000);
  await site?.close();
  await world?.[Symbol.asyncDispose]();
  await s3?.[Symbol.asyncDispose]();
  vi.unstubAllEnvs();
});

test('an image is stored in S3, embedded from there, and sent from there', async () => {
  const body = await noiseImage(64, 48, 1);
  const outcome = (await crawled(app, 'acme', site.put('/one.png', { body, type: 'image/png' }))) as Stored;
  expect(outcome.outcome).toBe('stored');
  await idle(app, 'embedding');
  expect(await app.cache.getCachedFaceEmbeddings(body, 'acme')).toHaveLength(1);
  await using server = await createServer(app, { api: true });
  const path = `/v1/tenants/acme/images/${outcome.contentHash}`;
  const raw = await server.inject(`${path}/raw`);
  expect([raw.statusCode, raw.headers['content-type'], raw.rawPayload.equals(body)]).toEqual([200, 'image/png', true]);
  const { statusCode, rawPayload } = await server.inject(`${path}/thumbnail`);
  expect([statusCode, (await sharp(rawPayload).metadata()).format]).toEqual([200, 'jpeg']);
});

test('force stores again what the bucket has damaged, in place of it', async () => {
  const body = await noiseImage(64, 48, 2);
  const url = site.put('/two.png', { body, type: 'image/png' });
  const { rawKey } = (await crawled(app, 'acme', url)) as Stored;
  await app.objects.put(rawKey, body.subarray(1));
  expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({ outcome: 'skipped', reason: 'content' });
  expect((await app.objects.get(rawKey))?.equals(body)).toBe(true);
});
