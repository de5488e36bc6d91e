/** The dashboard in a real browser, after a real run of both workers. */
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Running, run } from '../../workers/main.js';
import { launchBrowser } from '../support/browser.js';
import { noiseImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const TOKEN = 'dashboard-token';

describe('the dashboard in a browser', () => {
  let world: World;
  let site: Site;
  let running: Running;
  let jobIds: string[];
  let browser: Browser;
  const image = () => `${site.url}/face.png`;

  beforeAll(async () => {
    world = await createWorld();
    site = await startSite();
    site.put('/face.png', { body: await noiseImage(64, 48), type: 'image/png' });
    const env = { FETCH_ALLOW: '127.0.0.1/32:*', API_TOKENS: `${TOKEN}=*` };
    running = await run(world.app(env, { engine: new PuppetEngine() }), { workers: ['crawl', 'embedding'], api: true });
    browser = await launchBrowser();
    jobIds = await crawled([image(), `${site.url}/missing.png`]);
    await until('the embedding is done', async () => (await counts()).embedding?.completed === 1);
  });

  afterAll(async () => {
    await browser?.close();
    await running?.stop();
    await site?.close();
    await world?.[Symbol.asyncDispose]();
  });

  async function api<Answer>(path: string, init: RequestInit = {}): Promise<Answer> {
    const headers = { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' };
    return (await (await fetch(running.address + path, { ...init, headers })).json()) as Answer;
  }

  async function crawled(urls: string[]): Promise<string[]> {
    const body = JSON.stringify({ tenantId: 'acme', images: urls.map((url) => ({ url })) });
    const { accepted } = await api<{ accepted: { jobId: string }[] }>('/v1/crawl-jobs', { method: 'POST', body });
    const ids = accepted.map(({ jobId }) => jobId);
    for (const id of ids) {
      await until(`job ${id} is completed`, async () => {
        return (await api<{ state: string }>(`/v1/jobs/crawl/${id}`)).state === 'completed';
      });
    }
    return ids;
  }

  async function counts(): Promise<Record<string, Record<string, number>>> {
    const headers = { authorization: `Basic ${btoa(`:${TOKEN}`)}` };
    const response = await fetch(`${running.address}/dashboard/api/queues`, { headers });
    const { queues } = (await response.json()) as { queues: { name: string; counts: Record<string, number> }[] };
    return Object.fromEntries(queues.map(({ name, counts }) => [name, counts]));
  }

  async function open(path: string, look: (page: Page, troubles: string[]) => Promise<void>): Promise<void> {
    await using page = await browser.newPage({ httpCredentials: { username: 'anyone', password: TOKEN } });
    const troubles: string[] = [];
    page.on('pageerror', (error) => troubles.push(String(error)));
    page.on('response', (response) => {
      // The browser asks without credentials first, and is told to bring some.
      const known = response.status() < 400 || response.status() === 401;
      if (!known) troubles.push(`${response.status()} ${response.url()}`);
    });
    await page.goto(running.address + path);
    await look(page, troubles);
  }

  test('asks nobody else for anything', async () => {
    await using page = await browser.newPage({ httpCredentials: { username: 'anyone', password: TOKEN } });
    const elsewhere: (string | undefined)[] = [];
    const isElsewhere = (url: string) => !url.startsWith(running.address) && !url.startsWith('data:');
    page.on('requestfinished', (request) => void (isElsewhere(request.url()) && elsewhere.push(request.url())));
    page.on('requestfailed', (request) => {
      const { errorText } = request.failure() ?? {};
      if (isElsewhere(request.url()) && errorText !== 'csp') elsewhere.push(`${request.url()} ${errorText}`);
    });
    await page.goto(`${running.address}/dashboard`);
    await page.locator('a[href*="/queue/crawl"]').first().waitFor();
    expect(elsewhere).toEqual([]);
  });

  test('shows both queues', async () => {
    await open('/dashboard', async (page, troubles) => {
      for (const queue of ['crawl', 'embedding']) {
        await page.locator(`a[href*="/queue/${queue}"]`).first().waitFor();
      }
      expect(troubles).toEqual([]);
    });
  });

  test('shows the jobs of a run with their outcomes', async () => {
    await open('/dashboard/queue/crawl?status=completed', async (page, troubles) => {
      for (const id of jobIds) await page.getByText(id.slice(0, 8)).first().waitFor();
      expect(troubles).toEqual([]);
    });
    await open(`/dashboard/queue/crawl/${jobIds[0]}`, async (page, troubles) => {
      await page.getByText('face.png').first().waitFor();
      expect(troubles).toEqual([]);
    });
    await open('/dashboard/queue/embedding?status=completed', async (page) => {
      await page.getByText('contentHash').first().waitFor();
    });
  });
});
