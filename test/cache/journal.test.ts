/** Writes made while PostgreSQL is away: kept in the queue's Redis, and carried out when it is back. */
import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { entry } from '../../src/cache/tier.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { factsOf } from '../../src/redis-info.js';
import { FACE, ODD_FACE } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { noticed, recovered, Servers } from './chaos-support.js';
import { freshTenant, messages, type OpenCache } from './support.js';

const HASH = sha256('journal');
const POSTGRES_QUEUE = { QUEUE_BACKEND: 'postgres' };

let servers: Servers;
let a: OpenCache;
let tenant: string;

beforeAll(async () => {
  servers = await Servers.start();
});

afterAll(() => servers[Symbol.asyncDispose]());

beforeEach(async () => {
  tenant = freshTenant();
  a = servers.open();
});

afterEach(async () => {
  await servers.heal();
  await servers.redis((redis) => redis.del(stream(), `${stream()}:refused`));
});

const stream = () => `${servers.prefix}:replay`;
const pending = (cache: OpenCache) => cache.connection.journal?.pending();
const phash = ({ service }: OpenCache, hash = HASH) => service.getCachedPerceptualHash(hash, tenant);
const write = ({ service }: OpenCache, value: string, hash = HASH) => service.cachePerceptualHash(hash, tenant, value);

/** Kills PostgreSQL, and has these processes know it. */
async function postgresDies(...caches: OpenCache[]): Promise<void> {
  await servers.kill('postgres');
  await noticed('postgres', ...caches);
}

/** PostgreSQL is back for these processes, and has everything. */
async function postgresReturns(...caches: OpenCache[]): Promise<void> {
  await servers.restart('postgres');
  await recovered(...caches);
}

/** What PostgreSQL has, read by a process that knows nothing else. */
async function inPostgres(hash = HASH): Promise<string | null> {
  const plain = servers.openWithoutRedis();
  return phash(plain, hash);
}

/** Puts a write into the journal with a stamp of one's own choice. */
const keep = (cache: OpenCache, value: string, stamp: { generation: number; version: number }, hash = HASH) =>
  cache.connection.journal?.keep([{ ...entry(tenant, perceptualHashes, hash, value), ...stamp }]);

test('PostgreSQL is killed: writes are durable and served, and are in PostgreSQL when it is back [M5] [M20]', async () => {
  await postgresDies(a);
  expect(await a.service.cacheFaceEmbeddings(HASH, tenant, [FACE, ODD_FACE])).toBe(true);
  expect(await a.service.cacheFaceDetection(HASH, tenant, [])).toBe(true);
  expect(await a.service.cachePerceptualHash(HASH, tenant, 'opaque')).toBe(true);
  expect(await a.service.cacheSearchResults(HASH, tenant, 3, [{ id: 'x', score: 0.1 }, null])).toBe(true);
  expect(await pending(a)).toBe(4);
  const read = async ({ service }: OpenCache) => [
    await service.getCachedFaceEmbeddings(HASH, tenant),
    await service.getCachedFaceDetection(HASH, tenant),
    await service.getCachedPerceptualHash(HASH, tenant),
    await service.getCachedSearchResults(HASH, tenant, 3),
  ];
  const written = [[FACE, ODD_FACE], [], 'opaque', [{ id: 'x', score: 0.1 }, null]];
  const other = servers.open();
  expect(await read(a)).toEqual(written);
  expect(await read(other)).toEqual(written);

  await postgresReturns(a, other);
  expect(await read(servers.openWithoutRedis())).toEqual(written);
  expect([await read(a), await read(other)]).toEqual([written, written]);
  expect(messages([...a.logs, ...other.logs])).toContain('replayed writes to PostgreSQL');
});

test('of what was overwritten meanwhile, the last value is replayed', async () => {
  const b = servers.open();
  const other = sha256('other');
  expect(await write(a, 'before')).toBe(true);
  expect(await phash(b)).toBe('before');
  await postgresDies(a, b);
  expect(await write(a, 'first')).toBe(true);
  expect(await write(b, 'only', other)).toBe(true);
  expect(await write(b, 'second')).toBe(true);
  expect(await write(a, 'third')).toBe(true);
  expect([await phash(a), await phash(b)]).toEqual(['third', 'third']);
  await postgresReturns(a, b);
  expect([await inPostgres(), await inPostgres(other)]).toEqual(['third', 'only']);
  expect([await phash(a), await phash(b)]).toEqual(['third', 'third']);
});

