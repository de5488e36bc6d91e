/** URLs that are known for long: asked again, whether their bytes are still the same. */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import type { CrawlOutcome } from '../../workers/crawl-step.js';
import { startWorkers, type Workers } from '../../workers/start.js';
import { crawled } from '../support/crawl-run.js';
import { flatImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Page, type Site, startSite } from '../support/site.js';
import { createWorld, type World } from '../support/world.js';

type Stored = Extract<CrawlOutcome, { outcome: 'stored' }>;

const FIRST = await flatImage(21, 20, '#102030');
const SECOND = await flatImage(22, 20, '#203010');
const ETAG = '"v1"';

let world: World;
let site: Site;
let app: App;
let never: App;
const running: Workers[] = [];
let paths = 0;
let path: string;

beforeAll(async () => {
  world = await createWorld();
  site = await startSite();
  const env = { FETCH_ALLOW: '127.0.0.0/8:*' };
  app = world.app({ ...env, CRAWL_REVALIDATE_AFTER: '3600' }, { engine: new PuppetEngine() });
  never = world.app(env, { engine: new PuppetEngine(), queueNamespace: `${world.namespace}-never` });
  running.push(startWorkers(app, ['crawl']), startWorkers(never, ['crawl']));
});

afterAll(async () => {
  await Promise.all(running.map((workers) => workers.stop(5_000)));
  await site.close();
  await world[Symbol.asyncDispose]();
});

beforeEach(() => {
  path = `/${++paths}.png`;
});

const serve = (body: Buffer, headers: Record<string, string> = {}, more: Partial<Page> = {}) =>
  site.put(path, { body, type: 'image/png', headers, ...more });
const asked = () => site.requests.filter((request) => request.path === path);

/** As if the origin had been asked `hours` ago: in PostgreSQL, behind the cache's back, and not in Redis. */
async function age(url: string, hours: number): Promise<void> {
  const { pool, tiers, hybrid } = app.connection;
  await hybrid.close();
  const text = `update crawl_cache set fetched_at = fetched_at - make_interval(hours => $2) where url = $1`;
  await pool.query(text, [url, hours]);
  await tiers.redis?.tier.drop(await entries(url));
}

async function entries(url: string): Promise<{ id: string; version: number }[]> {
  const { rows } = await app.connection.pool.query<{ id: string; version: string }>(
    `select 'crawl_url:' || tenant_id || ':' || url_hash as id, version from crawl_cache where url = $1`,
    [url],
  );
  return rows.map(({ id, version }) => ({ id, version: Number(version) + 1 }));
}

test('a young URL is not asked for again', async () => {
  const url = serve(FIRST, { etag: ETAG });
  await crawled(app, 'acme', url);
  expect(await crawled(app, 'acme', url)).toMatchObject({ outcome: 'skipped', reason: 'url' });
  expect(asked()).toHaveLength(1);
});

test.each([
  ['an entity tag', { etag: ETAG }, { 'if-none-match': ETAG }],
  [
    'a date',
    { 'last-modified': 'Sat, 21 Nov 2026 10:00:00 GMT' },
    { 'if-modified-since': 'Sat, 21 Nov 2026 10:00:00 GMT' },
  ],
  [
    'both',
    { etag: `W/${ETAG}`, 'last-modified': 'Sat, 21 Nov 2026 10:00:00 GMT' },
    { 'if-none-match': `W/${ETAG}`, 'if-modified-since': 'Sat, 21 Nov 2026 10:00:00 GMT' },
  ],
])('an old one is, by %s; where it is the same, it counts as young again', async (_what, headers, conditions) => {
  const url = serve(await flatImage(30 + paths, 20, '#405060'), headers);
  const first = (await crawled(app, 'acme', url)) as Stored;
  await age(url, 2);
  const skipped = { outcome: 'skipped', reason: 'url', contentHash: first.contentHash, rawKey: first.rawKey };
  expect(await crawled(app, 'acme', url)).toEqual(skipped);
  expect(asked()).toHaveLength(2);
  expect(asked()[1]?.headers).toMatchObject(conditions);
  expect(await crawled(app, 'acme', url)).toEqual(skipped);
  expect(asked()).toHaveLength(2);
});

