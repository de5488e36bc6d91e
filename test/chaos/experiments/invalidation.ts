/** Tenants forgotten on purpose, while whatever could bring them back is under way. */
import { setTimeout as pause } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { ArgumentError, TierUnavailableError } from '../../../src/errors.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { until } from '../../support/until.js';
import { type Experiment, type Figures, hold, inLab, must, mustBeWithin, type Trial } from '../experiment.js';
import { counted } from '../figures.js';
import type { Lab } from '../lab.js';
import { AT_ONCE, Entries, ReaderProcess } from './invalidation-load.js';

/** Names that a pattern, a key or a queue could take for something else. */
const NAMES = ['crawl', 'a.b', 'x'.repeat(100), 'bull', 'hc', '..', '-', '_', 'generation', '0'];
/** Their neighbours, of whom nothing may go: prefixes, extensions, and what a pattern would match. */
const BYSTANDERS = ['craw', 'crawl2', 'crawl.a', 'a', 'aXb', 'a.b.c', 'x'.repeat(99), 'acme'];
const NOT_ALLOWED = [
  '*',
  'a:b',
  '[x]',
  'a*',
  'a?',
  '{a}',
  '😀',
  'x'.repeat(255),
  'x'.repeat(101),
  '',
  ' ',
  'a b',
  'a\n',
];
/** What the documents give other processes, and what a busy machine may take. */
const SECOND_MS = 1_000;
const PATIENCE_MS = 15_000;
const READ_AT_ONCE = 10;

const INVALIDATION: Experiment = {
  id: 'E11',
  title: 'tenants are invalidated while a tier is away, while backfills are in flight, and by two processes at once',
  backends: ['redis'],
  run: (trial) =>
    inLab(trial, {}, async (lab) => {
      const { count, tenants } = trial.full
        ? { count: 10_000, tenants: NAMES }
        : { count: 200, tenants: NAMES.slice(0, 3) };
      const entries = new Entries(lab, count);
      for (const tenantId of [...tenants, ...BYSTANDERS]) await entries.write(tenantId);
      await lab.enqueue(Array.from({ length: 100 }, (_, i) => lab.origin.imageUrl(i)));
      const queue = await lab.servers.redis(queueContents);
      must(queue.size > 100, 'the queue has no keys that could be touched');
      await refusals(lab);
      await using one = new ReaderProcess(lab, 'reader one');
      await using two = new ReaderProcess(lab, 'reader two');
      for (const reader of [one, two]) reader.read([...tenants, ...BYSTANDERS], entries.hashes);
      const run: Run = { trial, lab, entries, readers: [one, two], waits: [] };
      await until('the readers to have read', async () => Object.keys((await two.seen()).last).length > tenants.length);
      for (const [i, tenantId] of tenants.entries()) {
        // In CI each of the three has another fault; at full size everyone has all of them.
        for (const fault of trial.full ? FAULTS : FAULTS.slice(2 * i, 2 * i + 2)) {
          await fault(run, tenantId);
          await entries.write(tenantId);
        }
        trial.say(tenantId.slice(0, 20));
      }
      await byTwoAtOnce(run, tenants);
      await bystandersHaveAll(run);
      await deadIsDeleted(lab, tenants);
      const touched = await lab.servers.redis(queueContents);
      for (const [key, contents] of queue) must(touched.get(key) === contents, `${key} of the queue was touched`);
      const { reads } = await one.seen();
      await lab.worker();
      await lab.settled();
      const slowest = Math.max(...run.waits);
      const figures: Figures = { entries: count * tenants.length, reads, 'ms until others knew': slowest };
      return hold(await lab.check({ metrics: () => lab.metrics() }), figures);
    }),
};

interface Run {
  readonly trial: Trial;
  readonly lab: Lab;
  readonly entries: Entries;
  readonly readers: readonly ReaderProcess[];
  /** Milliseconds after an invalidation until other processes served nothing of it any more. */
  readonly waits: number[];
}