test('of one entry, the later version is replayed and not what happened to reach the journal last', async () => {
  await phash(a);
  await postgresDies(a);
  const now = Date.now() * 1_000;
  expect(await keep(a, 'later', { generation: 1, version: now + 1 })).toBe(true);
  expect(await keep(a, 'earlier', { generation: 1, version: now })).toBe(true);
  await postgresReturns(a);
  expect([await phash(a), await inPostgres()]).toEqual(['later', 'later']);
});

test('two processes that overwrite one entry at once leave both tiers equal', async () => {
  const b = servers.open();
  await Promise.all([phash(a), phash(b)]);
  await postgresDies(a, b);
  const writes = Array.from({ length: 40 }, (_, i) => write(i % 2 ? a : b, `value ${i}`));
  expect(await Promise.all(writes)).toEqual(writes.map(() => true));
  const hot = await phash(a);
  expect(await phash(b)).toBe(hot);
  await postgresReturns(a, b);
  expect([await inPostgres(), await phash(a), await phash(b)]).toEqual([hot, hot, hot]);
});

test('more writes than one batch holds are all replayed, once', async () => {
  await phash(a);
  await postgresDies(a);
  const hashes = Array.from({ length: 250 }, (_, i) => sha256(`many ${i}`));
  const written = await Promise.all(hashes.map((hash) => write(a, hash.slice(0, 16), hash)));
  expect(written).toEqual(hashes.map(() => true));
  expect(await pending(a)).toBe(250);
  await postgresReturns(a);
  const plain = servers.openWithoutRedis();
  expect(await plain.service.getCachedPerceptualHashBatch(hashes, tenant)).toEqual(hashes.map((h) => h.slice(0, 16)));
});

test('PostgreSQL freezes with a write in its ears: what was written later stays, in both tiers', async () => {
  expect(await write(a, 'before')).toBe(true);
  await servers.freeze('postgres');
  expect(await write(a, 'first')).toBe(true); // after the deadline: PostgreSQL has it in its socket
  expect(await write(a, 'second')).toBe(true);
  expect(await phash(a)).toBe('second');
  await servers.thaw('postgres');
  await recovered(a);
  expect([await phash(a), await inPostgres()]).toEqual(['second', 'second']);
  expect(await write(a, 'third')).toBe(true);
  expect([await phash(a), await inPostgres()]).toEqual(['third', 'third']);
});

test('a newer value, written by another process before the replay, is not replaced, and is what Redis serves', async () => {
  const link = await servers.link('postgres');
  const cut = servers.open({ DATABASE_URL: link.url });
  const plain = servers.openWithoutRedis();
  await phash(cut);
  link.cut();
  await noticed('postgres', cut);
  const other = sha256('other');
  expect(await write(cut, 'away')).toBe(true);
  expect(await write(cut, 'away', other)).toBe(true);
  // One writer knows Redis, one does not; neither can know of the journal.
  expect(await write(a, 'newer', other)).toBe(true);
  expect(await write(plain, 'newer')).toBe(true);
  await link.mend();
  await recovered(cut);
  expect([await inPostgres(), await inPostgres(other)]).toEqual(['newer', 'newer']);
  await until(
    'every process to serve it',
    async () => {
      const values = await Promise.all([phash(a), phash(cut), phash(a, other), phash(cut, other)]);
      return values.every((value) => value === 'newer');
    },
    2_000,
  );
  for (let i = 0; i < 20; i++) expect([await phash(a), await phash(cut)]).toEqual(['newer', 'newer']);
});

test('a write of before an invalidation does not enter the generation after it', async () => {
  const link = await servers.link('postgres');
  const cut = servers.open({ DATABASE_URL: link.url });
  await phash(cut);
  link.cut();
  await noticed('postgres', cut);
  expect(await write(cut, 'away')).toBe(true);
  await a.service.invalidateTenantCache(tenant);
  await link.mend();
  await recovered(cut);
  expect([await phash(a), await phash(cut), await inPostgres()]).toEqual([null, null, null]);
});

test('a write of after an invalidation is kept, though its writer has not heard of it from PostgreSQL', async () => {
  const link = await servers.link('postgres');
  const cut = servers.open({ DATABASE_URL: link.url });
  expect(await write(a, 'old')).toBe(true);
  expect(await phash(cut)).toBe('old');
  link.cut();
  await noticed('postgres', cut);
  await a.service.invalidateTenantCache(tenant);
  expect(await write(cut, 'away')).toBe(true);
  expect(await phash(cut)).toBe('away');
  await link.mend();
  await recovered(cut);
  expect([await phash(a), await phash(cut), await inPostgres()]).toEqual(['away', 'away', 'away']);
});

