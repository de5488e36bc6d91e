/** The overview says what the stores say, whichever process is asked and whoever did the work. */
import type { FastifyInstance } from 'fastify';
import { Client } from 'pg';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { App } from '../../src/app.js';
import type { Query } from '../../src/cache/query.js';
import { recentImages } from '../../src/cache/recent-images.js';
import type { Overview } from '../../src/http/overview.js';
import { createServer } from '../../src/http/server.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { listFailed } from '../../src/queues/failed.js';
import { type Running, run } from '../../workers/main.js';
import { Rows } from '../support/cache-rows.js';
import { crawled, crawlJob, idle } from '../support/crawl-run.js';
import { noiseImage, recompressed, samplePhoto } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { startWork } from '../support/queue-work.js';
import { type Site, startSite } from '../support/site.js';
import { storeSampleImage } from '../support/stored-image.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

type Part<Name extends keyof Overview> = Exclude<NonNullable<Overview[Name]>, { error: string }>;

const TOKENS = { API_TOKENS: 'root-token=*,acme-token=acme,both-token=acme,both-token=globex,new-token=initech' };
const basic = (password: string) => ({ authorization: `Basic ${btoa(`anyone:${password}`)}` });

/** The part, where its store told it. */
function given<Name extends keyof Overview>(overview: Overview, name: Name): Part<Name> {
  const part = overview[name];
  expect(part).toBeDefined();
  expect(part).not.toHaveProperty('error');
  return part as Part<Name>;
}

