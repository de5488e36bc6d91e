/** What is told of a URL beforehand is what a crawl of it then comes to. Over HTTP: test/http/cache.test.ts. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { explain } from '../../src/cache/explain.js';
import { entry } from '../../src/cache/tier.js';
import { allowedGap, robotsOf, unreachableRobots } from '../../src/crawl/robots.js';
import { sha256 } from '../../src/kinds/identity.js';
import { type Robots, robotsFiles } from '../../src/kinds/robots.js';
import { startWorkers, type Workers } from '../../workers/start.js';
import { runCommand } from '../support/command.js';
import { crawled } from '../support/crawl-run.js';
import { flatImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { createWorld, type World } from '../support/world.js';

const CRAWLER = 'hybrid-cache-service';
const RULES = Buffer.from('User-agent: *\nDisallow: /closed/\n');

let world: World;
let site: Site;
let app: App;
let workers: Workers;

beforeAll(async () => {
  world = await createWorld();
  site = await startSite();
  app = world.app({ FETCH_ALLOW: '127.0.0.0/8:*', FETCH_ROBOTS: 'honour' }, { engine: new PuppetEngine() });
  workers = startWorkers(app, ['crawl']);
});

afterAll(async () => {
  await workers?.stop(5_000);
  await site?.close();
  await world?.[Symbol.asyncDispose]();
});

function told(url: string, { crawler = app.config.fetch.crawler, revalidateAfterMs = null as number | null } = {}) {
  return explain(app.connection.hybrid, 'acme', url, revalidateAfterMs, { crawler, allowedGap });
}

function remember(robots: Robots): Promise<unknown> {
  return app.connection.hybrid.write([entry('acme', robotsFiles, sha256(robots.origin), robots)], {
    hotWithoutDurable: true,
  });
}

describe('robots rules', () => {
  test('that are known close a URL as they close it to a crawl, which asks the site nothing', async () => {
    site.put('/robots.txt', { body: RULES, type: 'text/plain' });
    const picture = { body: await flatImage(20, 20, '#305070'), type: 'image/png' };
    const [open, closed] = [site.put('/open/1.png', picture), site.put('/closed/1.png', picture)];
    expect(await told(closed)).toMatchObject({ wouldSkip: false, reason: null, robots: null });
    expect(await crawled(app, 'acme', open)).toMatchObject({ outcome: 'stored' });

    const detail = `${site.url}/robots.txt: Disallow: /closed/`;
    expect(await told(closed)).toMatchObject({
      wouldSkip: true,
      reason: 'robots',
      because: expect.stringMatching(new RegExp(`^closed to our crawler by ${detail}, until \\d{4}-`)),
      refusal: null,
    });
    const asked = site.requests.length;
    expect(await crawled(app, 'acme', closed)).toMatchObject({ outcome: 'rejected', reason: 'robots', detail });
    expect(site.requests).toHaveLength(asked);
    expect(await told(closed)).toMatchObject({ reason: 'robots', refusal: { detail, counts: true } });
  });

  test('close no URL where they are passed over, open it, have expired or could not be had', async () => {
    const [closed, open] = ['https://example.com/closed/1.png', 'https://example.com/open/1.png'];
    const robots = robotsOf('https://example.com', RULES, CRAWLER);
    const fetched = { wouldSkip: false, reason: null, because: 'nothing is known of it' };
    await remember(robots);
    expect(await told(closed)).toMatchObject({ wouldSkip: true, reason: 'robots' });
    expect(await told(closed, { crawler: null })).toMatchObject(fetched);
    expect(await told(open)).toMatchObject(fetched);
    await remember({ ...robots, expiresAt: Date.now() });
    expect(await told(closed)).toMatchObject({ ...fetched, robots: { origin: 'https://example.com' } });
    await remember(unreachableRobots('https://example.com', 'status 503'));
    expect(await told(closed)).toMatchObject({ ...fetched, robots: { trouble: 'status 503' } });
  });

  test('close a known URL once it is so old that it would be asked for again', async () => {
    const url = 'https://example.org/closed/1.png';
    await remember(robotsOf('https://example.org', RULES, CRAWLER));
    await app.cache.storeCrawledImage(url, Buffer.from('bytes'), { rawKey: 'raw/x' }, 'acme');
    expect(await told(url)).toMatchObject({ wouldSkip: true, reason: 'url' });
    expect(await told(url, { revalidateAfterMs: 0 })).toMatchObject({ wouldSkip: true, reason: 'robots' });
  });
});

describe('hybrid-cache explain', () => {
  // PostgreSQL alone: the Redis of the tests is for all, and the command has no prefix of its own there.
  const command = (url: string, more: Record<string, string> = {}) =>
    runCommand(['explain', url, '--tenant', 'acme', ...(more.json ? ['--json'] : [])], {
      DATABASE_URL: world.databaseUrl,
      REDIS_URL: 'none',
      ...more,
    });

  test('honours robots rules as the crawl is told to', async () => {
    await remember(robotsOf('https://example.net', RULES, CRAWLER));
    const url = 'https://example.net/closed/1.png';
    expect(JSON.parse((await command(url, { json: '1' })).out)).toMatchObject({ wouldSkip: true, reason: 'robots' });
    const ignoring = await command(url, { json: '1', FETCH_ROBOTS: 'ignore' });
    expect(JSON.parse(ignoring.out)).toMatchObject({ wouldSkip: false, reason: null });
  });

  test('prints what a stranger chose as text', async () => {
    const url = 'https://example.net/gone.png';
    await app.records.reject('acme', { url }, { reason: 'gone', detail: 'a\u001b[2J\nb', jobId: null });
    const { code, out } = await command(url);
    expect(out).toMatch(/^refusal detail +a\?\[2J\?b$/m);
    expect(out).not.toContain('\u001b');
    expect(code).toBe(0);
  });
});