test('a process that starts while PostgreSQL is away overwrites what it finds, and everyone sees it', async () => {
  expect(await write(a, 'before')).toBe(true);
  await postgresDies(a);
  const late = servers.open();
  expect(await write(late, 'away')).toBe(true);
  const unheard = sha256('unheard of');
  expect(await late.service.cachePerceptualHash(unheard, `${tenant}-new`, 'new')).toBe(true);
  expect(await late.service.getCachedPerceptualHash(unheard, `${tenant}-new`)).toBe('new');
  expect([await phash(late), await phash(a)]).toEqual(['away', 'away']);
  await postgresReturns(a, late);
  expect([await phash(late), await phash(a), await inPostgres()]).toEqual(['away', 'away', 'away']);
  const plain = servers.openWithoutRedis();
  expect(await plain.service.getCachedPerceptualHash(unheard, `${tenant}-new`)).toBe('new');
});

test('a process that is gone before the replay leaves it to the others', async () => {
  const link = await servers.link('postgres');
  const gone = servers.open({ DATABASE_URL: link.url });
  await phash(gone);
  link.cut();
  await noticed('postgres', gone);
  expect(await write(gone, 'left behind')).toBe(true);
  await servers.close(gone);
  expect(await inPostgres()).toBeNull();
  const next = servers.open();
  await phash(next, sha256('anything'));
  await recovered(next);
  expect(await inPostgres()).toBe('left behind');
});

test('what PostgreSQL refuses, or nobody can read, is set aside and holds up nothing', async () => {
  await phash(a);
  await postgresDies(a);
  expect(await write(a, 'before it')).toBe(true);
  // A NUL is what PostgreSQL's text cannot hold, and our own checks would never let through.
  expect(await keep(a, 'refused', { generation: 1, version: 1 }, HASH)).toBe(true);
  await servers.redis(async (redis) => {
    const nul = {
      kind: 'perceptual_hash',
      format: 1,
      tenantId: `${tenant}\0`,
      parts: [HASH],
      generation: 1,
      version: 2,
    };
    await redis.xadd(stream(), '*', 'entry', JSON.stringify(nul), 'bytes', 'x');
    await redis.xadd(stream(), '*', 'entry', JSON.stringify({ ...nul, kind: 'of the future' }), 'bytes', 'x');
    await redis.xadd(stream(), '*', 'not', 'a record');
  });
  const after = sha256('after');
  expect(await write(a, 'after it', after)).toBe(true);
  await postgresReturns(a);
  expect([await inPostgres(), await inPostgres(after)]).toEqual(['before it', 'after it']);
  expect(await servers.redis((redis) => redis.xlen(`${stream()}:refused`))).toBe(3);
  const said = 'a write could not be replayed; it is kept aside in Redis';
  expect(messages(a.logs).filter((line) => line === said)).toHaveLength(3);
});

/** Served while PostgreSQL is away, and not called durable; when it is back, PostgreSQL alone decides. */
async function servedAndForgotten(cache: OpenCache): Promise<void> {
  const known = sha256('known');
  expect(await write(cache, 'in PostgreSQL', known)).toBe(true);
  await postgresDies(cache);
  expect(await write(cache, 'hot')).toBe(false);
  expect(await write(cache, 'hot', known)).toBe(false);
  expect([await phash(cache), await phash(cache, known)]).toEqual(['hot', 'hot']);
  await servers.restart('postgres');
  await until('PostgreSQL to be believed', async () => (await phash(cache)) === null);
  expect(await phash(cache, known)).toBe('in PostgreSQL');
  expect([await inPostgres(), await inPostgres(known)]).toEqual([null, 'in PostgreSQL']);
  expect(await write(cache, 'at last')).toBe(true);
  expect(await phash(cache)).toBe('at last');
}

test('the queue is in PostgreSQL: nothing is called durable while that is away', async () => {
  await servedAndForgotten(servers.open(POSTGRES_QUEUE));
});

test.each([
  ['not append-only', ['appendonly', 'no'], ['appendonly', 'yes']],
  ['one that evicts', ['maxmemory-policy', 'allkeys-lru'], ['maxmemory-policy', 'noeviction']],
] as const)(
  'the Redis of the queue is %s: nothing is called durable while PostgreSQL is away',
  async (_, set, reset) => {
    await servers.redis((redis) => redis.config('SET', ...set));
    try {
      const cache = servers.open();
      const said = () => messages(cache.logs).filter((line) => line.startsWith('writes made while PostgreSQL is away'));
      await phash(cache);
      await until('it to be said at the first use', () => said().length > 0);
      await servedAndForgotten(cache);
      expect(said()).toHaveLength(1);
    } finally {
      await servers.redis((redis) => redis.config('SET', ...reset));
    }
  },
);

