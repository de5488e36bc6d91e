/** The page at `/` in a real browser, over real servers and after real runs of both workers. */
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { UnrecoverableError } from 'bullmq';
import { Client } from 'pg';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { App } from '../../src/app.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { type Running, run } from '../../workers/main.js';
import { launchBrowser } from '../support/browser.js';
import { Rows } from '../support/cache-rows.js';
import { crawled, idle } from '../support/crawl-run.js';
import { noiseImage, recompressed, samplePhoto } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { image, startWork } from '../support/queue-work.js';
import { type Site, startSite } from '../support/site.js';
import { storeSampleImage } from '../support/stored-image.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const SCRIPT = '<img src=x onerror="document.title=1">';

interface Opened extends AsyncDisposable {
  readonly page: Page;
  /** What the console and the browser complained about. */
  readonly troubles: string[];
  /** Addresses of everything that was asked for. */
  readonly requests: string[];
}

describe('the page in a browser', () => {
  let world: World;
  let site: Site;
  let app: App;
  let running: Running;
  let browser: Browser;

  beforeAll(async () => {
    world = await createWorld();
    site = await startSite();
    const env = { FETCH_ALLOW: '127.0.0.1/32:*', API_TOKENS: 'root-token=*,acme-token=acme' };
    app = world.app(env, { engine: new PuppetEngine() });
    running = await run(app, { workers: ['crawl', 'embedding'], api: true });
    browser = await launchBrowser();
    const photo = await samplePhoto(2);
    for (const path of ['/photo.jpg', '/copy.jpg']) site.put(path, { body: photo });
    site.put('/alike.jpg', { body: await recompressed(photo) });
    site.put('/noise.png', { body: await noiseImage(64, 48), type: 'image/png' });
    for (const path of ['/photo.jpg', '/copy.jpg', '/photo.jpg', '/alike.jpg', '/missing.png']) {
      await crawled(app, 'acme', site.url + path);
    }
    await crawled(app, 'globex', `${site.url}/noise.png`);
    // As another client may: what it says is shown, and must not run.
    await app.queues.get('embedding').add('embedding', { v: 1, tenantId: 'acme', contentHash: SCRIPT });
    await idle(app, 'crawl', 'embedding');
  });

  afterAll(async () => {
    await browser?.close();
    await running?.stop();
    await site?.close();
    await world?.[Symbol.asyncDispose]();
  });

  async function open(options: BrowserContextOptions & { token?: string; address?: string } = {}): Promise<Opened> {
    const { token = 'root-token', address = running.address, ...more } = options;
    const context = await browser.newContext({ httpCredentials: { username: 'me', password: token }, ...more });
    const page = await context.newPage();
    const troubles: string[] = [];
    const requests: string[] = [];
    page.on('pageerror', (error) => troubles.push(String(error)));
    page.on('console', (message) => troubles.push(message.text()));
    page.on('request', (request) => requests.push(request.url()));
    await page.goto(address);
    await page.locator('#main').waitFor();
    return { page, troubles, requests, [Symbol.asyncDispose]: () => context.close() };
  }

  const figure = (page: Page, tile: string) => page.locator(`#${tile} .figure`).innerText();
  /** Name and number of each row of a panel's table. */
  async function table(page: Page, panel: string): Promise<Record<string, number>> {
    const rows = await page.locator(`#${panel} tbody tr`).all();
    const cells = rows.map(async (row) => [
      await row.locator('th').innerText(),
      Number(await row.locator('td.number').first().innerText()),
    ]);
    return Object.fromEntries(await Promise.all(cells));
  }

  /** The first number that the database gives. */
  async function counted(text: string): Promise<number> {
    const client = new Client({ connectionString: world.databaseUrl });
    await client.connect();
    try {
      const { rows } = await client.query<{ n: number }>(text);
      return Number(rows[0]?.n);
    } finally {
      await client.end();
    }
  }

  test('its numbers are those of the database and the queues', async () => {
    await using opened = await open();
    const { page, troubles } = opened;
    const images = await counted('select count(*) as n from crawl_content_cache');
    expect(images).toBe(3);
    await until('the page shows the run', async () => Number(await figure(page, 'stored')) === images);
    expect(Number(await figure(page, 'faces'))).toBe(
      await counted('select sum(faces) as n from face_embeddings_cache'),
    );
    expect(await figure(page, 'depth')).toBe('0');
    expect(await table(page, 'outcomes')).toEqual({
      Stored: 3,
      'Skipped, URL known': 1,
      'Skipped, content known': 1,
      'Rejected: gone': 1,
    });
    expect(await table(page, 'embedding')).toEqual({ Embedded: 3 });
    expect(await table(page, 'failures')).toEqual({ 'invalid-payload (embedding)': 1 });
    for (const queue of ['crawl', 'embedding'] as const) {
      const { completed, failed } = await app.queues.counts(queue);
      const row = page.locator('#queues tbody tr', { has: page.getByRole('rowheader', { name: queue }) });
      expect(await row.locator('td').allInnerTexts()).toEqual(['0', '–', '0', '0', String(completed), String(failed)]);
    }
    expect(await page.locator('#tiers li').allInnerTexts()).toEqual(
      ['Redis cache\nup', 'PostgreSQL\nup', 'Queues\nup\non Redis'].map((text) => expect.stringContaining(text)),
    );
    const { crawl_url: urls } = app.metrics.lookups;
    const row = page.locator('#lookups tbody tr', { has: page.getByRole('rowheader', { name: 'URLs' }) });
    await until('the look-ups are told', async () => {
      const [redis, postgres, miss] = await row.locator('td.number').allInnerTexts();
      return `${redis} ${postgres} ${miss}` === `${urls.redis_hit} ${urls.postgres_hit} ${urls.miss}`;
    });
    expect(troubles).toEqual([]);
  });

  test('images show their faces where they are, and what looks alike', async () => {
    const { contentHash } = await storeSampleImage(app, 'acme', 9);
    const face = { bbox: [16, 12, 48, 36] as [number, number, number, number], embedding: [1], det_score: 1 };
    await app.cache.cacheFaceEmbeddings(contentHash, 'acme', [face]);
    await using opened = await open();
    const { page, troubles } = opened;
    const card = page.locator('.gallery li', { has: page.locator(`a.picture[href$="/${contentHash}/raw"]`) });
    await card.locator('rect.face').waitFor({ state: 'attached' });
    const image = await card.locator('image').boundingBox();
    const box = await card.locator('rect.face').boundingBox();
    if (!image || !box) throw new Error('nothing is drawn');
    // A quarter in from each side, on a screen; the stroke lies on the edge.
    expect((box.x + box.width / 2 - image.x) / image.width).toBeCloseTo(0.5, 1);
    expect((box.y + box.height / 2 - image.y) / image.height).toBeCloseTo(0.5, 1);
    expect(box.width / image.width).toBeCloseTo(0.5, 1);
    expect(box.height / image.height).toBeCloseTo(0.5, 1);
    const shown = await page.locator('.gallery image').evaluateAll(async (all) => {
      const pictures = all.map(async (one) => {
        const picture = new (globalThis as unknown as { Image: new () => HTMLImage }).Image();
        picture.src = one.getAttribute('href') ?? '';
        await picture.decode();
        return picture.naturalWidth > 0;
      });
      return Promise.all(pictures);
    });
    expect(shown).toEqual([true, true, true, true]);
    const alike = page.locator('.gallery li', { hasText: '/alike.jpg' }).locator('.alike a');
    expect(await alike.count()).toBe(1);
    const target = (await alike.getAttribute('href')) ?? '';
    const known = await page.evaluate(`fetch('${target.replace(/\/raw$/, '')}').then((answer) => answer.json())`);
    expect(await page.evaluate(`fetch('${target}').then(({ status }) => status)`)).toBe(200);
    expect(known).toMatchObject({ contentHash: expect.stringMatching(/^[0-9a-f]{64}$/), nearDuplicates: [{}] });
    expect(troubles).toEqual([]);
    await app.cache.cacheFaceEmbeddings(contentHash, 'acme', []);
    await until('the box goes', async () => (await card.locator('rect.face').count()) === 0);
    expect(await card.innerText()).toContain('no face');
  });

  test('it is live without being loaded again, and leaves the keyboard where it is', async () => {
    await using opened = await open();
    const { page, requests } = opened;
    const stored = await counted('select count(*) as n from crawl_content_cache');
    await page.evaluate('document.querySelector("#tiers li").dataset.seen = "yes"');
    const first = page.locator('.gallery .picture').first();
    await first.focus();
    const href = await first.getAttribute('href');
    site.put('/new.png', { body: await noiseImage(80, 60, 20), type: 'image/png' });
    await crawled(app, 'globex', `${site.url}/new.png`);
    await page.locator('.gallery li', { hasText: '/new.png' }).waitFor();
    await until('the figure follows', async () => Number(await figure(page, 'stored')) === stored + 1);
    expect(await page.locator('.gallery .picture').first().getAttribute('href')).not.toBe(href);
    expect(await page.evaluate('document.activeElement.getAttribute("href")')).toBe(href);
    // What nothing has changed about was not drawn anew: it can be selected.
    expect(await page.locator('#tiers li[data-seen]').count()).toBe(1);
    expect(requests.filter((url) => url === `${running.address}/`)).toHaveLength(1);
  });

  test('a keyboard reaches everything, and sees where it is', async () => {
    await using opened = await open();
    const { page } = opened;
    await page.locator('.gallery .picture').first().waitFor();
    const seen = async () => {
      await page.keyboard.press('Tab');
      return page.evaluate(`({
        text: document.activeElement.textContent,
        href: document.activeElement.getAttribute('href'),
        outline: getComputedStyle(document.activeElement).outlineStyle,
      })`) as Promise<{ text: string; href: string; outline: string }>;
    };
    expect(await seen()).toEqual({ text: 'Skip to the images', href: '#images', outline: 'solid' });
    await page.keyboard.press('Enter');
    const links = await page.locator('.gallery a').evaluateAll((all) => all.map((one) => one.getAttribute('href')));
    expect(links.length).toBeGreaterThan(5);
    for (const href of links) expect(await seen()).toMatchObject({ href, outline: 'solid' });
    await page.keyboard.press('Shift+Tab');
    const answers: number[] = [];
    page.on('response', (response) => answers.push(response.status()));
    await page.keyboard.press('Enter');
    await page.waitForURL(/\/images\//);
    expect(answers.at(-1)).toBe(200);
    await page.goBack();
    const elsewhere = page.locator('nav a').first();
    await elsewhere.waitFor(); // hidden until the page knows whose token it is
    await elsewhere.focus();
    await page.keyboard.press('Enter');
    await page.waitForURL(/\/dashboard/);
  });

  test('nothing comes from elsewhere, and nothing of others is run', async () => {
    await using opened = await open();
    const { page, requests, troubles } = opened;
    await page.getByText(SCRIPT).waitFor();
    expect(await page.title()).toBe('hybrid-cache-service');
    expect(await page.locator('img[onerror], [onerror]').count()).toBe(0);
    await page.locator('.gallery .picture').first().waitFor();
    expect(requests.filter((url) => !url.startsWith(`${running.address}/`))).toEqual([]);
    const headers = (await page.request.get(running.address)).headers();
    const policy = headers['content-security-policy'] ?? '';
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toMatch(/unsafe|\*|https?:|data:/);
    expect(troubles).toEqual([]);
    // The policy is in force: a script in the text of the page would not run.
    await page.evaluate(
      `document.addEventListener('securitypolicyviolation', (event) => (window.refused = event.violatedDirective))`,
    );
    const inline = `document.body.append(Object.assign(document.createElement('style'), { textContent: 'body { color: red }' }))`;
    await page.evaluate(inline);
    expect(await page.evaluate('window.refused')).toMatch(/^style-src/);
    await expect(page.evaluate(`document.body.innerHTML = '<p>'`)).rejects.toThrow(/TrustedHTML/);
  });

  test('a tenant’s token shows that tenant, its thumbnails included', async () => {
    await using opened = await open({ token: 'acme-token' });
    const { page, troubles } = opened;
    await page.locator('.gallery li', { hasText: '/photo.jpg' }).waitFor();
    expect(await page.locator('#scope').innerText()).toBe('tenant acme');
    expect(await page.locator('#main').innerText()).not.toMatch(/globex|noise\.png/);
    for (const id of ['#queues', '#lookups', '#depth', 'nav']) expect(await page.locator(id).isVisible()).toBe(false);
    const thumbnail = await page.locator('.gallery image').first().getAttribute('href');
    expect(await page.evaluate(`fetch('${thumbnail}').then(({ status }) => status)`)).toBe(200);
    const elsewhere = thumbnail?.replace('/acme/', '/globex/');
    troubles.length = 0;
    expect(await page.evaluate(`fetch('${elsewhere}').then(({ status }) => status)`)).toBe(404);
    expect(troubles.splice(0)).toEqual([expect.stringContaining('404')]);
    expect(troubles).toEqual([]);
  });

  test('a tenant is told what is not counted, also where none of its own is', async () => {
    await using busy = await createWorld();
    const other = busy.app({ API_TOKENS: 'root-token=*,acme-token=acme' }, { engine: new PuppetEngine() });
    // Another's, and one more of either ending than are looked at.
    const payloads = Array.from({ length: 2_002 }, (_, n) => image(n, { tenantId: 'globex' }));
    let runs = 0;
    const work = async () => {
      if (runs++ % 2 === 0) throw new UnrecoverableError('server-error: 500');
      return { outcome: 'skipped', reason: 'url' };
    };
    startWork(other, work, { concurrency: 50 });
    await other.queues.enqueue(crawlQueue, payloads);
    await idle(other, 'crawl');
    expect(await other.queues.counts('crawl')).toMatchObject({ completed: 1_001, failed: 1_001 });
    const serving = await run(other, { workers: [], api: true });
    try {
      await using opened = await open({ token: 'acme-token', address: serving.address });
      const { page } = opened;
      const about = (id: string) => page.locator(`#${id} .about`).innerText();
      const briefly = /^None ended in the last (1|10) s; older ones are not counted\.$/;
      await until('the panel says so', async () => briefly.test(await about('outcomes')));
      expect(await about('embedding')).toBe('None ended lately.');
      expect(await about('failures')).toBe('None among the newest in the failed set; older ones are not counted.');
      vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 61_000 });
      const none = 'None ended in the last minute; older ones are not counted.';
      await until('the panel says so', async () => (await about('outcomes')) === none);
      expect(await figure(page, 'rate')).toBe('0.00');
      expect(await about('rate')).toBe('over the last minute');
    } finally {
      vi.useRealTimers();
      await serving.stop();
    }
  });

  test('a figure that is not the whole says so, each for itself', async () => {
    await using rows = await Rows.open();
    const { client, world: large } = rows;
    await client.query(`insert into crawl_content_cache
        (tenant_id, generation, content_hash, raw_key, stored_at, version)
      select 'acme', 1, lpad(to_hex(n), 64, '0'), 'r', now(), 1 from generate_series(1, 10001) as n`);
    await client.query(`insert into face_embeddings_cache
        (tenant_id, generation, content_hash, model, faces, payload, version)
      select 'acme', 1, lpad(to_hex(n), 64, '0'), 'puppet-embedder@1', 2, '', 1 from generate_series(1, 2001) as n`);
    await client.query('analyze');
    const serving = await run(
      large.app({ API_TOKENS: 'root-token=*,acme-token=acme' }, { engine: new PuppetEngine() }),
      { workers: [], api: true },
    );
    try {
      await using theirs = await open({ token: 'acme-token', address: serving.address });
      const about = (page: Page, tile: string) => page.locator(`#${tile} .about`).innerText();
      expect(await figure(theirs.page, 'stored')).toBe('10,000 or more');
      expect(await about(theirs.page, 'stored')).toBe('at 0 URLs; 0 refusals remembered');
      expect(await figure(theirs.page, 'faces')).toBe('4,000 or more');
      expect(await about(theirs.page, 'faces')).toMatch(/^in 2,000 of the 2,000 images .*; there are more$/);
      await using all = await open({ address: serving.address });
      expect(await figure(all.page, 'stored')).toBe('about 10,001');
      expect(await figure(all.page, 'faces')).toBe('4,000 or more');
    } finally {
      await serving.stop();
    }
  });

  test.each(['light', 'dark'] as const)('in %s colours, text stands out from its ground', async (colorScheme) => {
    await using opened = await open({ colorScheme });
    const { page } = opened;
    const ratios = (await page.evaluate(`(() => {
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map((one) => Number(one) / 255)
          .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = light(getComputedStyle(document.querySelector('.panel')).backgroundColor);
      const texts = ['.figure', '.about', 'h2', 'th', '.facts', '.reason', '.alike a', '.share'];
      return texts.map((name) => {
        const text = light(getComputedStyle(document.querySelector(name)).color);
        return [name, (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05), ground];
      });
    })()`)) as [string, number, number][];
    // WCAG 2.2, 1.4.3: 4.5 to 1.
    for (const [name, ratio] of ratios) expect(ratio, name).toBeGreaterThan(4.5);
    for (const [, , ground] of ratios) expect(ground > 0.5).toBe(colorScheme === 'light');
  });

  test.each([320, 375, 768, 1_360])('at %d pixels nothing is cut off to the side', async (width) => {
    await using opened = await open({ viewport: { width, height: 800 } });
    const { page } = opened;
    await page.locator('.gallery li').first().waitFor();
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBe(width);
    const beyond = await page.evaluate(`[...document.querySelectorAll('.tile, .panel')].flatMap((box) => {
      const inside = box.getBoundingClientRect().right - parseFloat(getComputedStyle(box).paddingRight);
      return [...box.querySelectorAll('p, table, ul, li')]
        .filter((one) => one.getBoundingClientRect().right > inside + 1).map((one) => one.outerHTML.slice(0, 80));
    })`);
    expect(beyond).toEqual([]);
  });

  test('it asks every two seconds, seldom while hidden, and at once when it is looked at again', async () => {
    const context = await browser.newContext({ httpCredentials: { username: 'me', password: 'root-token' } });
    const page = await context.newPage();
    try {
      await page.clock.install({ time: 0 });
      await page.clock.pauseAt(1_000);
      // When it asks, by the clock of the page, which stands still until it is wound on.
      await page.addInitScript(`
        window.asked = [];
        window.answered = 0;
        const { fetch } = window;
        window.fetch = async (...args) => {
          window.asked.push(Date.now());
          const response = await fetch(...args);
          const json = response.json.bind(response);
          // The page goes on with the answer before this is counted.
          response.json = () => json().finally(() => setImmediateLike(() => { window.answered += 1; }));
          return response;
        };
        const { port1, port2 } = new MessageChannel();
        const queue = [];
        port1.onmessage = () => queue.shift()();
        function setImmediateLike(work) { queue.push(work); port2.postMessage(0); }
        let hidden = false;
        Object.defineProperty(document, 'hidden', { get: () => hidden });
        window.setHidden = (is) => { hidden = is; document.dispatchEvent(new Event('visibilitychange')); };`);
      await page.goto(running.address);
      const asked = () => page.evaluate('window.asked') as Promise<number[]>;
      /** Winds the clock on until it has asked again and was answered; how long that took, by that clock. */
      const nextWait = async () => {
        const before = (await asked()).length;
        while ((await asked()).length === before) await page.clock.runFor(500);
        await until('the answer', async () => (await page.evaluate('window.answered')) === before + 1);
        const times = await asked();
        return (times[before] as number) - (times[before - 1] as number);
      };
      await until('the first answer', async () => (await page.evaluate('window.answered')) === 1);
      expect([await nextWait(), await nextWait()]).toEqual([2_000, 2_000]);
      await page.evaluate('window.setHidden(true)');
      const waits = [];
      for (let n = 0; n < 8; n++) waits.push(await nextWait());
      expect(waits).toEqual([2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
      const before = (await asked()).length;
      await page.evaluate('window.setHidden(false)');
      await until('it asks at once', async () => (await asked()).length === before + 1);
      await until('the answer', async () => (await page.evaluate('window.answered')) === before + 1);
      expect(await nextWait()).toBe(2_000);
    } finally {
      await context.close();
    }
  });

  test('it says when it cannot show what it is given, as after an update of the service', async () => {
    await using opened = await open({ address: running.address });
    const { page } = opened;
    const status = page.getByRole('status');
    await status.getByText('Live').waitFor();
    await page.route('**/v1/overview', (route) => route.fulfill({ json: { of: 'another version' } }));
    await status.getByText('This page does not know what to make of the answer: load it anew').waitFor();
    await page.unroute('**/v1/overview');
    await status.getByText('Live').waitFor();
  });

  test('it says when the server does not answer, keeps what it knows, and goes on when it is back', async () => {
    const serve = async (env: Record<string, string>) => {
      const other = world.app({ API_TOKENS: 'root-token=*', ...env }, { engine: new PuppetEngine() });
      return run(other, { workers: [], api: true });
    };
    const first = await serve({});
    const { port } = new URL(first.address);
    await using opened = await open({ address: first.address });
    const { page } = opened;
    const status = page.getByRole('status');
    await status.getByText('Live').waitFor();
    const known = await figure(page, 'stored');
    await first.stop();
    await status.getByText('The server does not answer').waitFor();
    expect(await figure(page, 'stored')).toBe(known);
    expect(await page.locator('#updated').innerText()).toMatch(/updated \d\d:\d\d:\d\d, (\d+ s ago|just now)/);
    const again = await serve({ PORT: port });
    await status.getByText('Live').waitFor();
    await again.stop();
  });
});

/** The part of the DOM that a test uses inside of the browser. */
interface HTMLImage {
  src: string;
  readonly naturalWidth: number;
  decode(): Promise<void>;
}

test('its files are in the package', () => {
  const packed = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { encoding: 'utf8' });
  const [{ files }] = JSON.parse(packed) as [{ files: { path: string }[] }];
  const paths = files.map(({ path }) => path);
  const own = readdirSync('src/http/page').map((name) => `src/http/page/${name}`);
  expect(own).toContain('src/http/page/index.html');
  expect(paths).toEqual(expect.arrayContaining(own));
});
