/** The hot tier, on a real Redis. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { RedisTier } from '../../src/cache/redis-tier.js';
import { type Entry, entry, lookup } from '../../src/cache/tier.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { createLogger } from '../../src/logger.js';
import { examples } from '../kinds/examples.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { Relay } from './relay.js';
import { freshTenant } from './support.js';
import { tierSuite } from './tier-suite.js';

let world: World;
const log = createLogger('silent');

beforeAll(async () => {
  world = await createWorld();
});

afterAll(() => world[Symbol.asyncDispose]());

function tierAt(url: string): RedisTier {
  return new RedisTier({ url, ttl: world.config().ttl, prefix: world.namespace }, log);
}

tierSuite(async () => {
  const relay = await Relay.to(world.redisUrl);
  const tier = tierAt(relay.url);
  const client = redisClient(world);
  return {
    tier,
    relay,
    damage: async (tenantId, one) => void (await client.set(tier.keyOf(tenantId, one), 'not ours', 'KEEPTTL')),
    [Symbol.asyncDispose]: async () => {
      await tier.close();
      client.disconnect();
      await relay[Symbol.asyncDispose]();
    },
  };
});

test('every key begins with the prefix and names kind, format and tenant', () => {
  const tier = tierAt(world.redisUrl);
  const [one] = examples() as [Entry];
  const [hash, model] = one.kind.key(one.key);
  expect(tier.keyOf('a.b', one)).toBe(`${world.namespace}:face_embedding:1:a.b:${hash}:${model}`);
});

test('lifetimes are the configured ones, within and up to ten percent either way', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const tenant = freshTenant();
  const many = Array.from({ length: 300 }, (_, i) => entry(perceptualHashes, sha256(`ttl ${i}`), `${i}`));
  await tier.write(tenant, many.slice(0, 150));
  await tier.backfill(tenant, many.slice(150));
  const left = await Promise.all(many.map((one) => client.pttl(tier.keyOf(tenant, one))));
  const share = left.map((ms) => ms / (world.config().ttl.phash * 1000));
  client.disconnect();
  await tier.close();
  expect(Math.max(...share)).toBeLessThanOrEqual(1.1);
  expect(Math.max(...share)).toBeGreaterThan(1.05);
  expect(Math.min(...share)).toBeLessThan(0.95);
  // A minute of slack for what has passed since the writing: the test would be over by then.
  expect(Math.min(...share)).toBeGreaterThan(0.9 - 60 / world.config().ttl.phash);
});

test('each kind has the lifetime that is configured for it', async () => {
  const ttl = { embedding: 1_000, search: 2_000, phash: 3_000, faceDetection: 4_000, crawl: 5_000 };
  const tier = new RedisTier({ url: world.redisUrl, ttl, prefix: world.namespace }, log);
  const client = redisClient(world);
  const tenant = freshTenant();
  await tier.write(tenant, examples());
  for (const one of examples()) {
    const seconds = (await client.pttl(tier.keyOf(tenant, one))) / 1000;
    expect(Math.round(seconds / 1000) * 1000, one.kind.name).toBe(ttl[one.kind.ttl]);
  }
  client.disconnect();
  await tier.close();
});

test('a backfill fills what is missing and leaves what is there', async () => {
  const tier = tierAt(world.redisUrl);
  const tenant = freshTenant();
  const [there, missing] = ['there', 'missing'].map((name) => sha256(name)) as [string, string];
  await tier.write(tenant, [entry(perceptualHashes, there, 'new')]);
  const older = [there, missing].map((key) => entry(perceptualHashes, key, 'old'));
  await tier.backfill(tenant, older);
  const found = await tier.read(tenant, older);
  await tier.close();
  expect(found).toEqual([
    { state: 'value', value: 'new' },
    { state: 'value', value: 'old' },
  ]);
});

test('what is removed is absent, and the rest stays', async () => {
  const tier = tierAt(world.redisUrl);
  const tenant = freshTenant();
  const [first, ...rest] = examples() as [Entry, ...Entry[]];
  await tier.write(tenant, [first, ...rest]);
  await tier.remove(tenant, [lookup(first.kind, first.key as never)]);
  const found = await tier.read(tenant, [first, ...rest]);
  await tier.close();
  expect(found.map(({ state }) => state)).toEqual(['absent', ...rest.map(() => 'value')]);
});

test('a corrupt entry is removed, unless it has been written anew since it was read', async () => {
  const tier = tierAt(world.redisUrl);
  const tenant = freshTenant();
  const [first, second] = examples() as [Entry, Entry];
  await tier.write(tenant, [first, second]);
  const [one] = await tier.read(tenant, [first]);
  expect(one).toMatchObject({ state: 'value' });
  const seen = Buffer.from('damaged');
  await tier.remove(tenant, [
    { ...first, bytes: seen },
    { ...second, bytes: second.kind.encode(second.value) },
  ]);
  const found = await tier.read(tenant, [first, second]);
  await tier.close();
  expect(found.map(({ state }) => state)).toEqual(['value', 'absent']);
});

test('a key that holds something else than text is an error of the command and no outage', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const tenant = freshTenant();
  const [one] = examples() as [Entry];
  await client.del(tier.keyOf(tenant, one));
  await client.lpush(tier.keyOf(tenant, one), 'x');
  // MGET answers nil for it, so it reads as absent; SET replaces it.
  expect(await tier.read(tenant, [one])).toEqual([{ state: 'absent' }]);
  await tier.write(tenant, [one]);
  expect(await tier.read(tenant, [one])).toStrictEqual([{ state: 'value', value: one.value }]);
  client.disconnect();
  await tier.close();
});

test('an error tells a server that is away from one that is unable, and from a wrong command', async () => {
  const tier = tierAt(world.redisUrl);
  await tier.ping();
  const reply = (message: string) => tier.judge(Object.assign(new Error(message), { name: 'ReplyError' }));
  for (const word of ['LOADING', 'BUSY', 'MASTERDOWN', 'NOAUTH', 'WRONGPASS']) expect(reply(`${word} …`)).toBe('away');
  expect(reply("OOM command not allowed when used memory > 'maxmemory'.")).toBe('unserved');
  expect(reply("READONLY You can't write against a read only replica.")).toBe('unserved');
  expect(reply('WRONGTYPE Operation against a key holding the wrong kind of value')).toBe('wrong');
  expect(tier.judge(new Error('connect ECONNREFUSED 127.0.0.1:1'))).toBe('away');
  await tier.close();
});