test('the Redis of the queue is told to evict: from then on nothing is called durable', async () => {
  await postgresDies(a);
  expect(await write(a, 'kept')).toBe(true);
  await servers.redis((redis) => redis.config('SET', 'maxmemory-policy', 'allkeys-lru'));
  try {
    expect(await write(a, 'may go')).toBe(false);
  } finally {
    await servers.redis((redis) => redis.config('SET', 'maxmemory-policy', 'noeviction'));
  }
});

test('the Redis of the queue is almost full: nothing is called durable until it has room again', async () => {
  await postgresDies(a);
  await servers.redis((redis) => redis.set('filler', 'x'.repeat(20 * 2 ** 20)));
  const used = await servers.redis(async (redis) => factsOf(await redis.info()).usedMemory);
  const limited = (bytes: number) => servers.redis((redis) => redis.config('SET', 'maxmemory', String(bytes)));
  await limited(Math.round(used * 1.07));
  try {
    await write(a, 'the last that is taken'); // and by which it is seen
    expect(await write(a, 'jobs come first')).toBe(false);
    await limited(0);
    expect(await write(a, 'there is room')).toBe(true);
  } finally {
    await limited(0);
    await servers.redis((redis) => redis.del('filler'));
  }
});

test('the journal cannot be reached: nothing is called durable while PostgreSQL is away', async () => {
  const link = await servers.link('redis');
  const cache = servers.open({ QUEUE_REDIS_URL: link.url });
  await phash(cache);
  await postgresDies(cache);
  link.cut();
  expect(await write(cache, 'hot')).toBe(false);
  expect(await phash(cache)).toBe('hot');
});

test('hundreds of writes at once ask Redis together whether it has written them', async () => {
  const cache = servers.open();
  await postgresDies(cache);
  const hashes = Array.from({ length: 300 }, (_, n) => sha256(`${tenant} herd ${n}`));
  const asked = await infoCalls();
  const kept = await Promise.all(hashes.map((hash) => cache.service.cachePerceptualHash(hash, tenant, 'herd')));
  expect(kept).toContain(true);
  expect((await infoCalls()) - asked).toBeLessThan(100);
  await postgresReturns(cache);
  const found = await cache.service.getCachedPerceptualHashBatch(hashes, tenant);
  expect(found.filter((value, n) => kept[n] && value !== 'herd')).toEqual([]);
});

async function infoCalls(): Promise<number> {
  const stats = await servers.redis((redis) => redis.info('commandstats'));
  return Number(/cmdstat_info:calls=(\d+)/.exec(stats)?.[1] ?? 0);
}

test('Redis holds back what it should append: a write is durable once that is written', async () => {
  const link = await servers.link('redis');
  const cache = servers.open({ QUEUE_REDIS_URL: link.url });
  await postgresDies(cache);
  // Its fields in the order in which it tells them, an fsync under way and bytes in the buffer.
  const [idle, busy] = [
    'aof_buffer_length:0\r\naof_pending_bio_fsync:0',
    'aof_buffer_length:9\r\naof_pending_bio_fsync:1',
  ];
  link.misquote(idle, busy);
  expect(await write(cache, 'in the buffer')).toBe(false);
  link.misquote(busy, idle);
  expect(await write(cache, 'written')).toBe(true);
  await postgresReturns(cache);
  expect(await inPostgres()).toBe('written');
});

test('crawl records never reach Redis before PostgreSQL has them', async () => {
  await phash(a);
  await postgresDies(a);
  const [url, image] = [`https://example.com/${randomUUID()}.jpg`, Buffer.from(randomUUID())];
  expect(await a.service.storeCrawledImage(url, image, { rawKey: 'raw' }, tenant)).toBe(false);
  expect(await a.service.shouldSkipCrawledImage(url, image, tenant)).toMatchObject({ shouldSkip: false });
  const keys = await servers.redis((redis) => redis.keys(`${servers.prefix}:*${tenant}*`));
  expect(keys).toEqual([]);
  expect(await pending(a)).toBe(0);
});

test('a cache closes while the Redis of its journal is frozen in the middle of a replay', async () => {
  await phash(a);
  await servers.freeze('redis');
  a.connection.journal?.replay();
  await servers.close(a);
});