test('changed bytes are a new version, and both are kept', async () => {
  const url = serve(FIRST, { etag: ETAG });
  const { contentHash } = (await crawled(app, 'changed', url)) as Stored;
  await age(url, 2);
  serve(SECOND, { etag: '"v2"' });
  const second = (await crawled(app, 'changed', url)) as Stored;
  expect(second.outcome).toBe('stored');
  expect(second.contentHash).not.toBe(contentHash);
  const { rows } = await app.connection.pool.query('select content_hash, etag from crawl_cache where url = $1', [url]);
  expect(rows.map((row) => [row.content_hash, row.etag]).sort()).toEqual(
    [
      [contentHash, ETAG],
      [second.contentHash, '"v2"'],
    ].sort(),
  );
  expect(await app.cache.shouldSkipUrl(url, 'changed')).toMatchObject({ shouldSkip: true, rawKey: second.rawKey });
});

test('the same bytes, from a site that forgets its own tags, are known by their content', async () => {
  const url = serve(FIRST, { etag: ETAG }, { forgetful: true });
  const { contentHash } = (await crawled(app, 'forgetful', url)) as Stored;
  await age(url, 2);
  expect(await crawled(app, 'forgetful', url)).toMatchObject({ outcome: 'skipped', reason: 'content', contentHash });
  expect(await crawled(app, 'forgetful', url)).toMatchObject({ outcome: 'skipped', reason: 'url', contentHash });
});

test('without a tag, an old URL is fetched again', async () => {
  const url = serve(FIRST);
  await crawled(app, 'tagless', url);
  await age(url, 2);
  expect(await crawled(app, 'tagless', url)).toMatchObject({ outcome: 'skipped', reason: 'content' });
  expect(asked()[1]?.headers).not.toHaveProperty('if-none-match');
});

test('what a redirect leads to is not asked by the tags of another URL', async () => {
  const target = serve(FIRST, { etag: ETAG });
  const url = site.redirect(`/from${path}`, target);
  await crawled(app, 'redirected', url);
  await age(url, 2);
  expect(await crawled(app, 'redirected', url)).toMatchObject({ outcome: 'skipped', reason: 'content' });
  expect(asked()[1]?.headers).not.toHaveProperty('if-none-match');
});

test('what was invalidated while the origin was asked for changes is not known again by its answer', async () => {
  const url = serve(FIRST, { etag: ETAG });
  await crawled(app, 'forgotten', url);
  await age(url, 2);
  const held = site.hold(path, { body: FIRST, type: 'image/png', headers: { etag: ETAG } });
  const outcome = crawled(app, 'forgotten', url);
  await site.until(() => asked().length === 2);
  await app.cache.invalidateTenantCache('forgotten');
  held.release();
  expect(await outcome).toMatchObject({ outcome: 'stored' });
  expect(asked()).toHaveLength(3);
  expect(asked()[2]?.headers).not.toHaveProperty('if-none-match');
});

test('`force` fetches in any case, and asks for the whole', async () => {
  const url = serve(FIRST, { etag: ETAG });
  await crawled(app, 'forced', url);
  expect(await crawled(app, 'forced', url, { force: true })).toMatchObject({ outcome: 'skipped', reason: 'content' });
  expect(asked()[1]?.headers).not.toHaveProperty('if-none-match');
});

test('unless it is asked for, no URL is ever too old', async () => {
  const url = serve(FIRST, { etag: ETAG });
  await crawled(never, 'never', url);
  await age(url, 24 * 365);
  expect(await crawled(never, 'never', url)).toMatchObject({ outcome: 'skipped', reason: 'url' });
  expect(asked()).toHaveLength(1);
});