describe.each(['redis', 'postgres'])('over queues on %s', (backend) => {
  let world: World;
  let site: Site;
  /** Does the work; has no API. */
  let worker: App;
  /** Serves the API; does no work. */
  let api: App;
  const processes: Running[] = [];

  beforeAll(async () => {
    world = await createWorld();
    site = await startSite();
    const env = { ...TOKENS, QUEUE_BACKEND: backend, FETCH_ALLOW: '127.0.0.1/32:*', METRICS_PORT: '0' };
    worker = world.app(env, { engine: new PuppetEngine(), retryBaseMs: 1 });
    api = world.app(env, { engine: new PuppetEngine() });
    processes.push(await run(api, { workers: [], api: true }));
    processes.push(await run(worker, { workers: ['crawl', 'embedding'], api: false }));
    const photo = await samplePhoto(1);
    site.put('/photo.jpg', { body: photo });
    site.put('/copy.jpg', { body: photo });
    site.put('/alike.jpg', { body: await recompressed(photo) });
    site.put('/noise.png', { body: await noiseImage(64, 48), type: 'image/png' });
    site.put('/text.jpg', { body: 'no image' });
    site.put('/down.jpg', { status: 500 });
    for (const path of [
      '/photo.jpg',
      '/copy.jpg',
      '/alike.jpg',
      '/photo.jpg',
      '/text.jpg',
      '/gone.jpg?signature=secret',
    ]) {
      await crawled(api, 'acme', site.url + path);
    }
    await crawled(api, 'globex', `${site.url}/noise.png`);
    await crawlJob(api, 'globex', `${site.url}/down.jpg`);
    // As another client may: the payload is wrong, and names no tenant.
    await api.queues.get('crawl').add('crawl', { v: 1, url: 'x' });
    await until('all jobs ended', async () => (await api.queues.counts('crawl')).failed === 2);
    await idle(api, 'crawl', 'embedding');
  });

  afterAll(async () => {
    for (const one of processes.reverse()) await one.stop();
    await site?.close();
    await world?.[Symbol.asyncDispose]();
  });

  async function ask(token: string): Promise<Overview> {
    const response = await fetch(`${processes[0]?.address}/v1/overview`, { headers: basic(token) });
    expect(response.status).toBe(200);
    expect(response.headers.get('cache-control')).toBe('no-store');
    return (await response.json()) as Overview;
  }

  /** The first answer that holds: each is up to a second old. */
  const answer = (token: string, holds: (overview: Overview) => boolean) =>
    until('an overview of after the run', async () => {
      const overview = await ask(token);
      return holds(overview) ? overview : null;
    });

  async function sql<Row extends object>(text: string): Promise<Row[]> {
    const client = new Client({ connectionString: world.databaseUrl });
    await client.connect();
    try {
      return (await client.query<Row>(text)).rows;
    } finally {
      await client.end();
    }
  }

  const jobsOf = (part: Overview['crawl']) => ('error' in part ? -1 : part.jobs);

  test('outcomes and reasons are those of the jobs, and of the metrics of the process that ran them', async () => {
    const overview = await answer(
      'root-token',
      ({ crawl, embedding }) => jobsOf(crawl) === 7 && jobsOf(embedding) === 3,
    );
    const crawl = given(overview, 'crawl');
    expect(crawl).toMatchObject({ jobs: 7, more: false, overSeconds: 60 });
    const outcomes = crawl.outcomes.map(({ outcome, reason, jobs }) => ({ outcome, reason: reason ?? '', jobs }));
    expect(outcomes).toHaveLength(5);
    expect(outcomes).toEqual(
      expect.arrayContaining([
        { outcome: 'stored', reason: '', jobs: 3 },
        { outcome: 'skipped', reason: 'content', jobs: 1 },
        { outcome: 'skipped', reason: 'url', jobs: 1 },
        { outcome: 'rejected', reason: 'not-an-image', jobs: 1 },
        { outcome: 'rejected', reason: 'gone', jobs: 1 },
      ]),
    );
    const { values } = await worker.metrics.crawlImages.get();
    const counted = values
      .filter(({ labels }) => labels.outcome !== 'failed')
      .map(({ labels, value }) => ({ ...labels, jobs: value }));
    expect(counted).toHaveLength(5);
    expect(counted).toEqual(expect.arrayContaining(outcomes));
    expect(crawl.perSecond).toBe(crawl.curve.reduce<number>((sum, point) => sum + 2 * (point ?? 0), 0) / 60);
    expect(given(overview, 'embedding')).toMatchObject({
      jobs: 3,
      faces: 3,
      outcomes: [{ outcome: 'embedded', reason: null, jobs: 3 }],
    });
  });

  test('what is known is what the database holds, and what `stats` says', async () => {
    const overview = await answer('root-token', ({ crawl }) => jobsOf(crawl) === 7);
    const [held] = await sql(`select (select count(*)::int from crawl_content_cache) as images,
      (select count(*)::int from crawl_cache) as urls, (select count(*)::int from rejection_cache) as refusals,
      (select count(*)::int from face_embeddings_cache) as embedded`);
    expect(held).toEqual({ images: 3, urls: 4, embedded: 3, refusals: 2 });
    expect(overview.holdings).toEqual({ ...held, atLeast: [], about: [] });
    const [found] = await sql(`select sum(faces)::int as faces, count(*)::int as images,
      (count(*) filter (where faces > 0))::int as "withFaces", true as exact from face_embeddings_cache`);
    expect(overview.faces).toEqual(found);
    expect((await api.cache.getCacheStats()).postgresStats).toMatchObject({
      crawlContentCacheCount: 3,
      crawlCacheCount: 4,
    });
  });

  test('queues are as their store counts them', async () => {
    await api.queues.get('embedding').pause();
    try {
      await api.queues.get('embedding').add('embedding', {}, { delay: 3_600_000 });
      const overview = await answer('root-token', ({ queues }) => Array.isArray(queues) && queues[1]?.delayed === 1);
      const [crawl, embedding] = given(overview, 'queues');
      expect(crawl).toEqual({
        ...{ queue: 'crawl', paused: false, waiting: 0, delayed: 0, active: 0, completed: 7, failed: 2 },
        oldestWaitingSeconds: 0,
      });
      expect(embedding).toMatchObject({
        queue: 'embedding',
        paused: true,
        waiting: 0,
        delayed: 1,
        active: 0,
        completed: 3,
        failed: 0,
      });
    } finally {
      for (const job of await api.queues.get('embedding').getJobs(['delayed'])) await job.remove();
      await api.queues.get('embedding').resume();
    }
  });

  test('look-ups are those of all processes', async () => {
    const all = () => {
      const sums: Record<string, Record<string, number>> = {};
      for (const [kind, counts] of Object.entries(worker.metrics.lookups)) {
        const others = Object.entries(api.metrics.lookups[kind as 'robots']);
        sums[kind] = Object.fromEntries(others.map(([result, n]) => [result, n + counts[result as 'miss']]));
      }
      return sums;
    };
    expect(all().crawl_url).toMatchObject({ redis_hit: 1 });
    const same = ({ lookups }: Overview) => JSON.stringify(lookups) === JSON.stringify({ minutes: 15, byKind: all() });
    await answer('root-token', same);
    await fetch(`${processes[0]?.address}/v1/tenants/acme/images/${'0'.repeat(64)}`, { headers: basic('root-token') });
    await answer('root-token', same);
  });

  test('failures by class are those that `failed list` counts', async () => {
    const overview = await answer('root-token', ({ failures }) => 'jobs' in failures && failures.jobs === 2);
    const { failed, reasons } = await listFailed(api.queues, {}, 0);
    const shown = given(overview, 'failures');
    expect(shown).toMatchObject({ jobs: failed, more: false });
    expect(Object.fromEntries(shown.reasons.map(({ reason, jobs }) => [reason, jobs]))).toEqual(reasons);
    expect(reasons).toEqual({ 'server-error': 1, 'invalid-payload': 1 });
  });

  test('what was refused or failed last comes with its reason, and no query of a URL', async () => {
    const overview = await answer('root-token', ({ troubles }) => Array.isArray(troubles) && troubles.length === 4);
    const troubles = given(overview, 'troubles');
    expect(troubles.map(({ outcome, reason }) => `${outcome} ${reason}`).sort()).toEqual([
      'failed invalid-payload',
      'failed server-error',
      'rejected gone',
      'rejected not-an-image',
    ]);
    expect(troubles.map(({ at }) => at)).toEqual(troubles.map(({ at }) => at).sort((a, b) => b - a));
    expect(troubles.find(({ reason }) => reason === 'gone')?.subject).toBe(`127.0.0.1:${site.port}/gone.jpg`);
    expect(JSON.stringify(overview)).not.toContain('secret');
  });

  test('recent images are the newest records, with their faces, sizes and near-duplicates', async () => {
    const overview = await answer('root-token', ({ images }) => Array.isArray(images) && images.length === 3);
    const images = given(overview, 'images');
    const rows = await sql<{ key: string }>(
      `select tenant_id || ' ' || content_hash as key from crawl_content_cache order by created_at desc`,
    );
    expect(images.map(({ tenantId, contentHash }) => `${tenantId} ${contentHash}`)).toEqual(rows.map(({ key }) => key));
    const [noise, alike, photo] = images;
    expect(noise).toMatchObject({
      tenantId: 'globex',
      width: 64,
      height: 48,
      faces: 1,
      boxes: [[0, 0, 64, 48]],
      urls: 1,
    });
    expect(noise?.address).toBe(`127.0.0.1:${site.port}/noise.png`);
    expect(photo).toMatchObject({ tenantId: 'acme', width: 1920, urls: 2, hasThumbnail: true });
    expect(photo?.nearDuplicates).toEqual([{ contentHash: alike?.contentHash, distance: expect.any(Number) }]);
    expect(alike?.nearDuplicates.map(({ contentHash }) => contentHash)).toEqual([photo?.contentHash]);
    expect(noise?.nearDuplicates).toEqual([]);
  });

  test('a tenant’s token shows that tenant alone, in every part', async () => {
    const overview = await answer('acme-token', ({ crawl }) => jobsOf(crawl) === 6);
    expect(overview.tenants).toEqual(['acme']);
    expect(overview).not.toHaveProperty('queues');
    expect(overview).not.toHaveProperty('lookups');
    expect(overview).not.toHaveProperty('replayPending');
    expect(overview.holdings).toEqual({ images: 2, urls: 3, embedded: 2, refusals: 2, atLeast: [], about: [] });
    expect(overview.faces).toEqual({ faces: 2, images: 2, withFaces: 2, exact: true });
    expect(overview.failures).toEqual({ jobs: 0, more: false, reasons: [] });
    expect(new Set(given(overview, 'images').map(({ tenantId }) => tenantId))).toEqual(new Set(['acme']));
    expect(new Set(given(overview, 'troubles').map(({ tenantId }) => tenantId))).toEqual(new Set(['acme']));
    expect(JSON.stringify(overview)).not.toMatch(/globex|noise/);
    const nobody = await ask('new-token');
    expect(nobody).toMatchObject({ tenants: ['initech'], crawl: { jobs: 0 }, holdings: { images: 0 }, images: [] });
    const both = await answer('both-token', ({ crawl }) => jobsOf(crawl) === 7);
    expect(both).toMatchObject({ tenants: ['acme', 'globex'], holdings: { images: 3 }, failures: { jobs: 1 } });
  });

  test('many who ask at once get one answer', async () => {
    const answers = await Promise.all(Array.from({ length: 20 }, () => ask('root-token')));
    // On the edge of a second there may be two.
    expect(new Set(answers.map(({ at }) => at)).size).toBeLessThan(3);
  });

  test('an image that was forgotten, or comes anew, is so at once', async () => {
    await storeSampleImage(api, 'initech', 3);
    const shows = (n: number) => (overview: Overview) => given(overview, 'images').length === n;
    await answer('new-token', shows(1));
    await answer('root-token', shows(4));
    await api.cache.invalidateTenantCache('initech');
    await answer('new-token', shows(0));
    await answer('root-token', shows(3));
  });
});

