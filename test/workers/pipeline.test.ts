/** The whole story on both queue backends: real servers, a real site, real images; only the faces are a puppet's. */
import { createHash } from 'node:crypto';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import type { App } from '../../src/app.js';
import { lookup } from '../../src/cache/tier.js';
import { faceEmbeddings } from '../../src/kinds/faces.js';
import { Closer } from '../../src/lifecycle.js';
import { thumbnailKey as thumbnailKeyOf } from '../../src/storage/object-store.js';
import type { CrawlOutcome } from '../../workers/crawl-step.js';
import { workOf } from '../../workers/jobs.js';
import type { Run } from '../../workers/run.js';
import { startWorkers, type Workers } from '../../workers/start.js';
import { enqueueMissing } from '../../workers/sweep.js';
import { crawled, crawlJob, embedded, ended, idle } from '../support/crawl-run.js';
import { flatImage, noiseImage, recompressed, samplePhoto } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

type Stored = Extract<CrawlOutcome, { outcome: 'stored' }>;

describe.each([
  { backend: 'redis', env: {} },
  { backend: 'postgres', env: { QUEUE_BACKEND: 'postgres' } },
])('the crawl job, queues on $backend', ({ env }) => {
  let world: World;
  let site: Site;
  let app: App;
  let workers: Workers;
  const engine = new PuppetEngine();

  beforeAll(async () => {
    world = await createWorld();
    site = await startSite();
    const FETCH_ALLOW = `127.0.0.1/32:${site.port}`;
    const limits = { FETCH_MAX_BYTES: '2000000', FETCH_TIMEOUT_MS: '3000' };
    app = world.app({ ...env, ...limits, FETCH_ALLOW }, { engine, retryBaseMs: 20 });
    workers = startWorkers(app, ['crawl', 'embedding']);
  });

  afterAll(async () => {
    await workers.stop(5_000);
    await site.close();
    await world[Symbol.asyncDispose]();
  });

  test('stores the bytes as fetched, a thumbnail, a hash and a record, and embeds the faces', async () => {
    const photograph = await samplePhoto(1);
    const url = site.put('/one.jpg', { body: photograph });
    const outcome = (await crawled(app, 'acme', url)) as Stored;
    expect(outcome).toMatchObject({ outcome: 'stored', contentHash: sha256(photograph), nearDuplicates: [] });
    expect(outcome.phash).toMatch(/^[0-9a-f]{16}$/);
    expect((await app.objects.get(outcome.rawKey))?.equals(photograph)).toBe(true);
    expect((await app.objects.get(outcome.thumbnailKey ?? ''))?.subarray(0, 2).toString('hex')).toBe('ffd8');
    await idle(app, 'embedding');
    expect(await app.cache.getCachedFaceEmbeddings(photograph, 'acme')).toHaveLength(1);
    expect(await app.cache.getCachedFaceDetection(photograph, 'acme')).toHaveLength(1);
    expect(await app.cache.getCachedPerceptualHash(photograph, 'acme')).toBe(outcome.phash);
  });

  test('skips a known URL without asking the site, and the same bytes under another URL without storing them', async () => {
    const body = await samplePhoto(2);
    const first = (await crawled(app, 'acme', site.put('/two.jpg', { body }))) as Stored;
    const known = { contentHash: first.contentHash, rawKey: first.rawKey };
    expect(await crawled(app, 'acme', `${site.url}/two.jpg`)).toEqual({ outcome: 'skipped', reason: 'url', ...known });
    expect(site.countOf('/two.jpg')).toBe(1);
    const twin = site.put('/two-again.jpg', { body });
    expect(await crawled(app, 'acme', twin)).toEqual({ outcome: 'skipped', reason: 'content', ...known });
    expect(await crawled(app, 'acme', twin)).toEqual({ outcome: 'skipped', reason: 'url', ...known });
    expect(site.countOf('/two-again.jpg')).toBe(1);
  });

  test('who waited for the same bytes under another URL needs no claim of them once they are known', async () => {
    const body = await flatImage(41, 30, '#123456');
    const first = (await crawled(app, 'acme', site.put('/waited-for.png', { body, type: 'image/png' }))) as Stored;
    const { contentHash } = first;
    const url = site.put('/waiting.png', { body, type: 'image/png' });
    await app.claims.take(
      { tenantId: 'acme', subject: `content:${contentHash}`, holder: 'another waiting job' },
      60_000,
    );
    await using closer = new Closer();
    const { perform } = workOf('crawl', app, { events: app.events, engine, closer });
    const run = laterRun({ id: 'waiting', jobId: 'waiting@1', remembered: { contentHash } });
    const outcome = await perform({ v: 1, tenantId: 'acme', url }, run);
    expect(outcome).toEqual({ outcome: 'skipped', reason: 'content', contentHash, rawKey: first.rawKey });
    expect(site.countOf('/waiting.png')).toBe(0);
  });

  test('works for each tenant by itself', async () => {
    const body = await flatImage(40, 30, '#123456');
    const url = site.put('/tenants.png', { body, type: 'image/png' });
    const ours = (await crawled(app, 'acme', url)) as Stored;
    const theirs = (await crawled(app, 'globex', url)) as Stored;
    expect([ours.outcome, theirs.outcome]).toEqual(['stored', 'stored']);
    expect(theirs.rawKey).not.toBe(ours.rawKey);
    expect(site.countOf('/tenants.png')).toBe(2);
  });

  test('links a recompressed copy as a near-duplicate, and stores it', async () => {
    const original = await samplePhoto(3);
    const first = (await crawled(app, 'acme', site.put('/three.jpg', { body: original }))) as Stored;
    const copy = (await crawled(
      app,
      'acme',
      site.put('/three-q50.jpg', { body: await recompressed(original, 50) }),
    )) as Stored;
    expect(copy.outcome).toBe('stored');
    expect(copy.nearDuplicates.map(({ contentHash }) => contentHash)).toContain(first.contentHash);
  });

  test('gives 30 jobs of the same new bytes one object, one record and one request each', async () => {
    const body = await flatImage(64, 64, '#aa5500');
    const urls = Array.from({ length: 30 }, (_, i) => site.put(`/same-${i}.png`, { body, type: 'image/png' }));
    const outcomes = await Promise.all(urls.map((url) => crawled(app, 'initech', url)));
    expect(outcomes.filter(({ outcome }) => outcome === 'stored')).toHaveLength(1);
    expect(outcomes.filter((one) => one.outcome === 'skipped' && one.reason === 'content')).toHaveLength(29);
    expect(urls.map((url) => site.countOf(new URL(url).pathname))).toEqual(urls.map(() => 1));
  });

  test('fetches again when forced: equal bytes are skipped by content, changed bytes are a new version', async () => {
    const [before, after] = [await flatImage(50, 50, '#ff0000'), await flatImage(50, 50, '#00ff00')];
    const url = site.put('/changing.png', { body: before, type: 'image/png' });
    const first = (await crawled(app, 'acme', url)) as Stored;
    expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({ outcome: 'skipped', reason: 'content' });
    site.put('/changing.png', { body: after, type: 'image/png' });
    const second = (await crawled(app, 'acme', url, { force: true })) as Stored;
    expect(second).toMatchObject({ outcome: 'stored', contentHash: sha256(after) });
    expect(await app.records.content('acme', first.contentHash)).not.toBeNull();
    expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'skipped', contentHash: second.contentHash });
  });

  test('stores again, when forced, what the object store has lost or damaged', async () => {
    const body = await flatImage(50, 51, '#0000ff');
    const url = site.put('/lost.png', { body, type: 'image/png' });
    const { rawKey, thumbnailKey } = (await crawled(app, 'acme', url)) as Stored;
    const thumbnail = await app.objects.get(thumbnailKey as string);
    const { folder } = app.config.storage as { folder: string };
    const path = (key: string | null) => join(folder, key as string);
    for (const ruin of [
      () => rm(path(rawKey)),
      () => rm(path(thumbnailKey)),
      () => writeFile(path(rawKey), body.subarray(1)),
      () =>
        writeFile(
          path(rawKey),
          body.map((byte, i) => (i === 100 ? byte ^ 1 : byte)),
        ),
    ]) {
      await ruin();
      expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({ outcome: 'skipped', reason: 'content' });
      expect(await app.objects.get(rawKey)).toEqual(body);
      expect(await app.objects.get(thumbnailKey as string)).toEqual(thumbnail);
    }
  });

  test('is not done, when forced, while the object store does not tell what it has lost', async () => {
    const body = await flatImage(50, 53, '#0000ff');
    const url = site.put('/untold.png', { body, type: 'image/png' });
    const { rawKey } = (await crawled(app, 'acme', url)) as Stored;
    const { folder } = app.config.storage as { folder: string };
    const path = join(folder, rawKey);
    await rm(path);
    await mkdir(path); // no file can be read there
    const job = await crawlJob(app, 'acme', url, { force: true });
    expect(job).toMatchObject({ state: 'failed', error: expect.stringMatching(/^storage: /) });
    await rm(path, { recursive: true });
    expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({ outcome: 'skipped', reason: 'content' });
    expect(await app.objects.get(rawKey)).toEqual(body);
  });

  test('leaves alone, when forced, what the library recorded: its bytes lie elsewhere', async () => {
    const body = await flatImage(50, 52, '#0000ff');
    const url = site.put('/elsewhere.png', { body, type: 'image/png' });
    await app.cache.storeCrawledImage(url, body, { rawKey: '../theirs.png' }, 'acme');
    expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({
      outcome: 'skipped',
      rawKey: '../theirs.png',
    });
    expect(await app.objects.get(thumbnailKeyOf('acme', sha256(body)))).toBeNull();
  });

  test('a refusal is on record before another job may claim the URL', async () => {
    const url = site.put('/refused.png', { status: 404 });
    const { records, claims } = app;
    const reject = records.reject.bind(records);
    const another = { tenantId: 'acme', subject: `url:${sha256(Buffer.from(url))}`, holder: 'another job' };
    const taken: boolean[] = [];
    const spy = vi.spyOn(records, 'reject').mockImplementation(async (...refusal) => {
      taken.push((await claims.take(another, 1_000)).taken);
      return reject(...refusal);
    });
    onTestFinished(() => spy.mockRestore());
    expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'rejected', reason: 'gone' });
    expect(taken).toEqual([false]);
    expect((await claims.take(another, 1_000)).taken).toBe(true);
  });

  test('remembers what can never be an image, and does not ask for it again', async () => {
    const photograph = await samplePhoto(4);
    const bad: [string, string][] = [
      [site.put('/html.jpg', { body: '<!doctype html><title>no</title>' }), 'not-an-image'],
      [site.put('/empty.jpg', { body: '' }), 'not-an-image'],
      [site.put('/cut.jpg', { body: photograph.subarray(0, photograph.length / 2) }), 'corrupt'],
      [site.put('/huge.jpg', { body: withDimensions(photograph, 65_535, 65_535) }), 'too-large'],
      [site.put('/long.jpg', { body: Buffer.alloc(2_000_001) }), 'too-large'],
      [site.behave('/endless.jpg', 'endless'), 'too-large'],
      [site.put('/404.jpg', { status: 404 }), 'gone'],
      [site.put('/410.jpg', { status: 410 }), 'gone'],
      [site.put('/403.jpg', { status: 403 }), 'forbidden'],
      [site.redirect('/inside.jpg', 'http://169.254.169.254/latest/meta-data/'), 'blocked-address'],
      [site.put('/drawing.svg', { body: '<svg xmlns="http://www.w3.org/2000/svg"/>' }), 'unsupported'],
    ];
    for (const [url, reason] of bad)
      expect([url, await crawled(app, 'acme', url)]).toMatchObject([url, { outcome: 'rejected', reason }]);
    const requests = site.requests.length;
    for (const [url, reason] of bad)
      expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'rejected', reason });
    expect(site.requests).toHaveLength(requests);
    const { rows } = await app.connection.pool.query(
      "select 1 from crawl_cache where tenant_id = 'acme' and url = any($1)",
      [bad.map(([url]) => url)],
    );
    expect(rows).toEqual([]);
  });

  test('refuses a private address without connecting to it', async () => {
    await using forbidden = await startSite();
    const url = forbidden.put('/secret.jpg', { body: await samplePhoto(1) });
    expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'rejected', reason: 'blocked-address' });
    expect(forbidden.connections).toBe(0);
  });

  test('tries again what may pass later', async () => {
    site.put('/shaky.png', { body: await flatImage(20, 20, '#0f0f0f'), type: 'image/png' });
    const url = site.failTimes('/shaky.png', 2, 503);
    const job = await crawlJob(app, 'acme', url);
    expect(job).toMatchObject({ state: 'completed', outcome: { outcome: 'stored' } });
    expect(site.countOf('/shaky.png')).toBe(3);
  });

  test.each([
    ['500', 'server-error'],
    ['hang', 'timeout'],
  ])('ends in the failed set, naming the reason, where nothing helps (%s)', async (behaviour, reason) => {
    const path = `/never-${behaviour}.jpg`;
    const url = behaviour === '500' ? site.put(path, { status: 500 }) : site.behave(path, 'hang');
    const job = await crawlJob(app, 'acme', url);
    expect(job).toMatchObject({ state: 'failed', attempts: 5 });
    expect(job.error).toContain(reason);
    expect(site.countOf(path)).toBe(5);
  });

  test('ends in the failed set where its connection is always reset: a new one is, each time', async () => {
    const before = site.connections;
    const job = await crawlJob(app, 'acme', site.behave('/never-reset.jpg', 'reset'));
    expect(job).toMatchObject({ state: 'failed', attempts: 5 });
    expect(job.error).toContain('connection');
    expect(site.connections - before).toBe(5);
  });

  test('an image without a face is embedded with none, and `[]` is remembered', async () => {
    const faceless = new PuppetEngine();
    faceless.models = { detection: 'nothing@1', embedding: 'nothing@1' };
    faceless.detect = async () => [];
    const body = await flatImage(33, 33, '#abcdef');
    const { contentHash } = (await crawled(app, 'acme', site.put('/plain.png', { body, type: 'image/png' }))) as Stored;
    await idle(app, 'embedding');
    await workers.stop(5_000);
    const other = world.app({ ...env, FETCH_ALLOW: '127.0.0.1/32:*' }, { engine: faceless });
    workers = startWorkers(other, ['crawl', 'embedding']);
    const faces = await until('the sweep of the new model', () =>
      other.cache.getCachedFaceEmbeddings(contentHash, 'acme'),
    );
    expect(faces).toEqual([]);
    await idle(other, 'embedding'); // the sweep's own job may be about to end, and a twin would be that job
    expect(await embedded(other, 'acme', contentHash)).toMatchObject({ outcome: 'cached', faces: 0 });
    app = other;
  });

  test('an image that nobody crawled is rejected as unknown', async () => {
    expect(await embedded(app, 'acme', 'f'.repeat(64))).toMatchObject({ outcome: 'rejected', reason: 'unknown-image' });
  });

  test('the sweep enqueues the embedding that a crash left out, and nothing else', async () => {
    const body = await flatImage(21, 21, '#010203');
    const { contentHash } = (await crawled(
      app,
      'umbrella',
      site.put('/swept.png', { body, type: 'image/png' }),
    )) as Stored;
    await idle(app, 'embedding');
    expect(await enqueueMissing(app, 'nothing@1', new Date(0))).toBe(0);
    await forgetEmbedding(world, app, 'umbrella', contentHash);
    expect(await enqueueMissing(app, 'nothing@1', new Date(0))).toBe(1);
    await idle(app, 'embedding');
    expect(await enqueueMissing(app, 'nothing@1', new Date(0))).toBe(0);
  });

  test('a job that was cut short after its record says `stored` again', async () => {
    const body = await flatImage(22, 22, '#030201');
    const url = site.put('/cut-short.png', { body, type: 'image/png' });
    const job = await crawlJob(app, 'acme', url);
    const queue = app.queues.get('crawl');
    const first = await queue.getJob(job.id);
    // The same job, run again as after a crash between the record and the acknowledgement.
    await first?.remove();
    const holder = `${job.id}@${first?.timestamp}`;
    // Also of bytes that the URL served to a run that died, and never again.
    const subjects = [`url:${sha256(Buffer.from(url))}`, `content:${sha256(body)}`, `content:${'0'.repeat(64)}`];
    for (const subject of subjects) await app.claims.take({ tenantId: 'acme', subject, holder }, 600_000);
    await queue.add('crawl', first?.data, { jobId: job.id, timestamp: first?.timestamp ?? 0 });
    expect((await ended(app, 'crawl', job.id)).outcome).toEqual(job.outcome);
    expect(site.countOf('/cut-short.png')).toBe(1);
    const { rows } = await app.connection.pool.query('select subject from claims where holder = $1', [holder]);
    expect(rows).toEqual([]);
    // Found by the model: what the dead run held on to kept others waiting until its lease ended.
    expect(await crawled(app, 'acme', url, { force: true })).toMatchObject({ outcome: 'skipped', reason: 'content' });
  });

  test.each([
    [
      'somebody else has written the record of its URL',
      '/overwritten.png',
      (url: string, body: Buffer) => app.cache.storeCrawledImage(url, body, { rawKey: 'theirs.png' }, 'acme'),
    ],
    [
      'its URL was refused since',
      '/refused-since.png',
      (url: string) => app.records.reject('acme', { url }, { reason: 'gone', detail: 'HTTP 404', jobId: 'forced' }),
    ],
  ])('so it does where %s', async (_, path, happens) => {
    const body = await noiseImage(23, 22, path.length);
    const url = site.put(path, { body, type: 'image/png' });
    const job = await crawlJob(app, 'acme', url);
    await happens(url, body);
    await using closer = new Closer();
    const { perform } = workOf('crawl', app, { events: app.events, engine, closer });
    const identity = { id: job.id, jobId: `${job.id}@${(await app.queues.get('crawl').getJob(job.id))?.timestamp}` };
    const run = laterRun({ ...identity, deaths: 1 });
    expect(await perform({ v: 1, tenantId: 'acme', url }, run)).toEqual(job.outcome);
  });
});