async function refusals({ app, servers }: Lab): Promise<void> {
  const generations = () => servers.sql('select * from cache_generations order by tenant_id');
  const before = JSON.stringify(await generations());
  const hash = sha256('entry 0');
  for (const tenantId of NOT_ALLOWED) {
    for (const attempt of [
      () => app.cache.invalidateTenantCache(tenantId),
      () => app.cache.cachePerceptualHash(hash, tenantId, 'f0'),
      () => app.cache.getCachedPerceptualHash(hash, tenantId),
    ]) {
      const error = await attempt().then(
        () => null,
        (thrown: unknown) => thrown,
      );
      must(error instanceof ArgumentError, `tenant ${JSON.stringify(tenantId)} was not refused, but ${String(error)}`);
    }
  }
  must(JSON.stringify(await generations()) === before, 'a refused tenant has changed something');
}

/** Nothing of the tenant here from now on, nor in any other process a second later. */
async function nothingIsLeft({ trial, entries, readers, waits }: Run, tenantId: string): Promise<void> {
  const resolved = Date.now();
  const found = await entries.found(tenantId);
  must(found === 0, `${found} entries of ${tenantId} were read after its invalidation`);
  await pause(SECOND_MS);
  const waited = readers.map(async (reader) => {
    const seen = async () => (await reader.seen()).last[tenantId] ?? 0;
    await until(
      'another process to serve nothing of the tenant',
      async () => {
        const before = await seen();
        await pause(SECOND_MS);
        return (await seen()) === before;
      },
      PATIENCE_MS,
    );
    return Math.max(0, (await seen()) - resolved);
  });
  for (const wait of await Promise.all(waited)) {
    waits.push(wait);
    mustBeWithin(trial, `milliseconds until others served nothing of ${tenantId}`, wait, SECOND_MS);
  }
  must((await entries.found(tenantId)) === 0, `entries of ${tenantId} came back`);
}

async function withoutPostgres({ lab, entries }: Run, tenantId: string): Promise<void> {
  const { guard } = lab.app.connection.tiers.postgres;
  const expected = await entries.found(tenantId);
  must(expected === entries.hashes.length, `only ${expected} entries of ${tenantId} are there`);
  await lab.servers.kill('postgres');
  const error = await lab.app.cache.invalidateTenantCache(tenantId).then(
    () => null,
    (thrown: unknown) => thrown,
  );
  must(error instanceof TierUnavailableError, `without PostgreSQL an invalidation ended with ${String(error)}`);
  const meanwhile = await entries.found(tenantId);
  await lab.servers.restart('postgres');
  await until('PostgreSQL to be seen again', () => guard.isUp);
  must(meanwhile === expected, `${expected - meanwhile} entries of ${tenantId} went, though nothing was done`);
  must((await entries.found(tenantId)) === expected, `entries of ${tenantId} went later, though nothing was done`);
}

async function withRedisAway(run: Run, tenantId: string, how: 'frozen' | 'killed'): Promise<void> {
  const { lab, entries } = run;
  must((await entries.found(tenantId)) > 0, `nothing of ${tenantId} is there`);
  // A kill loses what was not appended to the file yet.
  await pause(how === 'killed' ? 1_500 : 0);
  await (how === 'killed' ? lab.servers.kill('redis') : lab.servers.freeze('redis'));
  let gone: number;
  try {
    gone = await lab.app.cache.invalidateTenantCache(tenantId);
  } finally {
    await (how === 'killed' ? lab.servers.restart('redis') : lab.servers.thaw('redis'));
  }
  must(gone === entries.hashes.length, `an invalidation counted ${gone} entries of ${tenantId}`);
  await until('Redis to be seen again', () => lab.app.connection.tiers.redis?.guard.isUp ?? false);
  await nothingIsLeft(run, tenantId);
}

