/** Health, readiness and metrics, with every part up and with parts away. */
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import type { App } from '../../src/app.js';
import type { Overview } from '../../src/http/overview.js';
import { createServer } from '../../src/http/server.js';
import { QUEUE_NAMES } from '../../src/queues/contract.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { factsOf } from '../../src/redis-info.js';
import { type Family, lint, parseExposition } from '../support/exposition.js';
import { image, startWork } from '../support/queue-work.js';
import { startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';

/** Nobody listens on the first port: a connection is refused at once. */
const DEAD_REDIS = 'redis://:hush-hush@127.0.0.1:1/0';
const DEAD_POSTGRES = 'postgres://somebody:hush-hush@127.0.0.1:1/nothing';

let world: World;

beforeAll(async () => {
  world = await createWorld();
});

afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

async function serve(env: Record<string, string>, api = true): Promise<{ server: FastifyInstance; app: App }> {
  const app = world.app(env);
  const server = await createServer(app, { api });
  onTestFinished(() => server.close().then(() => undefined));
  return { server, app };
}

async function scrape(server: FastifyInstance): Promise<Map<string, Family>> {
  const response = await server.inject('/metrics');
  expect(response.statusCode).toBe(200);
  expect(response.headers['content-type']).toMatch(/^text\/plain; version=0\.0\.4/);
  return parseExposition(response.body);
}

const valueOf = (families: Map<string, Family>, name: string, labels: Record<string, string> = {}) =>
  [...families.values()]
    .flatMap(({ samples }) => samples)
    .find((one) => one.name === name && Object.entries(labels).every(([key, is]) => one.labels[key] === is))?.value;

describe('health', () => {
  const postgresQueue = { QUEUE_BACKEND: 'postgres' };
  test.each([
    ['everything is up', {}, 200, []],
    ['there is no Redis tier', { REDIS_URL: 'none' }, 200, []],
    ['the cache’s Redis is down', { REDIS_URL: DEAD_REDIS, ...postgresQueue }, 200, ['Redis cache unavailable']],
    ['PostgreSQL is down', { DATABASE_URL: DEAD_POSTGRES }, 200, ['PostgreSQL cache unavailable']],
    ['the queue’s store is down', { QUEUE_REDIS_URL: DEAD_REDIS }, 503, ['queue store unavailable']],
    [
      'everything is down',
      { REDIS_URL: DEAD_REDIS, DATABASE_URL: DEAD_POSTGRES },
      503,
      ['queue store unavailable', 'Redis cache unavailable', 'PostgreSQL cache unavailable'],
    ],
  ])('when %s: alive, and readiness names what is degraded', async (_, env, status, degraded) => {
    const { server } = await serve(env as Record<string, string>);
    const ready = await server.inject('/readyz');
    expect(ready.statusCode).toBe(status);
    expect(ready.json()).toEqual({ status: status === 200 ? 'ready' : 'unavailable', degraded });
    const alive = await server.inject('/healthz');
    expect([alive.statusCode, alive.json()]).toEqual([200, { status: 'ok' }]);
  });
});

describe('when the queue’s store is down', () => {
  test('asking for work, or after it, is 503 with a time to come back', { timeout: 15_000 }, async () => {
    const { server } = await serve({ QUEUE_REDIS_URL: DEAD_REDIS });
    const payload = { tenantId: 'acme', images: [{ url: 'https://example.com/1.jpg' }] };
    const answers = [
      await server.inject({ method: 'POST', url: '/v1/crawl-jobs', payload }),
      await server.inject('/v1/jobs/crawl/any'),
    ];
    for (const response of answers) {
      expect(response.statusCode).toBe(503);
      expect(response.headers['retry-after']).toMatch(/^\d+$/);
      expect(response.json()).toMatchObject({
        status: 503,
        detail: 'the queue is unavailable: try again in a few seconds',
      });
      expect(response.body).not.toMatch(/ECONNREFUSED|127\.0\.0\.1|hush-hush/);
    }
  });

  test('metrics are still served, without what only the store knows', async () => {
    const { server } = await serve({ QUEUE_REDIS_URL: DEAD_REDIS });
    const families = await scrape(server);
    expect(families.get('bullmq_job_count')?.samples).toEqual([]);
    expect(families.get('queue_oldest_waiting_seconds')?.samples).toEqual([]);
    expect(valueOf(families, 'build_info')).toBe(1);
  });

  test('no log line holds the store’s password', async () => {
    const { server } = await serve({ QUEUE_REDIS_URL: DEAD_REDIS, REDIS_URL: DEAD_REDIS, DATABASE_URL: DEAD_POSTGRES });
    await server.inject('/readyz');
    await until('the outage is logged', () => world.logs.some(({ msg }) => String(msg).startsWith('PostgreSQL cache')));
    expect(JSON.stringify(world.logs)).not.toContain('hush-hush');
  });
});

test('an image that cannot be looked up because PostgreSQL is down is 503 and not 404', async () => {
  const { server } = await serve({ DATABASE_URL: DEAD_POSTGRES });
  const hash = 'a'.repeat(64);
  const answers = [
    await server.inject(`/v1/tenants/acme/images/${hash}`),
    await server.inject(`/v1/tenants/acme/images/${hash}/raw`),
    await server.inject({
      method: 'POST',
      url: '/v1/embedding-jobs',
      payload: { tenantId: 'acme', contentHash: hash },
    }),
  ];
  for (const response of answers) {
    expect(response.statusCode).toBe(503);
    expect(response.body).not.toMatch(/ECONNREFUSED|127\.0\.0\.1|hush-hush|select /i);
  }
});

test('a store that takes connections and never answers holds up neither metrics nor the page', async () => {
  await using nobody = await startSite({ mute: 'silent' });
  const silent = `redis://127.0.0.1:${nobody.port}/0`;
  const { server } = await serve({ REDIS_URL: silent, QUEUE_REDIS_URL: silent });
  const families = await scrape(server);
  expect(families.get('bullmq_job_count')?.samples).toEqual([]);
  expect(families.get('hybrid_cache_replay_pending')?.samples).toEqual([]);
  expect(families.get('hybrid_cache_redis_memory_bytes')?.samples).toEqual([]);
  const overview: Overview = (await server.inject('/v1/overview')).json();
  for (const part of [overview.queues, overview.crawl, overview.lookups, overview.replayPending]) {
    expect(part).toHaveProperty('error');
  }
  expect(overview.holdings).toMatchObject({ images: 0 });
});

describe('metrics', () => {
  test('are in the text format and clean under promtool’s rules, but for names that are not ours', async () => {
    const { server, app } = await serve({});
    await app.cache.getCachedPerceptualHash('a'.repeat(64), 'acme');
    const families = await scrape(server);
    const notOurs = /^(bullmq_job_count|nodejs_active_\w+_total):/;
    expect(lint(families).filter((line) => !notOurs.test(line))).toEqual([]);
    for (const { name, type } of families.values()) expect([name, type]).not.toEqual([name, '']);
  });

  test('are all there, by the names that dashboards and alerts use', async () => {
    const { server } = await serve({});
    const families = await scrape(server);
    const expected = {
      hybrid_cache_requests_total: 'counter',
      hybrid_cache_operation_duration_seconds: 'histogram',
      hybrid_cache_tier_up: 'gauge',
      hybrid_cache_tier_errors_total: 'counter',
      hybrid_cache_backfills_total: 'counter',
      crawl_images_total: 'counter',
      crawl_fetch_duration_seconds: 'histogram',
      crawl_fetched_bytes_total: 'counter',
      crawl_stage_duration_seconds: 'histogram',
      embedding_images_total: 'counter',
      embedding_faces_total: 'counter',
      embedding_stage_duration_seconds: 'histogram',
      job_wait_seconds: 'histogram',
      job_duration_seconds: 'histogram',
      job_attempts_total: 'counter',
      queue_oldest_waiting_seconds: 'gauge',
      bullmq_job_count: 'gauge',
      hybrid_cache_replay_pending: 'gauge',
      hybrid_cache_redis_memory_bytes: 'gauge',
      hybrid_cache_redis_memory_limit_bytes: 'gauge',
      hybrid_cache_redis_may_evict: 'gauge',
      build_info: 'gauge',
      process_cpu_seconds_total: 'counter',
    };
    expect(Object.fromEntries(Object.keys(expected).map((name) => [name, families.get(name)?.type]))).toEqual(expected);
  });

  test('count the store’s jobs, also where scrapes overlap', async () => {
    const { server, app } = await serve({});
    const queue = app.queues.get('crawl');
    await queue.add('crawl', image(1), { timestamp: Date.now() - 7_200_000 });
    await queue.add('crawl', image(2));
    const scrapes = await Promise.all(Array.from({ length: 8 }, () => scrape(server)));
    for (const families of scrapes) {
      expect(valueOf(families, 'bullmq_job_count', { queue: 'crawl', state: 'waiting' })).toBe(2);
      expect(valueOf(families, 'bullmq_job_count', { queue: 'embedding', state: 'waiting' })).toBe(0);
      expect(valueOf(families, 'queue_oldest_waiting_seconds', { queue: 'crawl' })).toBeGreaterThanOrEqual(7_200);
      expect(valueOf(families, 'queue_oldest_waiting_seconds', { queue: 'embedding' })).toBe(0);
    }
    await queue.drain();
  });

  test('say which tier is down', async () => {
    const { server } = await serve({ DATABASE_URL: DEAD_POSTGRES });
    await server.inject('/readyz');
    const families = await scrape(server);
    expect(valueOf(families, 'hybrid_cache_tier_up', { tier: 'postgres' })).toBe(0);
    expect(valueOf(families, 'hybrid_cache_tier_up', { tier: 'redis' })).toBe(1);
    expect(valueOf(families, 'hybrid_cache_tier_errors_total', { tier: 'postgres', operation: 'ping' })).toBe(1);
  });

  test('tell how much of its memory each Redis uses, and which Redis there is', async () => {
    const both = await scrape((await serve({})).server);
    const redis = redisClient(world);
    const { usedMemory, memoryLimit } = factsOf(await redis.info());
    redis.disconnect();
    const [used, limit] = ['hybrid_cache_redis_memory_bytes', 'hybrid_cache_redis_memory_limit_bytes'] as const;
    for (const name of ['cache', 'queue']) {
      expect(valueOf(both, limit, { server: name })).toBe(memoryLimit);
      expect((valueOf(both, used, { server: name }) ?? 0) / usedMemory).toBeCloseTo(1, 0);
    }
    const serversOf = async (env: Record<string, string>) =>
      (await scrape((await serve(env)).server)).get(used)?.samples.map(({ labels }) => labels.server);
    expect(await serversOf({ QUEUE_BACKEND: 'postgres' })).toEqual(['cache']);
    expect(await serversOf({ REDIS_URL: 'none', QUEUE_REDIS_URL: world.redisUrl })).toEqual(['queue']);
    expect(await serversOf({ REDIS_URL: 'none' })).toEqual([]);
    expect(await serversOf({ REDIS_URL: DEAD_REDIS, QUEUE_REDIS_URL: world.redisUrl })).toEqual(['queue']);
  });

  test("tell whether the queue's Redis may evict jobs", async () => {
    const { server, app } = await serve({});
    const { journal } = app.connection;
    const facts = journal?.facts.bind(journal);
    if (!journal || !facts) throw new Error('the queue is not in Redis');
    for (const [policy, value] of [
      ['noeviction', 0],
      ['allkeys-lru', 1],
      ['volatile-ttl', 1],
    ] as const) {
      journal.facts = async () => ({ ...(await facts()), policy });
      await until(`the gauge to tell of ${policy}`, async () => {
        return valueOf(await scrape(server), 'hybrid_cache_redis_may_evict', { server: 'queue' }) === value;
      });
    }
    const onPostgres = await scrape((await serve({ QUEUE_BACKEND: 'postgres' })).server);
    const samples = onPostgres.get('hybrid_cache_redis_may_evict')?.samples ?? [];
    expect(samples.map(({ labels }) => labels.server)).toEqual(['cache']);
  });

  test('begin at zero where an alert waits for growth', async () => {
    const { server } = await serve({}, false);
    const families = await scrape(server);
    for (const queue of QUEUE_NAMES) {
      for (const result of ['failed', 'stalled']) {
        expect(valueOf(families, 'job_attempts_total', { queue, result })).toBe(0);
      }
    }
    const errors = (labels: Record<string, string>) => valueOf(families, 'hybrid_cache_tier_errors_total', labels);
    expect(errors({ tier: 'redis', operation: 'write', reason: 'full' })).toBe(0);
    for (const tier of ['redis', 'postgres']) {
      expect(errors({ tier, operation: 'read', reason: 'corrupt' })).toBe(0);
      expect(errors({ tier, operation: 'write', reason: 'wrong' })).toBe(0);
    }
  });

  test.each(['redis', 'postgres'])(
    'count the jobs that lost their worker, in the process that finds them: %s',
    async (backend) => {
      const { server, app } = await serve({ QUEUE_BACKEND: backend }, false);
      const finder = app.backend.worker('crawl', async () => ({}), 1);
      onTestFinished(() => finder.close());
      // As BullMQ tells it once a lock has ended; that it does is the queues' test.
      finder.emit('stalled', 'some-job', 'active');
      const families = await scrape(server);
      expect(valueOf(families, 'job_attempts_total', { queue: 'crawl', result: 'stalled' })).toBe(1);
      expect(valueOf(families, 'job_attempts_total', { queue: 'embedding', result: 'stalled' })).toBe(0);
      expect(world.logs).toContainEqual(
        expect.objectContaining({ msg: 'job lost its worker and runs again', jobId: 'some-job', queue: 'crawl' }),
      );
    },
  );

  test('hold no tenant, URL or job id', async () => {
    const { server, app } = await serve({});
    startWork(app, async () => ({ outcome: 'stored' }));
    const secret = image('metric-secret', { tenantId: 'tenant-secret' });
    const [id] = await app.queues.enqueue(crawlQueue, [secret]);
    await until('the job is completed', async () => (await app.queues.job('crawl', String(id)))?.state === 'completed');
    const { body } = await server.inject('/metrics');
    const labels = { queue: 'crawl', outcome: 'stored' };
    expect(valueOf(parseExposition(body), 'job_duration_seconds_count', labels)).toBe(1);
    expect(body).not.toMatch(/secret/);
    expect(body).not.toContain(id);
  });

  test('of a process that only works hold no gauge read from the store, and it serves no API', async () => {
    const { server } = await serve({}, false);
    const families = await scrape(server);
    expect(families.has('bullmq_job_count')).toBe(false);
    expect(families.has('queue_oldest_waiting_seconds')).toBe(false);
    expect(families.has('hybrid_cache_redis_memory_bytes')).toBe(false);
    expect(families.has('job_attempts_total')).toBe(true);
    for (const url of ['/healthz', '/readyz']) expect((await server.inject(url)).statusCode).toBe(200);
    for (const url of ['/dashboard', '/v1/jobs/crawl/1']) expect((await server.inject(url)).statusCode).toBe(404);
  });
});
