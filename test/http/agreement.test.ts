/**
 * After a run the page, `/metrics` of all processes, `stats`, the queues and the database tell the same numbers: one
 * process serves the API, another works, and neither knows what the other counted.
 */
import { execFile } from 'node:child_process';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import type { CacheStatistics } from '../../src/cache/statistics.js';
import { failureReasonOf } from '../../src/errors.js';
import { operations } from '../../src/http/api.js';
import type { Overview } from '../../src/http/overview.js';
import { sha256 } from '../../src/kinds/identity.js';
import { KINDS } from '../../src/kinds/index.js';
import { KIND_NAMES, type LookupResult } from '../../src/metrics.js';
import { QUEUE_NAMES, type QueueName } from '../../src/queues/contract.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { listFailed } from '../../src/queues/failed.js';
import { type Running, run } from '../../workers/main.js';
import { crawled, crawlJob, embedded, ended as endOf, idle } from '../support/crawl-run.js';
import { type Family, parseExposition, valueOf } from '../support/exposition.js';
import { noiseImage, recompressed, samplePhoto } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const CLI = resolve('dist/src/cli.js');
const TOKENS = { API_TOKENS: 'root-token=*,acme-token=acme,globex-token=globex' };
const RESULTS: readonly LookupResult[] = ['redis_hit', 'postgres_hit', 'miss', 'error'];

/** How many jobs ended like this; as text, so that tallies of several tellers can be compared. */
type Tally = Record<string, number>;
type Ending = readonly [outcome: string | undefined, reason: string | null | undefined, jobs: number];

function tally(endings: readonly Ending[]): Tally {
  const counts: Tally = {};
  for (const [outcome, reason, jobs] of endings) {
    const name = [outcome, reason].filter(Boolean).join(' ');
    counts[name] = (counts[name] ?? 0) + jobs;
  }
  return Object.fromEntries(Object.entries(counts).filter(([, jobs]) => jobs > 0));
}

const withoutReasons = (counts: Tally) =>
  tally(Object.entries(counts).map(([name, jobs]): Ending => [name.split(' ')[0], null, jobs]));

/** A part of the overview, where its store told it. */
function part<Part>(told: Part | { readonly error: string }): Exclude<Part, { readonly error: string }> {
  expect(told).not.toHaveProperty('error');
  return told as Exclude<Part, { readonly error: string }>;
}

const sumOf = (counts: Tally) => Object.values(counts).reduce((sum, jobs) => sum + jobs, 0);

/** What happens below, counted by hand. */
const RUN: Record<QueueName, { completed: Tally; failed: Tally }> = {
  crawl: {
    completed: { stored: 4, 'skipped url': 1, 'skipped content': 1, 'rejected not-an-image': 2, 'rejected gone': 1 },
    failed: { 'failed server-error': 1, 'failed invalid-payload': 1 },
  },
  embedding: {
    completed: { embedded: 4, cached: 1, 'rejected unknown-image': 1 },
    failed: { 'failed invalid-payload': 1 },
  },
};

