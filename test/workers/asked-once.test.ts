/** One request for each URL, however the jobs of the same URL and of the same bytes meet: by real claims and real requests. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { DeferredError } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { Closer } from '../../src/lifecycle.js';
import type { CrawlOutcome } from '../../workers/crawl-step.js';
import { workOf } from '../../workers/jobs.js';
import type { Perform } from '../../workers/run.js';
import { flatImage, noiseImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { createWorld, type World } from '../support/world.js';

const TENANT = 'acme';
const PUT_OFF = 'put off';

let world: World;
let site: Site;
let app: App;
let perform: Perform<unknown, { readonly outcome: string }>;
const closer = new Closer();
let jobs = 0;

beforeAll(async () => {
  world = await createWorld();
  site = await startSite();
  const engine = new PuppetEngine();
  app = world.app({ FETCH_ALLOW: '127.0.0.0/8:*' }, { engine });
  ({ perform } = workOf('crawl', app, { events: app.events, engine, closer }));
});

afterAll(async () => {
  await closer.close();
  await site.close();
  await world[Symbol.asyncDispose]();
});

/** A job and what its queue keeps of it, one run after the other. @returns runs it once more */
function jobOf(url: string): () => Promise<string> {
  const id = `job-${jobs++}`;
  let remembered: Record<string, unknown> = {};
  let runs = 0;
  return async () => {
    const run = {
      id,
      jobId: `${id}@1`,
      deaths: 0,
      isRepeat: runs++ > 0,
      isLast: false,
      remembered,
      remember: async (fact: object) => {
        remembered = { ...remembered, ...fact };
      },
      signal: new AbortController().signal,
    };
    const ended = (await perform({ v: 1, tenantId: TENANT, url }, run).catch((error: unknown) => {
      if (error instanceof DeferredError) return null;
      throw error;
    })) as CrawlOutcome | null;
    if (!ended) return PUT_OFF;
    return 'reason' in ended ? `${ended.outcome} ${ended.reason}` : ended.outcome;
  };
}

/** Somebody works on these bytes. @returns gives them up again, without a record */
async function workOn(bytes: Buffer): Promise<() => Promise<void>> {
  const owner = { tenantId: TENANT, holder: `worker-${jobs++}` };
  const answer = await app.claims.take({ ...owner, subject: `content:${sha256(bytes)}` }, 60_000);
  expect(answer.taken).toBe(true);
  return () => app.claims.releaseAll(owner);
}

async function claimed(): Promise<number> {
  const { rows } = await app.connection.pool.query('select subject from claims where tenant_id = $1', [TENANT]);
  return rows.length;
}

test('who waits for its bytes keeps its URL: a twin of the job does not ask for them once more', async () => {
  const body = await noiseImage(20, 20, 1);
  const url = site.put('/twins.png', { body, type: 'image/png' });
  const giveUp = await workOn(body);
  const [first, twin] = [jobOf(url), jobOf(url)];
  expect(await first()).toBe(PUT_OFF);
  expect([await twin(), await first(), await twin()]).toEqual([PUT_OFF, PUT_OFF, PUT_OFF]);
  expect(site.countOf('/twins.png')).toBe(1);
  await giveUp();
  expect(await first()).toBe('stored');
  expect(await twin()).toBe('skipped url');
  expect(await claimed()).toBe(0);
});

test('where the work on the bytes came to nothing, one of those who wait for them asks anew, and the others do not', async () => {
  const body = await noiseImage(20, 20, 2);
  const giveUp = await workOn(body);
  const paths = Array.from({ length: 6 }, (_, i) => `/waiting-${i}.png`);
  const waiting = paths.map((path) => jobOf(site.put(path, { body, type: 'image/png' })));
  expect(new Set(await Promise.all(waiting.map((run) => run())))).toEqual(new Set([PUT_OFF]));
  await giveUp();
  const held = site.hold(paths[0] as string, { body, type: 'image/png' });
  const [next, ...others] = waiting;
  const stored = next?.();
  await site.until(() => site.countOf(paths[0] as string) === 2);
  expect(new Set(await Promise.all(others.map((run) => run())))).toEqual(new Set([PUT_OFF]));
  held.release();
  expect(await stored).toBe('stored');
  expect(new Set(await Promise.all(others.map((run) => run())))).toEqual(new Set(['skipped content']));
  expect(paths.map((path) => site.countOf(path))).toEqual([2, 1, 1, 1, 1, 1]);
  expect(await claimed()).toBe(0);
});

test('who asks anew and is not answered holds up the others once', async () => {
  const body = await noiseImage(20, 20, 5);
  const giveUp = await workOn(body);
  const put = (path: string) => site.put(path, { body, type: 'image/png' });
  const [fails, waits] = [jobOf(put('/fails.png')), jobOf(put('/waits.png'))];
  expect([await fails(), await waits()]).toEqual([PUT_OFF, PUT_OFF]);
  await giveUp();
  site.failTimes('/fails.png', 2, 500);
  await expect(fails()).rejects.toThrow('server-error');
  const next = await workOn(body);
  await expect(fails()).rejects.toThrow('server-error');
  expect(site.countOf('/fails.png')).toBe(3);
  await next();
  expect(await waits()).toBe('stored');
  expect(await fails()).toBe('skipped content');
  expect(await claimed()).toBe(0);
});

test('who gets other bytes when it asks anew leaves those of before to the others', async () => {
  const [before, after] = [await noiseImage(20, 20, 3), await flatImage(20, 21, '#123321')];
  const giveUp = await workOn(before);
  const put = (path: string, body: Buffer) => site.put(path, { body, type: 'image/png' });
  const [changes, stays] = [jobOf(put('/changes.png', before)), jobOf(put('/stays.png', before))];
  expect([await changes(), await stays()]).toEqual([PUT_OFF, PUT_OFF]);
  await giveUp();
  put('/changes.png', after);
  const giveUpAfter = await workOn(after);
  expect(await changes()).toBe(PUT_OFF);
  expect(await stays()).toBe('stored');
  await giveUpAfter();
  expect(await changes()).toBe('stored');
  expect([site.countOf('/changes.png'), site.countOf('/stays.png')]).toEqual([3, 2]);
  expect(await claimed()).toBe(0);
});

test('a job whose bytes became known in another way holds on to nothing', async () => {
  const body = await noiseImage(20, 20, 4);
  const url = site.put('/meanwhile.png', { body, type: 'image/png' });
  const giveUp = await workOn(body);
  const waits = jobOf(url);
  expect(await waits()).toBe(PUT_OFF);
  expect(await claimed()).toBe(2);
  await app.cache.storeCrawledImage(url, body, { rawKey: 'theirs.png' }, TENANT);
  expect(await waits()).toBe('skipped url');
  await giveUp();
  expect(await claimed()).toBe(0);
});