describe('access', () => {
  let world: World;
  let server: FastifyInstance;
  let path: string;

  beforeAll(async () => {
    world = await createWorld();
    const app = world.app(TOKENS);
    server = await createServer(app, { api: true });
    const { contentHash } = await storeSampleImage(app, 'acme');
    path = `/v1/tenants/acme/images/${contentHash}`;
  });

  afterAll(async () => {
    await server?.close();
    await world?.[Symbol.asyncDispose]();
  });

  test('a token opens images as a bearer token and as the password of HTTP Basic', async () => {
    for (const url of [path, `${path}/raw`, `${path}/thumbnail`]) {
      for (const token of ['acme-token', 'root-token', 'both-token']) {
        for (const headers of [basic(token), { authorization: `Bearer ${token}` }]) {
          const { statusCode } = await server.inject({ url, headers });
          expect([url, token, statusCode]).toEqual([url, token, 200]);
        }
      }
      expect((await server.inject({ url, headers: basic('new-token') })).statusCode).toBe(404);
      expect((await server.inject({ url, headers: basic('other') })).statusCode).toBe(401);
    }
    const { headers, rawPayload } = await server.inject({ url: `${path}/thumbnail`, headers: basic('acme-token') });
    expect(headers['cross-origin-resource-policy']).toBe('same-origin');
    expect((await sharp(rawPayload).metadata()).format).toBe('jpeg');
  });

  test('a password changes nothing and opens nothing else', async () => {
    const headers = basic('root-token');
    const payload = { tenantId: 'acme', images: [{ url: 'https://example.com/1.jpg' }] };
    const answers = [
      await server.inject({ method: 'POST', url: '/v1/crawl-jobs', payload, headers }),
      await server.inject({ method: 'DELETE', url: '/v1/tenants/acme/cache', headers }),
      await server.inject({ url: '/v1/cache/stats', headers }),
    ];
    expect(answers.map(({ statusCode }) => statusCode)).toEqual([401, 401, 401]);
  });

  test('without a token, page, files and overview are closed; the page asks for a password', async () => {
    for (const url of ['/', '/page/page.js', '/page/page.css', '/page/icon.svg']) {
      const { statusCode, headers } = await server.inject(url);
      expect([url, statusCode]).toEqual([url, 401]);
      expect(headers['www-authenticate']).toMatch(/^Basic /);
      expect((await server.inject({ url, headers: basic('acme-token') })).statusCode).toBe(200);
    }
    const overview = await server.inject('/v1/overview');
    expect([overview.statusCode, overview.headers['www-authenticate']]).toEqual([401, 'Bearer']);
  });

  test('a tenant may be called `undefined` or `null`, and sees no more for it', async () => {
    const API_TOKENS = 'root-token=*,undefined-token=undefined,null-token=null,two-token=null,two-token=undefined';
    const named = await createServer(world.app({ API_TOKENS }), { api: true });
    const ask = async (token: string): Promise<Overview> =>
      (await named.inject({ url: '/v1/overview', headers: basic(token) })).json();
    try {
      // In this order, and at once: what the first leaves behind is still fresh for the others.
      expect(await ask('root-token')).toMatchObject({ tenants: null, holdings: { images: 1 } });
      const nothing = { holdings: { images: 0 }, faces: { images: 0 }, images: [] };
      expect(await ask('undefined-token')).toMatchObject({ tenants: ['undefined'], ...nothing });
      expect(await ask('null-token')).toMatchObject({ tenants: ['null'], ...nothing });
      expect(await ask('two-token')).toMatchObject({ tenants: ['null', 'undefined'], ...nothing });
      expect(await ask('root-token')).toMatchObject({ tenants: null, holdings: { images: 1 } });
    } finally {
      await named.close();
    }
  });

  test('without tokens it is open under loopback names alone', async () => {
    const open = await createServer(world.app(), { api: true });
    try {
      for (const url of ['/', '/page/page.js', '/v1/overview', `${path}/thumbnail`]) {
        expect((await open.inject({ url, headers: { host: 'localhost:3000' } })).statusCode).toBe(200);
        expect((await open.inject({ url, headers: { host: 'rebound.example' } })).statusCode).toBe(421);
      }
    } finally {
      await open.close();
    }
  });
});

