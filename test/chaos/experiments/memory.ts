/** One Redis for cache and queue that has little memory, or evicts. */
import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { toConfig } from '../../../src/config.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { createLogger } from '../../../src/logger.js';
import { parseInfo } from '../../../src/redis-info.js';
import { until } from '../../support/until.js';
import { openChaosApp } from '../app.js';
import { type Experiment, hold, inLab, must, mustNotBe } from '../experiment.js';
import { counted } from '../figures.js';
import type { Lab } from '../lab.js';

const MB = 1024 * 1024;
const VALUE_BYTES = 100_000;
const WRITES_AT_ONCE = 20;
/** What the cache may use, of the limit, and what it may be beyond that; see `memory-budget.ts`. */
const SHARE = 0.7;
const SLACK = 0.05;
const LOOK_MS = 300;

/** Looks at Redis until it is stopped. @returns the most that it used, and that the cache's entries did, in bytes */
function watchMemory({ servers }: Lab): () => Promise<{ used: number; cached: number }> {
  const most = { used: 0, cached: 0 };
  let stopped = false;
  const watching = servers.redis(async (redis) => {
    while (!stopped) {
      const keys = await redis.keys('hc:*'); // a few hundred of them, and a Redis of our own
      const lookAt = redis.pipeline();
      for (const key of keys) lookAt.memory('USAGE', key);
      const sizes = (await lookAt.exec()) ?? [];
      const used = Number(parseInfo(await redis.info('memory')).used_memory);
      const cached = sizes.reduce((sum, [, bytes]) => sum + Number(bytes ?? 0), 0);
      Object.assign(most, { used: Math.max(most.used, used), cached: Math.max(most.cached, cached) });
      await pause(LOOK_MS);
    }
  });
  return async () => {
    stopped = true;
    await watching;
    return most;
  };
}

const FULL_UP: Experiment = {
  id: 'E15',
  title: 'the cache writes three times the memory of the Redis in which jobs wait',
  backends: ['redis'],
  run: (trial) =>
    inLab(trial, {}, async (lab) => {
      const { jobs, limit } = trial.full ? { jobs: 5_000, limit: 40 * MB } : { jobs: 150, limit: 12 * MB };
      const { cache, metrics } = lab.app;
      await lab.servers.redis((redis) => redis.config('SET', 'maxmemory', String(limit)));
      let offered = 0;
      const next = (count: number) => Array.from({ length: count }, () => lab.origin.imageUrl(offered++));
      await lab.enqueue(next(jobs));
      const [{ waiting = 0, prioritized = 0 }, stopWatching] = [await lab.app.queues.counts('crawl'), watchMemory(lab)];
      must(waiting + prioritized === jobs, `${waiting + prioritized} jobs wait, and not ${jobs}`);
      const content = (i: number) => sha256(`pressure ${i}`);
      const values = new Map<number, string>();
      const writes = Math.ceil((3 * limit) / VALUE_BYTES);
      for (let i = 0; i < writes; i += WRITES_AT_ONCE) {
        // In the middle of it the jobs begin to run, and further ones are added all the time.
        if (i >= writes / 2 && lab.workers.size === 0) await lab.workersOf(2);
        const batch = Array.from({ length: WRITES_AT_ONCE }, (_, n) => {
          const value = randomBytes(VALUE_BYTES / 2).toString('hex');
          if (n === 0) values.set(i, value);
          return cache.cacheSearchResults(content(i + n), 'pressure', 1, [value]);
        });
        const [kept] = await Promise.all([Promise.all(batch), lab.offer(next(1))]);
        must(kept.every(Boolean), 'a write was not durable, with PostgreSQL there');
      }
      await lab.settled(15 * 60_000);
      const { used, cached } = await stopWatching();
      const [full, stats] = await Promise.all([
        metrics.registry.metrics().then((text) => counted([text], 'hybrid_cache_tier_errors_total', 'reason="full"')),
        lab.servers.redis((redis) => redis.info('errorstats')),
      ]);
      must(full > 0, 'the cache never stopped writing: nothing was tried');
      must(!/errorstat_OOM/.test(stats), `Redis refused commands for want of memory: ${stats}`);
      must(cached <= (SHARE + SLACK) * limit, `the cache used ${cached} bytes of ${limit}`);
      for (const [i, value] of values) {
        const [found] = (await cache.getCachedSearchResults(content(i), 'pressure', 1)) ?? [];
        must(found === value, `I4 entry ${i} is not what was written`);
      }
      const figures = hold(await lab.check({ metrics: () => lab.metrics() }), {
        'entries not cached': full,
        'cache, % of limit': (100 * cached) / limit,
        'used, % of limit': (100 * used) / limit,
      });
      must(figures.stored === figures.accepted, 'I1 not every job stored its image');
      // Refused for want of memory was none; on a busy machine an answer may be late.
      mustNotBe(trial, 'jobs that were refused', lab.refused);
      return figures;
    }),
};