/** Of a job that began before. */
function laterRun(known: Pick<Run, 'id' | 'jobId'> & Partial<Run>): Run {
  const remember = async () => undefined;
  return {
    deaths: 0,
    isRepeat: true,
    isLast: false,
    remembered: {},
    remember,
    signal: new AbortController().signal,
    ...known,
  };
}

/** Behind the product's back, in both tiers. */
async function forgetEmbedding(world: World, app: App, tenantId: string, contentHash: string): Promise<void> {
  const { pool, tiers } = app.connection;
  await pool.query('delete from face_embeddings_cache where tenant_id = $1 and content_hash = $2', [
    tenantId,
    contentHash,
  ]);
  const redis = redisClient(world);
  const { id } = lookup(tenantId, faceEmbeddings, { contentHash, model: app.models.embedding });
  const key = tiers.redis?.tier.keyOf(id);
  await redis.del(key ?? '');
  redis.disconnect();
}

/** The same JPEG with another size in its frame header. */
function withDimensions(jpeg: Buffer, width: number, height: number): Buffer {
  const copy = Buffer.from(jpeg);
  const frame = copy.findIndex((byte, i) => byte === 0xff && (copy[i + 1] === 0xc0 || copy[i + 1] === 0xc2));
  copy.writeUInt16BE(height, frame + 5);
  copy.writeUInt16BE(width, frame + 7);
  return copy;
}