describe('a store that is away', () => {
  /** A port that nobody listens on. */
  const NOBODY = 'postgres://nobody@127.0.0.1:9/none';

  /** As each of the tokens shows it. */
  async function overviewsOf(app: App, tokens = ['']): Promise<Overview[]> {
    const server = await createServer(app, { api: true });
    try {
      const asked = tokens.map((token) => server.inject({ url: '/v1/overview', headers: basic(token) }));
      return (await Promise.all(asked)).map((response) => response.json());
    } finally {
      await server.close();
    }
  }

  test('PostgreSQL: its parts say so, the others stand', async () => {
    await using world = await createWorld();
    const app = world.app({ DATABASE_URL: NOBODY, ...TOKENS });
    const [overview, theirs] = (await overviewsOf(app, ['root-token', 'acme-token'])) as [Overview, Overview];
    expect(overview.tiers).toEqual([
      { name: 'redis', state: 'up', detail: '' },
      { name: 'postgres', state: 'down', detail: expect.stringContaining('ECONNREFUSED') },
      { name: 'queue', state: 'up', detail: 'on Redis' },
    ]);
    for (const part of [overview.images, overview.holdings, overview.faces]) expect(part).toHaveProperty('error');
    for (const part of [overview.crawl, overview.failures]) expect(part).toMatchObject({ jobs: 0 });
    expect(given(overview, 'lookups').minutes).toBe(15);
    expect(theirs.images).toHaveProperty('error');
    expect(JSON.stringify(theirs)).not.toMatch(/ECONNREFUSED|127\.0\.0\.1|nobody/);
  });

  test('Redis: look-ups say so; the queue’s parts too, where it is there', async () => {
    await using world = await createWorld();
    const [overview] = (await overviewsOf(world.app({ REDIS_URL: 'redis://127.0.0.1:9' }))) as [Overview];
    expect(overview.tiers.map(({ state }) => state)).toEqual(['down', 'up', 'down']);
    for (const part of [overview.lookups, overview.queues, overview.crawl, overview.failures, overview.troubles]) {
      expect(part).toHaveProperty('error');
    }
    expect(overview).toMatchObject({ images: [], holdings: { images: 0 } });
  });

  test('without a Redis, look-ups are those of this process, and it says so', async () => {
    await using world = await createWorld();
    const app = world.app({ REDIS_URL: 'none' });
    await app.cache.getCachedPerceptualHash('0'.repeat(64), 'acme');
    const [overview] = (await overviewsOf(app)) as [Overview];
    expect(overview.tiers.map(({ state }) => state)).toEqual(['off', 'up', 'up']);
    expect(overview.lookups).toMatchObject({ minutes: null, byKind: { perceptual_hash: { miss: 1 } } });
  });
});