const WATCHED_MS = 60_000;
const AT_RISK = "the queue's Redis may evict jobs";

/** Levels of the warnings among these lines, each with its policy. */
function warnings(lines: readonly string[]): string[] {
  return lines.flatMap((line) => {
    const { level, policy, msg } = JSON.parse(line) as Record<string, string>;
    return msg?.startsWith(AT_RISK) ? [`${level} ${policy}`] : [];
  });
}

/** What the API's metrics say of the Redis of the queue. */
async function mayEvict(api: string): Promise<number> {
  const response = await fetch(`${api}/metrics`);
  const series = /^hybrid_cache_redis_may_evict\{server="queue"\} (\d)$/m.exec(await response.text());
  must(series !== null, 'the metrics do not say whether the queue may be evicted');
  return Number(series?.[1]);
}

/** A new process' write without PostgreSQL: whether the library calls it durable. */
async function writesWithoutPostgres({ env }: Lab, key: string, tries: number): Promise<boolean[]> {
  const app = openChaosApp(toConfig(env), { logger: createLogger('silent') });
  try {
    const answers: boolean[] = [];
    while (answers.length < tries && !answers.includes(true)) {
      answers.push(await app.cache.cachePerceptualHash(sha256(key), 'journal', '00000000000000aa'));
    }
    must(!app.connection.tiers.postgres.guard.isUp, 'the library did not notice that PostgreSQL was away');
    return answers;
  } finally {
    await app.close();
  }
}

const EVICTING: Experiment = {
  id: 'E16',
  title: 'the Redis of the queue evicts: at the start, and from some moment on',
  backends: ['redis'],
  mostlyWaits: true,
  run: (trial) =>
    inLab(trial, { env: { LOG_LEVEL: 'warn' } }, async (lab) => {
      const set = (name: string, value: string) => lab.servers.redis((redis) => redis.config('SET', name, value));
      const journaled = () => lab.servers.redis((redis) => redis.xlen('hc:replay'));
      const lines: Record<'unlimited' | 'limited' | 'changed', string[]> = { unlimited: [], limited: [], changed: [] };
      const worker = (name: keyof typeof lines) => lab.worker({ onLine: (line) => lines[name].push(line) });
      const api = await lab.serve();
      await until('the metric to say that nothing evicts', async () => (await mayEvict(api)) === 0);
      await set('maxmemory-policy', 'allkeys-lru');
      await until('the metric to say so of the queue', async () => (await mayEvict(api)) === 1, 2 * WATCHED_MS);
      const said = (name: keyof typeof lines) => warnings(lines[name]).join();
      await worker('unlimited');
      await until('a warning', () => said('unlimited') === 'warn allkeys-lru');
      await set('maxmemory', String(100 * MB));
      await worker('limited');
      await until('a louder one where there is a limit', () => said('limited') === 'error allkeys-lru');

      await lab.servers.kill('postgres');
      must(
        (await writesWithoutPostgres(lab, 'evicting', 5)).every((kept) => !kept),
        'a write was called durable that Redis may evict',
      );
      must((await journaled()) === 0, 'a write was journaled where it may be evicted');
      await set('maxmemory-policy', 'noeviction');
      must(
        (await writesWithoutPostgres(lab, 'keeping', 20)).includes(true),
        'nothing was journaled where nothing evicts',
      );
      must((await journaled()) > 0, 'a write was called durable, and the journal is empty');
      await lab.servers.restart('postgres');

      await worker('changed');
      await pause(3_000); // it has looked by now
      must(said('changed') === '', `it warned where nothing evicts: ${said('changed')}`);
      await set('maxmemory-policy', 'allkeys-lru');
      await until('a warning of the change', () => said('changed') === 'error allkeys-lru', 2 * WATCHED_MS);
      await lab.enqueue(Array.from({ length: trial.full ? 1_000 : 50 }, (_, i) => lab.origin.imageUrl(i)));
      await lab.settled();
      await until('what was journaled to be replayed', async () => (await journaled()) === 0);
      const figures = hold(await lab.check({ metrics: () => lab.metrics() }));
      const rows = await lab.servers.sql<{ hash: string }>(
        `select content_hash as hash from perceptual_hash_cache where tenant_id = 'journal'`,
      );
      must(rows.map(({ hash }) => hash).join() === sha256('keeping'), 'I4 PostgreSQL has not what was called durable');
      return figures;
    }),
};

export const MEMORY_EXPERIMENTS = [EVICTING, FULL_UP];
