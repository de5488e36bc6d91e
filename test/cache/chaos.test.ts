import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { sha256 } from '../../src/kinds/identity.js';
import { until } from '../support/until.js';
import { noticed, recovered, Servers } from './chaos-support.js';
import { freshTenant } from './support.js';

let servers: Servers;
beforeAll(async () => {
  servers = await Servers.start();
});
afterAll(() => servers[Symbol.asyncDispose]());
afterEach(() => servers.heal());
const H = sha256('x');

test('frozen PG late statement', async () => {
  const a = servers.open();
  const plain = servers.openWithoutRedis();
  const t = freshTenant();
  expect(await a.service.cachePerceptualHash(H, t, 'v0')).toBe(true);
  await servers.freeze('postgres');
  expect(await a.service.cachePerceptualHash(H, t, 'v1')).toBe(true);
  expect(await a.service.cachePerceptualHash(H, t, 'v2')).toBe(true);
  expect(await a.service.getCachedPerceptualHash(H, t)).toBe('v2');
  await servers.thaw('postgres');
  await recovered(a);
  expect([await a.service.getCachedPerceptualHash(H, t), await plain.service.getCachedPerceptualHash(H, t)]).toEqual([
    'v2',
    'v2',
  ]);
});

test('process cut off from PG, tenant invalidated by other', async () => {
  const link = await servers.link('postgres');
  const a = servers.open();
  const b = servers.open({ DATABASE_URL: link.url });
  const t = freshTenant();
  expect(await a.service.cachePerceptualHash(H, t, 'v0')).toBe(true);
  expect(await b.service.getCachedPerceptualHash(H, t)).toBe('v0');
  link.cut();
  await noticed('postgres', b);
  await a.service.invalidateTenantCache(t);
  await until('b to know', async () => (await b.service.getCachedPerceptualHash(sha256('never'), t)) === null);
  expect(await b.service.cachePerceptualHash(H, t, 'v1')).toBe(true);
  expect(await b.service.getCachedPerceptualHash(H, t)).toBe('v1');
  await link.mend();
  await recovered(a, b);
  expect(await a.service.getCachedPerceptualHash(H, t)).toBe('v1');
});

test('a process that starts while PG is away overwrites', async () => {
  const a = servers.open();
  const t = freshTenant();
  expect(await a.service.cachePerceptualHash(H, t, 'v0')).toBe(true);
  await servers.kill('postgres');
  await noticed('postgres', a);
  const b = servers.open();
  expect(await b.service.cachePerceptualHash(H, t, 'v1')).toBe(true);
  expect([await a.service.getCachedPerceptualHash(H, t), await b.service.getCachedPerceptualHash(H, t)]).toEqual([
    'v1',
    'v1',
  ]);
  await servers.restart('postgres');
  await recovered(a, b);
  expect([await a.service.getCachedPerceptualHash(H, t), await b.service.getCachedPerceptualHash(H, t)]).toEqual([
    'v1',
    'v1',
  ]);
});

test('newer value of a Redis-less process before the replay', async () => {
  const a = servers.open();
  const plain = servers.openWithoutRedis();
  const t = freshTenant();
  await a.service.getCachedPerceptualHash(H, t);
  await servers.kill('postgres');
  await noticed('postgres', a);
  expect(await a.service.cachePerceptualHash(H, t, 'journaled')).toBe(true);
  // replay held off: the record is put back afterwards
  await servers.freeze('redis');
  await noticed('redis', a);
  await servers.restart('postgres');
  await until('x', () => plain.service.cachePerceptualHash(H, t, 'newer'));
  await servers.thaw('redis');
  await recovered(a);
  await new Promise((r) => setTimeout(r, 1000));
  expect([await a.service.getCachedPerceptualHash(H, t), await plain.service.getCachedPerceptualHash(H, t)]).toEqual([
    'newer',
    'newer',
  ]);
});

test('frozen redis: cache closes while a replay hangs', async () => {
  const a = servers.open();
  const t = freshTenant();
  await a.service.getCachedPerceptualHash(H, t);
  await servers.freeze('redis');
  a.connection.journal?.replay();
  const closed = await Promise.race([
    servers.close(a).then(() => true),
    new Promise((r) => setTimeout(() => r(false), 5000)),
  ]);
  expect(closed).toBe(true);
});

test('order in the journal', async () => {
  const a = servers.open();
  const t = freshTenant();
  await a.service.getCachedPerceptualHash(H, t);
  const { entry } = await import('../../src/cache/tier.js');
  const { perceptualHashes } = await import('../../src/kinds/perceptual-hash.js');
  const at = Date.now() * 1000;
  await servers.kill('postgres');
  await noticed('postgres', a);
  const rec = (value: string, version: number) => ({ ...entry(t, perceptualHashes, H, value), generation: 1, version });
  expect(await a.connection.journal?.keep([rec('later', at + 1)])).toBe(true);
  expect(await a.connection.journal?.keep([rec('earlier', at)])).toBe(true);
  await servers.restart('postgres');
  await recovered(a);
  expect(await a.service.getCachedPerceptualHash(H, t)).toBe('later');
});