describe('the cost', () => {
  test('recent images come from the end of an index, however many there are, with any plan', async () => {
    await using rows = await Rows.open();
    const { client } = rows;
    // Images 1 to 20,000 are of fifty tenants, the newest first; those of one that is idle since are older.
    const image = `case when n > 20000 then 90000 - n else n end`;
    await client.query(`insert into crawl_content_cache
        (tenant_id, generation, content_hash, raw_key, stored_at, version, created_at)
      select case when n > 20000 then 'idle' else 't' || n % 50 end, 1, lpad(to_hex(${image}), 64, '0'), 'r', now(), 1,
        now() - n * interval '1 s'
      from generate_series(1, 31000) as n`);
    await client.query(`insert into perceptual_hash_cache (tenant_id, generation, content_hash, phash, version)
      select tenant_id, generation, content_hash, 'none', 1 from crawl_content_cache`);
    await client.query(`insert into face_embeddings_cache
        (tenant_id, generation, content_hash, model, faces, payload, version)
      select tenant_id, generation, content_hash, 'm@1', 0, '', 1 from crawl_content_cache`);
    await client.query(`insert into crawl_cache
        (tenant_id, generation, url_hash, content_hash, url, raw_key, fetched_at, version)
      select tenant_id, generation, content_hash, content_hash, 'https://a.example/', 'r', now(), 1
      from crawl_content_cache`);
    await client.query('analyze');
    const asked: { name: string; text: string; values: unknown[] }[] = [];
    const query = (async (statement: (typeof asked)[number]) => {
      asked.push(statement);
      return client.query(statement);
    }) as unknown as Query;
    const imagesOf = async (tenants: string[] | null) =>
      (await recentImages(query, tenants, 'm@1', 24)).map(({ contentHash }) => Number.parseInt(contentHash, 16));
    const numbers = (of: (i: number) => number) => Array.from({ length: 24 }, (_, i) => of(i));
    expect(await imagesOf(null)).toEqual(numbers((i) => i + 1));
    expect(await imagesOf(['t7'])).toEqual(numbers((i) => 7 + 50 * i));
    expect(await imagesOf(['idle'])).toEqual(numbers((i) => 69_999 - i));
    expect(await imagesOf(['idle', 't7', 't8'])).toEqual(numbers((i) => 7 + (i % 2) + 50 * Math.floor(i / 2)));
    expect(await imagesOf(['nobody'])).toEqual([]);
    const few = 'recent_images_of_few';
    expect(asked.map(({ name }) => name)).toEqual(['recent_images', few, few, few, few]);
    for (const mode of ['force_custom_plan', 'force_generic_plan']) {
      await client.query(`set plan_cache_mode = ${mode}`);
      for (const { name, values } of asked) {
        const args = values.map((one) => client.escapeLiteral(Array.isArray(one) ? `{${one}}` : String(one)));
        const { rows: plan } = await client.query<{ 'QUERY PLAN': string }>(
          `explain (analyze, costs off, timing off, summary off) execute ${name}(${args})`,
        );
        const text = plan.map((row) => row['QUERY PLAN']).join('\n');
        expect(text, mode).not.toMatch(/Seq Scan on (crawl_|face_|perceptual_)/);
        const scan =
          name === few
            ? 'Index Scan Backward using crawl_content_cache_newest_idx'
            : 'Index Only Scan Backward using crawl_content_cache_created_at_idx';
        expect(text, mode).toContain(scan);
        // As far as it takes to find 24 of each tenant.
        const walked = new RegExp(`${scan}.*rows=([\\d.]+)`).exec(text)?.[1];
        expect(Number(walked), mode).toBe(args[2] === "'{nobody}'" ? 0 : 24);
      }
    }
  });

  test('a queue that keeps thousands of jobs is read as far as its newest thousand; a tenant is told of its last minute or less', async () => {
    await using world = await createWorld();
    const app = world.app({ API_TOKENS: 'root-token=*,odd-token=odd' });
    const payloads = Array.from({ length: 1_200 }, (_, n) => ({
      ...{ v: 1 as const, tenantId: n % 2 === 0 ? 'even' : 'odd', url: `https://example.com/${n}` },
    }));
    startWork(app, async () => ({ outcome: 'skipped', reason: 'url' }), { concurrency: 50 });
    await app.queues.enqueue(crawlQueue, payloads);
    await idle(app, 'crawl');
    const server = await createServer(app, { api: true });
    try {
      const ask = async (token: string): Promise<Overview> =>
        (await server.inject({ url: '/v1/overview', headers: basic(token) })).json();
      const overview = await ask('root-token');
      expect(given(overview, 'crawl')).toMatchObject({
        jobs: 1_000,
        more: true,
        outcomes: [{ outcome: 'skipped', reason: 'url', jobs: 1_000 }],
      });
      expect(given(overview, 'queues')[0]?.completed).toBe(1_200);
      // They all ended within this minute: what the window holds of the whole of it depends on others.
      const seen = await ask('odd-token');
      const crawl = given(seen, 'crawl');
      expect(crawl).toMatchObject({ more: true, perSecond: crawl.jobs / crawl.overSeconds });
      expect([1, 10]).toContain(crawl.overSeconds);
      expect(seen.embedding).toMatchObject({ jobs: 0, more: false, overSeconds: 60 });
      // A minute later the window holds all that ended in the minute before: none.
      vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 61_000 });
      const later = await until('an answer of then', async () => {
        const answer = given(await ask('odd-token'), 'crawl');
        return answer.overSeconds === 60 && answer;
      });
      expect(later).toEqual({
        ...{ jobs: 0, more: true, since: null, perSecond: 0, overSeconds: 60 },
        ...{ curve: Array(30).fill(0), outcomes: [], faces: 0 },
      });
    } finally {
      vi.useRealTimers();
      await server.close();
    }
  });
});
