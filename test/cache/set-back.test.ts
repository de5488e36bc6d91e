/** A PostgreSQL that was started on an older copy of its data, seen by a process that was there before. */
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { POLL_MS } from '../../src/cache/coherence.js';
import { sha256 } from '../../src/kinds/identity.js';
import { until } from '../support/until.js';
import { noticed, recovered, Servers } from './chaos-support.js';
import { freshTenant } from './support.js';

const HASH = sha256('restored');
const POSITION = "select (pg_current_wal_flush_lsn() - '0/0')::float8 as place";

let servers: Servers;

beforeAll(async () => {
  servers = await Servers.start();
});

afterAll(async () => {
  await servers[Symbol.asyncDispose]();
});

/** By then every process has been told what there is now. */
const polled = () => pause(2 * POLL_MS);
const place = async () => (await servers.sql<{ place: number }>(POSITION))[0]?.place as number;

test('what its copy does not have is not served, even where it has written more since than it had', async () => {
  const tenant = freshTenant();
  const link = await servers.link('postgres');
  const cache = servers.open({ DATABASE_URL: link.url });
  const get = () => cache.service.getCachedPerceptualHash(HASH, tenant);
  await cache.service.cachePerceptualHash(HASH, tenant, 'kept');
  const restore = await servers.copyPostgres();
  await recovered(cache);
  await polled();
  await cache.service.cachePerceptualHash(HASH, tenant, 'lost');
  await polled();
  const known = await place();

  link.cut();
  await servers.kill('postgres');
  await noticed('postgres', cache);
  await restore();
  await servers.restart('postgres');
  await servers.sql("create table filler as select repeat('x', 1000) from generate_series(1, 5000)");
  expect(await place()).toBeGreaterThan(known);
  await link.mend();
  await recovered(cache);
  await until('the older value to be served', async () => (await get()) === 'kept', 1_000);
});

test('what an earlier restore had left behind is not served after the next one brings its incarnation back', async () => {
  const tenant = freshTenant();
  const cache = servers.open();
  const get = () => cache.service.getCachedPerceptualHash(HASH, tenant);
  await cache.service.cachePerceptualHash(HASH, tenant, 'kept');
  const restore = await servers.copyPostgres();
  await recovered(cache);
  await cache.service.cachePerceptualHash(HASH, tenant, 'lost');
  const unasked = sha256('of the first time');
  await cache.service.cachePerceptualHash(unasked, tenant, 'lost');
  await polled();
  const setBack = async () => {
    await servers.kill('postgres');
    await noticed('postgres', cache);
    await restore();
    await servers.restart('postgres');
    await recovered(cache);
    await polled();
    expect(await get()).toBe('kept');
  };
  await setBack();
  await cache.service.cachePerceptualHash(HASH, tenant, 'of the second time');
  await polled();
  await setBack();
  expect(await cache.service.getCachedPerceptualHash(unasked, tenant)).toBeNull();
  const late = servers.openWithoutRedis();
  expect(await late.service.getCachedPerceptualHash(unasked, tenant)).toBeNull();
});

test('what was written without PostgreSQL, in a generation that a backup does not know, is kept', async () => {
  const tenant = freshTenant();
  const cache = servers.open();
  const get = () => cache.service.getCachedPerceptualHash(HASH, tenant);
  await cache.service.cachePerceptualHash(HASH, tenant, 'old');
  const restore = await servers.copyPostgres();
  await recovered(cache);
  await cache.service.invalidateTenantCache(tenant);
  await polled();
  await servers.kill('postgres');
  await noticed('postgres', cache);
  expect(await cache.service.cachePerceptualHash(HASH, tenant, 'away')).toBe(true);
  // It knows the tenant's generation from Redis alone, and PostgreSQL does not know it any more.
  const late = servers.open();
  expect(await late.service.getCachedPerceptualHash(HASH, tenant)).toBe('away');
  await restore();
  await servers.restart('postgres');
  await recovered(cache, late);
  await polled();
  expect([await get(), await late.service.getCachedPerceptualHash(HASH, tenant)]).toEqual(['away', 'away']);
  expect(await late.service.cachePerceptualHash(HASH, tenant, 'after')).toBe(true);
  expect([await get(), await late.service.getCachedPerceptualHash(HASH, tenant)]).toEqual(['after', 'after']);
});

test('a server that was killed, or shut down, and started again on what it had is the same: Redis is believed', async () => {
  const tenant = freshTenant();
  const cache = servers.open();
  for (const signal of ['SIGKILL', 'SIGQUIT'] as const) {
    await cache.service.cachePerceptualHash(HASH, tenant, signal);
    await polled();
    await servers.kill('postgres', signal);
    await noticed('postgres', cache);
    await servers.restart('postgres');
    await servers.sql('update perceptual_hash_cache set phash = $1', ['not asked for']);
    await recovered(cache);
    await polled();
    expect(await cache.service.getCachedPerceptualHash(HASH, tenant)).toBe(signal);
  }
});

test('a server that hides its log is another one whenever it was started', async () => {
  const tenant = freshTenant();
  await servers.sql('alter function cache_history rename to told_history');
  await servers.sql(`create function cache_history(
      out incarnation text, out begun_under text, out started_at text, out started_from text, out timeline text,
      out log_position text)
    language sql stable as 'select incarnation, begun_under, started_at, null, null, null from told_history()'`);
  const cache = servers.open();
  const get = () => cache.service.getCachedPerceptualHash(HASH, tenant);
  await cache.service.cachePerceptualHash(HASH, tenant, 'before');
  await servers.sql('update perceptual_hash_cache set phash = $1 where tenant_id = $2', ['after', tenant]);
  await polled();
  expect(await get()).toBe('before');
  await servers.kill('postgres');
  await noticed('postgres', cache);
  await servers.restart('postgres');
  await recovered(cache);
  await until('what PostgreSQL has to be served', async () => (await get()) === 'after', 1_000);
});