describe.each(['redis', 'postgres'])('over queues on %s', (backend) => {
  let world: World;
  let site: Site;
  let worker: App;
  let api: App;
  let database: Client;
  const processes: Running[] = [];

  beforeAll(async () => {
    world = await createWorld();
    site = await startSite();
    database = new Client({ connectionString: world.databaseUrl });
    await database.connect();
    const env = { ...TOKENS, QUEUE_BACKEND: backend, FETCH_ALLOW: '127.0.0.1/32:*', METRICS_PORT: '0' };
    api = world.app(env, { engine: new PuppetEngine() });
    worker = world.app(env, { engine: new PuppetEngine(), retryBaseMs: 1 });
    processes.push(await run(api, { workers: [], api: true }));
    processes.push(await run(worker, { workers: ['crawl', 'embedding'], api: false }));
    await work();
  });

  afterAll(async () => {
    for (const one of processes.reverse()) await one.stop();
    await database?.end();
    await site?.close();
    await world?.[Symbol.asyncDispose]();
  });

  async function work(): Promise<void> {
    const photo = await samplePhoto(1);
    for (const path of ['/photo.jpg', '/copy.jpg']) site.put(path, { body: photo });
    site.put('/alike.jpg', { body: await recompressed(photo) });
    site.put('/noise.png', { body: await noiseImage(64, 48), type: 'image/png' });
    site.put('/text.jpg', { body: 'no image' });
    site.put('/down.jpg', { status: 500 });
    for (const path of ['/photo.jpg', '/copy.jpg', '/photo.jpg', '/alike.jpg', '/text.jpg', '/gone.jpg']) {
      await crawled(api, 'acme', site.url + path);
    }
    for (const path of ['/photo.jpg', '/noise.png', '/text.jpg']) await crawled(api, 'globex', site.url + path);
    await crawlJob(api, 'globex', `${site.url}/down.jpg`);
    await idle(api, ...QUEUE_NAMES);
    await embedded(api, 'acme', sha256(photo));
    await embedded(api, 'acme', sha256('nobody has seen it'));
    for (const queue of QUEUE_NAMES) {
      const { id } = await api.queues.get(queue).add(queue, { v: 1 }); // as another client may
      await endOf(api, queue, String(id));
    }
  }

  async function ask<T>(path: string, token = 'root-token', method = 'GET'): Promise<T> {
    const headers = { authorization: `Bearer ${token}` };
    const response = await fetch(processes[0]?.address + path, { method, headers });
    expect([path, response.status]).toEqual([path, 200]);
    return (await response.json()) as T;
  }

  const page = (token?: string) => ask<Overview>('/v1/overview', token);

  /** What every process exposes: the API's first. */
  const scrapes = () =>
    Promise.all(
      processes.map(async ({ address }) => parseExposition(await (await fetch(`${address}/metrics`)).text())),
    );

  const total = (all: readonly Map<string, Family>[], name: string, labels: Record<string, string> = {}) =>
    all.reduce((sum, families) => sum + valueOf(families, name, labels), 0);

  const ended = (all: readonly Map<string, Family>[], name: string) =>
    tally(
      all
        .flatMap((families) => families.get(name)?.samples ?? [])
        .map(({ labels, value }) => [labels.outcome, labels.reason, value]),
    );

  async function sql<Row extends object>(text: string): Promise<Row> {
    const { rows } = await database.query<Row>(text);
    return rows[0] as Row;
  }

  /** Rows that can be reached, by kind, as nobody but the database counts them. */
  async function rowsBy(where = 'true'): Promise<Record<string, number>> {
    const current =
      "(select max(generation) from cache_generations as one where one.tenant_id in (row.tenant_id, '*'))";
    const counts: Record<string, number> = {};
    for (const { name, table } of KINDS) {
      const { n } = await sql<{ n: number }>(
        `select count(*)::int as n from ${table.name} as row where generation = ${current} and ${where}`,
      );
      counts[name] = n;
    }
    return counts;
  }

  const holdingsOf = (rows: Record<string, number>) => ({
    images: rows.crawl_content,
    urls: rows.crawl_url,
    embedded: rows.face_embedding,
    refusals: rows.rejection,
    atLeast: [],
    about: [],
  });

  async function statsOfCommand(): Promise<CacheStatistics> {
    const { DATABASE_URL, REDIS_URL } = { DATABASE_URL: world.databaseUrl, REDIS_URL: world.redisUrl };
    const env = { PATH: process.env.PATH, DATABASE_URL, REDIS_URL, QUEUE_BACKEND: backend };
    const { stdout } = await promisify(execFile)(process.execPath, [CLI, 'stats', '--json'], { env });
    return JSON.parse(stdout);
  }

  /** Rows by kind, under the names of the statistics. */
  const rowsIn = ({ postgresStats }: CacheStatistics) => {
    expect(postgresStats).toMatchObject({ estimated: [] });
    const counts = postgresStats as unknown as Record<string, number>;
    return {
      face_embedding: counts.faceEmbeddingsCacheCount,
      face_detection: counts.faceDetectionCacheCount,
      perceptual_hash: counts.perceptualHashCacheCount,
      search_results: counts.searchResultsCacheCount,
      crawl_url: counts.crawlCacheCount,
      crawl_content: counts.crawlContentCacheCount,
      rejection: counts.rejectionCacheCount,
      robots: counts.robotsCacheCount,
    };
  };

  test.each(QUEUE_NAMES)(
    'outcomes of %s: the jobs themselves, the page, and the metrics of all processes',
    async (queue) => {
      const { completed, failed } = RUN[queue];
      const jobs = await api.queues.get(queue).getJobs(['completed', 'failed']);
      const records = jobs.map(
        ({ failedReason, returnvalue }): Ending =>
          failedReason ? ['failed', failureReasonOf(failedReason), 1] : [returnvalue.outcome, returnvalue.reason, 1],
      );
      expect(tally(records)).toEqual({ ...completed, ...failed });
      const { [queue]: shown, failures } = await page();
      expect(shown).toMatchObject({ jobs: sumOf(completed), more: false });
      expect(tally(part(shown).outcomes.map(({ outcome, reason, jobs: n }) => [outcome, reason, n]))).toEqual(
        completed,
      );
      const failedHere = part(failures).reasons.filter((one) => one.queue === queue);
      expect(tally(failedHere.map(({ reason, jobs: n }) => ['failed', reason, n]))).toEqual(failed);
      const all = await scrapes();
      if (queue === 'crawl') expect(ended(all, 'crawl_images_total')).toEqual({ ...completed, ...failed });
      // These are counted without their reasons.
      else expect(ended(all, 'embedding_images_total')).toEqual(withoutReasons({ ...completed, ...failed }));
    },
  );

  test('failures: the page, and `failed list`', async () => {
    const listed = await listFailed(api.queues, {}, 0);
    const { failures } = await page();
    expect(part(failures)).toMatchObject({ jobs: listed.failed, more: false });
    expect(tally(part(failures).reasons.map(({ reason, jobs }) => [reason, null, jobs]))).toEqual(listed.reasons);
  });

  test.each(QUEUE_NAMES)('jobs and runs of %s: the queue’s store, the page, and the metrics', async (queue) => {
    const counts = await api.queues.get(queue).getJobCounts();
    const [completed, failed] = [sumOf(RUN[queue].completed), sumOf(RUN[queue].failed)];
    expect(counts).toMatchObject({ completed, failed, waiting: 0, prioritized: 0, active: 0, delayed: 0 });
    const all = await scrapes();
    for (const [state, jobs] of Object.entries(counts)) {
      expect(total(all.slice(0, 1), 'bullmq_job_count', { queue, state })).toBe(jobs);
    }
    const shown = part((await page()).queues ?? []).find((one) => one.queue === queue);
    const none = { waiting: 0, delayed: 0, active: 0, oldestWaitingSeconds: 0 };
    expect(shown).toEqual({ queue, paused: false, completed, failed, ...none });
    const runs = (result: string) => total(all, 'job_attempts_total', { queue, result });
    expect([runs('completed'), runs('failed'), runs('stalled')]).toEqual([completed, failed, 0]);
    // The image that was never served was asked for as often as the queue allows.
    expect(runs('retried')).toBe(queue === 'crawl' ? crawlQueue.attempts - 1 : 0);
    const samples = all.flatMap((families) => families.get('job_duration_seconds')?.samples ?? []);
    const timed = samples.filter(({ name, labels }) => name.endsWith('_count') && labels.queue === queue);
    expect(timed.reduce((sum, { value }) => sum + value, 0)).toBe(total(all, 'job_attempts_total', { queue }));
  });

  test('what is known: the database, `stats` in three places, the page, and what the jobs said', async () => {
    const rows = await rowsBy();
    const view = await database.query(
      "select replace(cache_type, 'face_embeddings', 'face_embedding') as type, total_entries::int as n from cache_stats",
    );
    const named = view.rows.map(({ type, n }) => [type === 'crawl' ? 'crawl_url' : type, n]);
    expect(Object.fromEntries(named)).toEqual(rows);
    for (const stats of [
      await ask<CacheStatistics>('/v1/cache/stats'),
      await worker.cache.getCacheStats(),
      await statsOfCommand(),
    ]) {
      expect(rowsIn(stats)).toEqual(rows);
    }
    const overview = await page();
    expect(overview.holdings).toEqual(holdingsOf(rows));
    const { stored = 0, 'skipped content': alias = 0 } = RUN.crawl.completed;
    const refused = QUEUE_NAMES.map((queue) => withoutReasons(RUN[queue].completed).rejected ?? 0);
    expect(rows).toMatchObject({
      crawl_content: stored,
      crawl_url: stored + alias,
      perceptual_hash: stored,
      rejection: refused.reduce((sum, jobs) => sum + jobs),
    });
    expect(rows.face_embedding).toBe(RUN.embedding.completed.embedded);
    const found = await sql<{ faces: number }>(
      'select sum(faces)::int as faces, count(*)::int as images from face_embeddings_cache',
    );
    expect(overview.faces).toMatchObject({ ...found, exact: true });
    expect(total(await scrapes(), 'embedding_faces_total')).toBe(found.faces);
    expect(part(overview.embedding).faces).toBe(found.faces);
    expect(overview.replayPending).toBe(backend === 'redis' ? 0 : null);
  });

  test('images: the page shows those that the database holds, each under its tenant', async () => {
    const { rows } = await database.query<{ image: string }>(
      "select tenant_id || ' ' || content_hash as image from crawl_content_cache order by 1",
    );
    const images = part((await page()).images);
    expect(images.map(({ tenantId, contentHash }) => `${tenantId} ${contentHash}`).sort()).toEqual(
      rows.map(({ image }) => image),
    );
    expect(images.reduce((sum, { faces }) => sum + (faces ?? 0), 0)).toBe(part((await page()).faces).faces);
  });

  test('tenants: their parts make up the whole, but for what names no tenant', async () => {
    const whole = await page();
    const parts = [await page('acme-token'), await page('globex-token')] as const;
    for (const name of ['images', 'urls', 'embedded', 'refusals'] as const) {
      const sum = parts.reduce((so, { holdings }) => so + part(holdings)[name], 0);
      expect([name, sum]).toEqual([name, part(whole.holdings)[name]]);
    }
    expect(part(parts[0].holdings)).toEqual(holdingsOf(await rowsBy("tenant_id = 'acme'")));
    for (const queue of QUEUE_NAMES) {
      const endings = parts.flatMap((one) => part(one[queue]).outcomes);
      expect(tally(endings.map(({ outcome, reason, jobs }) => [outcome, reason, jobs]))).toEqual(RUN[queue].completed);
    }
    const failures = parts.flatMap((one) => part(one.failures).reasons);
    expect(failures).toEqual([{ queue: 'crawl', reason: 'server-error', jobs: 1 }]);
    expect(parts.reduce((sum, { faces }) => sum + part(faces).faces, 0)).toBe(part(whole.faces).faces);
  });

  test('look-ups: the metrics of all processes, `stats` of each, and the page', async () => {
    const { service: ofApi } = await ask<CacheStatistics>('/v1/cache/stats');
    const { service: ofWorker } = await worker.cache.getCacheStats();
    const all = await scrapes();
    const counted = (kind: string) =>
      Object.fromEntries(
        RESULTS.map((result) => [result, total(all, 'hybrid_cache_requests_total', { kind, result })]),
      );
    const byKind = Object.fromEntries(KIND_NAMES.map((kind) => [kind, counted(kind)]));
    expect(byKind.crawl_url?.redis_hit).toBeGreaterThan(0);
    for (const kind of KIND_NAMES) {
      const [one, other] = [ofApi.byKind[kind], ofWorker.byKind[kind]];
      expect({ kind, ...byKind[kind] }).toEqual({
        kind,
        redis_hit: one.redisHits + other.redisHits,
        postgres_hit: one.postgresHits + other.postgresHits,
        miss: one.misses + other.misses,
        error: one.errors + other.errors,
      });
    }
    const shown = await until('the page has the look-ups of both', async () => {
      const { lookups } = await page();
      return JSON.stringify(lookups) === JSON.stringify({ minutes: 15, byKind }) ? lookups : null;
    });
    expect(shown).toEqual({ minutes: 15, byKind });
  });

  test('the page’s data is what the OpenAPI document says', async () => {
    for (const token of ['root-token', 'acme-token']) {
      const overview = await page(token);
      expect(operations.overview.answer.schema.parse(overview)).toEqual(overview);
    }
  });

  test('a tenant that is forgotten is so everywhere at once, and the counters stay', async () => {
    const [before, after] = [await rowsBy("tenant_id = 'globex'"), await rowsBy("tenant_id <> 'globex'")];
    const answer = await ask('/v1/tenants/globex/cache', 'globex-token', 'DELETE');
    expect(answer).toEqual({ invalidated: sumOf(before) });
    expect(await rowsBy()).toEqual(after);
    expect(rowsIn(await ask<CacheStatistics>('/v1/cache/stats'))).toEqual(after);
    expect(rowsIn(await statsOfCommand())).toEqual(after);
    const overview = await until('the page has seen it', async () => {
      const seen = await page();
      const { images } = part(seen.holdings);
      return images === after.crawl_content && part(seen.faces).images === after.face_embedding ? seen : null;
    });
    expect(overview.holdings).toEqual(holdingsOf(after));
    expect(part(overview.images).map(({ tenantId }) => tenantId)).toEqual(['acme', 'acme']);
    expect(ended(await scrapes(), 'crawl_images_total')).toEqual({ ...RUN.crawl.completed, ...RUN.crawl.failed });
  });
});