async function withBackfills(run: Run, tenantId: string): Promise<void> {
  const { lab, entries } = run;
  const backfills = async () => {
    const text = await lab.app.metrics.registry.metrics();
    return counted([text], 'hybrid_cache_backfills_total', 'kind="perceptual_hash"');
  };
  await lab.servers.redis(async (redis) => {
    const keys = entries.hashes.map((hash) => `hc:perceptual_hash:${tenantId}:${hash}`);
    for (let from = 0; from < keys.length; from += AT_ONCE) await redis.unlink(...keys.slice(from, from + AT_ONCE));
  });
  const { cache } = lab.app;
  const read = (some: readonly string[]) => cache.getCachedPerceptualHashBatch(some, tenantId);
  await read(entries.hashes.slice(0, READ_AT_ONCE)); // what a first read takes, those that count do not
  const before = await backfills();
  // A few at a time, so that some are on the way when it counts.
  const reading = readBy(READ_AT_ONCE, entries.hashes.slice(READ_AT_ONCE), read);
  const gone = await cache.invalidateTenantCache(tenantId);
  await reading;
  must(gone === entries.hashes.length, `an invalidation counted ${gone} entries of ${tenantId}`);
  await nothingIsLeft(run, tenantId);
  must((await backfills()) > before, 'no backfill was in flight: nothing was tried');
}

async function readBy(count: number, hashes: readonly string[], read: (some: readonly string[]) => Promise<unknown>) {
  for (let from = 0; from < hashes.length; from += count) await read(hashes.slice(from, from + count));
}

async function byTwoAtOnce(run: Run, tenants: readonly string[]): Promise<void> {
  const { lab, entries, readers } = run;
  const counts = await Promise.all(
    tenants.map((tenantId) =>
      Promise.all([
        lab.app.cache.invalidateTenantCache(tenantId),
        ...readers.map((reader) => reader.invalidate(tenantId)),
      ]),
    ),
  );
  counts.forEach((each, i) => {
    const sum = each.reduce<number>((all, count) => all + Number(count), 0);
    must(sum === entries.hashes.length, `${tenants[i]}: ${each.join(' and ')} entries were counted`);
  });
  await Promise.all(tenants.map((tenantId) => nothingIsLeft(run, tenantId)));
}

async function bystandersHaveAll({ entries, readers }: Run): Promise<void> {
  const now = Date.now();
  for (const tenantId of BYSTANDERS) {
    const found = await entries.found(tenantId);
    must(found === entries.hashes.length, `${tenantId} lost ${entries.hashes.length - found} entries of its own`);
    for (const reader of readers) {
      await until(`a reader to read of ${tenantId}`, async () => ((await reader.seen()).last[tenantId] ?? 0) >= now);
    }
  }
}

const FAULTS: readonly ((run: Run, tenantId: string) => Promise<void>)[] = [
  withoutPostgres,
  (run, tenantId) => withRedisAway(run, tenantId, 'frozen'),
  (run, tenantId) => withRedisAway(run, tenantId, 'killed'),
  withBackfills,
];

/** What nobody can reach is deleted from both tiers, later. */
async function deadIsDeleted({ servers }: Lab, tenants: readonly string[]): Promise<void> {
  await until(
    'what was invalidated to be deleted',
    async () => {
      const [row] = await servers.sql<{ dead: number }>(
        'select count(*)::int as dead from perceptual_hash_cache where tenant_id = any($1)',
        [tenants],
      );
      const names = await servers.redis((redis) => redis.keys('hc:perceptual_hash:*'));
      return row?.dead === 0 && !names.some((name) => tenants.includes(name.split(':')[2] ?? ''));
    },
    120_000,
  );
}

/** Every key of the queue, with what it holds. */
async function queueContents(redis: Redis): Promise<Map<string, string>> {
  const readers: Record<string, (key: string) => Promise<unknown>> = {
    string: (key) => redis.get(key),
    hash: async (key) => Object.entries(await redis.hgetall(key)).sort(),
    list: (key) => redis.lrange(key, 0, -1),
    zset: (key) => redis.zrange(key, 0, '-1', 'WITHSCORES'),
    set: async (key) => (await redis.smembers(key)).sort(),
    stream: (key) => redis.xrange(key, '-', '+'),
  };
  const contents = new Map<string, string>();
  for (const key of await redis.keys('bull:*')) {
    contents.set(key, JSON.stringify(await readers[await redis.type(key)]?.(key)));
  }
  return contents;
}

export const INVALIDATION_EXPERIMENTS = [INVALIDATION];
