/** Servers and workers die in the middle of a run: it completes by itself, nothing is lost, nothing is doubled. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import sharp from 'sharp';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type App, connect } from '../../src/app.js';
import { type Env, toConfig } from '../../src/config.js';
import { migrate } from '../../src/db/migrate.js';
import { type LocalStack, startLocalStack } from '../../src/local/stack.js';
import { createLogger } from '../../src/logger.js';
import { type CrawlPayload, crawlQueue } from '../../src/queues/crawl.js';
import { startWorkers } from '../../workers/start.js';
import { ended, idle } from '../support/crawl-run.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';

const IMAGES = 60;
const CLI = resolve('dist/src/cli.js');
/** Three deaths in a row, each found out after up to 12 s, and processes that start on a busy machine. */
const MINUTES = 2 * 60_000;

/** 60 URLs, every third with the bytes of the one before. */
async function fillSite(site: Site): Promise<string[]> {
  const urls: string[] = [];
  for (let i = 0; i < IMAGES; i++) {
    const distinct = i - (i % 3 === 2 ? 1 : 0);
    const background = { r: (distinct * 4) % 256, g: (distinct * 7) % 256, b: distinct };
    const image = sharp({ create: { width: 64, height: 48, channels: 3, background } });
    urls.push(site.put(`/${i}.png`, { body: await image.png().toBuffer(), type: 'image/png' }));
  }
  return urls;
}

describe.each([
  { backend: 'redis', more: {} },
  { backend: 'postgres', more: { QUEUE_BACKEND: 'postgres' } },
])('a run with queues on $backend', ({ backend, more }) => {
  let stack: LocalStack;
  let site: Site;
  let folder: string;
  let env: Env;
  let app: App;
  let urls: string[];

  beforeEach(async () => {
    const local = resolve('.local');
    stack = await startLocalStack({
      folder: join(local, `test-${randomBytes(4).toString('hex')}`),
      ephemeral: true,
      cacheFolder: local,
    });
    site = await startSite();
    folder = await mkdtemp(join(tmpdir(), 'hc-test-'));
    env = {
      ...stack.env,
      ...more,
      STORAGE_URL: `file:${folder}`,
      FETCH_ALLOW: `127.0.0.1/32:${site.port}`,
      CRAWL_CONCURRENCY: '4',
      METRICS_PORT: '0',
      LOG_LEVEL: 'fatal',
    };
    const config = toConfig(env);
    await migrate(config.postgres, { queueOnPostgres: backend === 'postgres' });
    app = connect(config, { logger: createLogger('silent'), engine: new PuppetEngine(), retryBaseMs: 50 });
    urls = await fillSite(site);
  });

  afterEach(async () => {
    for (const child of children.splice(0)) child.kill('SIGKILL');
    await app.close();
    await site.close();
    await stack.close();
    await rm(folder, { recursive: true });
  });

  /** Every job completed; per tenant and content one record; every record has its object and its URL. */
  async function checkNothingLostOrDoubled(ids: string[]): Promise<void> {
    const jobs = await Promise.all(ids.map((id) => ended(app, 'crawl', id, MINUTES)));
    expect(jobs.filter(({ state }) => state !== 'completed')).toEqual([]);
    const outcomes = jobs.map((job) => job.outcome as { outcome: string; contentHash: string; rawKey: string });
    const contents = new Set(outcomes.map(({ contentHash }) => contentHash));
    expect(contents.size).toBe((IMAGES / 3) * 2);
    const { rows } = await app.connection.pool.query('select content_hash, raw_key from crawl_content_cache');
    expect(new Set(rows.map((row) => row.content_hash))).toEqual(contents);
    expect(rows).toHaveLength(contents.size);
    for (const row of rows) expect(await app.objects.get(row.raw_key)).not.toBeNull();
    const known = await app.connection.pool.query('select distinct url from crawl_cache');
    expect(known.rows.map((row) => row.url).sort()).toEqual([...urls].sort());
    for (const id of ids) expect((await app.queues.get('crawl').getJob(id))?.attemptsMade).toBeLessThanOrEqual(1);
  }

  const payloads = (): CrawlPayload[] => urls.map((url) => ({ v: 1, tenantId: 'acme', url }));
  const half = () => site.requests.length > IMAGES / 2;

  test.each(['redis', 'postgres'] as const)('survives the death of %s', async (server) => {
    const workers = startWorkers(app, ['crawl', 'embedding']);
    const ids = await app.queues.enqueue(crawlQueue, payloads());
    await until('half of the run', half);
    await stack.kill(server, 'SIGKILL');
    await until(`${server} to be missed`, async () => {
      await app.cache.getCachedPerceptualHash('0'.repeat(64), 'acme');
      const tier = app.connection.tiers[server];
      return tier && !tier.guard.isUp;
    });
    await stack.restart(server);
    await checkNothingLostOrDoubled(ids);
    await idle(app, 'crawl', 'embedding');
    const { rows } = await app.connection.pool.query('select count(*)::int as count from face_embeddings_cache');
    expect(rows[0]?.count).toBe((IMAGES / 3) * 2);
    await workers.stop(5_000);
  });

  test(
    'survives workers that are killed again and again',
    async () => {
      const ids = await app.queues.enqueue(crawlQueue, payloads());
      for (const share of [0.2, 0.4, 0.6]) {
        const worker = startWorkerProcess(env);
        await until(`a share of ${share}`, () => site.requests.length > IMAGES * share);
        worker.kill('SIGKILL');
        await once(worker, 'exit');
      }
      const last = startWorkerProcess(env);
      await checkNothingLostOrDoubled(ids);
      last.kill('SIGTERM');
      const [code] = await once(last, 'exit');
      expect(code).toBe(0);
    },
    MINUTES + 60_000,
  );
});

const children: ChildProcess[] = [];

function startWorkerProcess(env: Env): ChildProcess {
  const child = spawn(process.execPath, [CLI, 'worker', 'crawl'], {
    env: { PATH: process.env.PATH, ...env },
    stdio: 'inherit',
  });
  children.push(child);
  return child;
}
