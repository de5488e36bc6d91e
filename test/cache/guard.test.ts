/** The guard between dead and merely unable, on a real server that is made unable. */
import { setTimeout as pause } from 'node:timers/promises';
import { Client } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { lookup } from '../../src/cache/tier.js';
import { rejections } from '../../src/kinds/crawl.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';
import { counted } from './support.js';

/** Most of what a look-up may take, and not so much that the server gives it up. */
const LONG_MS = 1_800;
const HASH = 'a'.repeat(64);

let world: World;
let app: App;

beforeAll(async () => {
  world = await createWorld();
  app = world.app({ REDIS_URL: 'none' });
});

afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

const read = async (kind: typeof rejections | typeof perceptualHashes) => {
  const [answer] = await app.connection.hybrid.readMany([lookup<string, unknown>('acme', kind, HASH)]);
  return answer?.state;
};

test('a lock on one table does not take the tier away from the others [M19]', async () => {
  const blocker = new Client({ connectionString: world.databaseUrl });
  await blocker.connect();
  await blocker.query('begin; lock table rejection_cache in access exclusive mode');
  try {
    const held = read(rejections);
    expect(await read(perceptualHashes)).toBe('miss');
    expect(await held).toBe('unknown');
    expect(app.connection.tiers.postgres.guard.isUp).toBe(true);
    expect(await read(perceptualHashes)).toBe('miss');
  } finally {
    await blocker.end();
  }
  await until('the table to be free', async () => (await read(rejections)) === 'miss');
  const lines = world.logs.filter(({ msg }) => msg === 'tier could not serve an operation');
  expect(lines).toHaveLength(1);
  expect(world.logs.filter(({ msg }) => String(msg).startsWith('PostgreSQL cache unavailable'))).toEqual([]);
});

test('a connection that PostgreSQL ends is no outage: a look-up goes on with another, a write is not durable', async () => {
  world.logs.length = 0;
  const blocker = new Client({ connectionString: world.databaseUrl });
  await blocker.connect();
  const endTheWaiting = () =>
    until('a connection to wait for the blocker', async () => {
      const { rows } = await app.connection.pool.query(
        `select pg_terminate_backend(pid) from pg_stat_activity
           where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0`,
      );
      return rows.length > 0;
    });
  try {
    await blocker.query('begin; lock table perceptual_hash_cache in access exclusive mode');
    const written = app.cache.cachePerceptualHash(HASH, 'ended', 'f'.repeat(16));
    await endTheWaiting();
    expect(await written).toBe(false);
    const asked = read(perceptualHashes);
    await endTheWaiting();
    await blocker.query('commit');
    expect(await asked).toBe('miss');
  } finally {
    await blocker.end();
  }
  expect(await app.cache.cachePerceptualHash(HASH, 'ended', 'f'.repeat(16))).toBe(true);
  expect(world.logs.filter(({ msg }) => /available/.test(String(msg)))).toEqual([]);
});

test('who waited in vain to be told of a URL does not wait again to record it', async () => {
  const both = world.app();
  const bytes = Buffer.from('bytes under two URLs');
  const url = 'https://example.com/first.jpg';
  expect(await both.cache.storeCrawledImage(url, bytes, { rawKey: 'raw/1' }, 'acme')).toBe(true);
  const blocker = new Client({ connectionString: world.databaseUrl });
  await blocker.connect();
  await blocker.query('begin; lock table crawl_cache in access exclusive mode');
  try {
    // Redis has the content, and nobody can say whether the other URL is known.
    const answer = await both.cache.shouldSkipCrawledImage(`${url}?other`, bytes, 'acme');
    expect(answer).toEqual({ shouldSkip: true, rawKey: 'raw/1', reason: 'content' });
    expect(await counted(both.metrics.tierErrors, { tier: 'postgres', operation: 'read' })).toBe(1);
    expect(await counted(both.metrics.tierErrors, { tier: 'postgres', operation: 'write' })).toBe(0);
  } finally {
    await blocker.end();
  }
});

test('who waited long to be told of an image does not wait as long again for its URL to be recorded', async () => {
  const both = world.app();
  const bytes = Buffer.from('bytes that are asked for while the table is locked');
  const url = 'https://example.com/long.jpg';
  expect(await both.cache.storeCrawledImage(url, bytes, { rawKey: 'raw/2' }, 'acme')).toBe(true);
  const [forAll, forWriters] = [1, 2].map(() => new Client({ connectionString: world.databaseUrl })) as [
    Client,
    Client,
  ];
  await Promise.all([forAll.connect(), forWriters.connect()]);
  const waiting = async () => {
    const { rows } = await app.connection.pool.query(
      `select query from pg_stat_activity where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0`,
    );
    return rows.length;
  };
  try {
    await forAll.query('begin; lock table crawl_cache in access exclusive mode');
    const answer = both.cache.shouldSkipCrawledImage(`${url}?other`, bytes, 'acme');
    await until('the look-up to wait', async () => (await waiting()) === 1);
    const taken = forWriters.query('begin; lock table crawl_cache in share mode');
    await pause(LONG_MS);
    await forAll.query('commit');
    await taken;
    expect(await answer).toEqual({ shouldSkip: true, rawKey: 'raw/2', reason: 'content' });
    expect(await waiting()).toBe(1);
  } finally {
    await Promise.all([forAll.end(), forWriters.end()]);
  }
});

test('a server that only reads is not flapped at: writes are not durable, reads go on, and it is said once', async () => {
  world.logs.length = 0;
  await app.connection.pool.query(`alter database ${world.namespace} set default_transaction_read_only = on`);
  const readOnly = world.app({ REDIS_URL: 'none' });
  const durable = () => readOnly.cache.cachePerceptualHash(HASH, 'acme', 'f'.repeat(16));
  expect([await durable(), await durable(), await durable()]).toEqual([false, false, false]);
  expect(await readOnly.cache.getCachedPerceptualHash(HASH, 'acme')).toBeNull();
  expect(readOnly.connection.tiers.postgres.guard.isUp).toBe(true);
  expect(world.logs.filter(({ level }) => level === 'warn' || level === 'error')).toHaveLength(1);
  await app.connection.pool.query(
    `set default_transaction_read_only = off; alter database ${world.namespace} reset default_transaction_read_only`,
  );
});
