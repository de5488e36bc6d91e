/** The hot tier, on a real Redis. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { RedisTier } from '../../src/cache/redis-tier.js';
import { type Entry, entry, type Lookup, lookup } from '../../src/cache/tier.js';
import { crawlContents } from '../../src/kinds/crawl.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { createLogger } from '../../src/logger.js';
import { crawlContent, examples } from '../kinds/examples.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import { Relay } from './relay.js';
import { freshTenant } from './support.js';
import { plain, tierSuite } from './tier-suite.js';

let world: World;
const log = createLogger('silent');

beforeAll(async () => {
  world = await createWorld();
});

afterAll(() => world[Symbol.asyncDispose]());

function tierAt(url: string): RedisTier {
  return new RedisTier({ url, ttl: world.config().ttl, prefix: world.namespace }, log);
}

let versions = 1_000_000;

/** With stamps: as PostgreSQL would give them, or as they are asked for. */
const stamped = (entries: readonly Entry[], { generation = 1, version = 0 } = {}) =>
  entries.map((one) => ({ ...one, generation, version: version || ++versions }));

const read = async (tier: RedisTier, lookups: readonly Lookup[]) => (await tier.read(lookups)).found;
const ABSENT = { state: 'absent' };

tierSuite(async () => {
  const relay = await Relay.to(world.redisUrl);
  const tier = tierAt(relay.url);
  const client = redisClient(world);
  return {
    read: (lookups) => read(tier, lookups),
    write: async (entries) => {
      expect(await tier.write(stamped(entries))).toBe(0);
      return entries;
    },
    ping: () => tier.ping(),
    judge: (error) => tier.judge(error),
    relays: [relay],
    damage: async ({ id }) => void (await client.set(tier.keyOf(id), 'not ours', 'KEEPTTL')),
    damaged: { state: 'corrupt', error: expect.any(Error), version: 0 },
    [Symbol.asyncDispose]: async () => {
      await tier.close();
      client.disconnect();
      await relay[Symbol.asyncDispose]();
    },
  };
});

test('every key begins with the prefix and names kind, tenant and key', () => {
  const tier = tierAt(world.redisUrl);
  const [one] = examples('a.b') as [Entry];
  const [hash, model] = one.parts;
  expect(tier.keyOf(one.id)).toBe(`${world.namespace}:face_embedding:a.b:${hash}:${model}`);
});

test('lifetimes are the configured ones, within and up to ten percent either way [M18]', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const tenant = freshTenant();
  const many = Array.from({ length: 300 }, (_, i) => entry(tenant, perceptualHashes, sha256(`ttl ${i}`), `${i}`));
  await tier.write(stamped(many));
  const left = await Promise.all(many.map(({ id }) => client.pttl(tier.keyOf(id))));
  const share = left.map((ms) => ms / (world.config().ttl.phash * 1000));
  client.disconnect();
  await tier.close();
  expect(Math.max(...share)).toBeLessThanOrEqual(1.1);
  expect(Math.max(...share)).toBeGreaterThan(1.05);
  expect(Math.min(...share)).toBeLessThan(0.95);
  // A minute of slack for what has passed since the writing: the test would be over by then.
  expect(Math.min(...share)).toBeGreaterThan(0.9 - 60 / world.config().ttl.phash);
});

test('each kind has the lifetime that is configured for it [M18]', async () => {
  const ttl = { embedding: 1_000, search: 2_000, phash: 3_000, faceDetection: 4_000, crawl: 5_000 };
  const tier = new RedisTier({ url: world.redisUrl, ttl, prefix: world.namespace }, log);
  const client = redisClient(world);
  const entries = examples(freshTenant());
  await tier.write(stamped(entries));
  for (const one of entries) {
    const seconds = (await client.pttl(tier.keyOf(one.id))) / 1000;
    expect(Math.round(seconds / 1000) * 1000, one.kind.name).toBe(ttl[one.kind.ttl]);
  }
  client.disconnect();
  await tier.close();
});

test('what is written fills what is missing and leaves what is newer', async () => {
  const tier = tierAt(world.redisUrl);
  const tenant = freshTenant();
  const of = (value: string) =>
    ['there', 'missing'].map((name) => entry(tenant, perceptualHashes, sha256(name), value));
  await tier.write(stamped(of('new').slice(0, 1), { version: 8 }));
  expect(await tier.write(stamped(of('old'), { version: 7 }))).toBe(0);
  expect(await read(tier, of(''))).toMatchObject([
    { state: 'value', value: 'new', version: 8 },
    { state: 'value', value: 'old', version: 7 },
  ]);
  await tier.close();
});

test('a value of an older generation does not take the place of one of a later generation, however new it is', async () => {
  const tier = tierAt(world.redisUrl);
  const of = (value: string) => [entry('of-generations', perceptualHashes, sha256('one'), value)];
  await tier.write(stamped(of('later'), { generation: 3, version: 10 }));
  await tier.write(stamped(of('earlier'), { generation: 2, version: 11 }));
  expect(await read(tier, of(''))).toMatchObject([{ value: 'later', generation: 3, version: 10 }]);
  await tier.write(stamped(of('latest'), { generation: 4, version: 9 }));
  expect(await read(tier, of(''))).toMatchObject([{ value: 'latest', generation: 4, version: 9 }]);
  await tier.close();
});

test('the same version written again is the same value with a new lifetime', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const [one] = examples(freshTenant()) as [Entry];
  const again = stamped([one], { version: 5 });
  await tier.write(again);
  await client.pexpire(tier.keyOf(one.id), 1_000);
  await tier.write(again);
  expect(await client.pttl(tier.keyOf(one.id))).toBeGreaterThan(1_000);
  client.disconnect();
  await tier.close();
});

test('what is dropped is absent, and the rest stays', async () => {
  const tier = tierAt(world.redisUrl);
  const [first, ...rest] = examples(freshTenant()) as [Entry, ...Entry[]];
  await tier.write(stamped([first, ...rest], { version: 5 }));
  await tier.drop([{ id: first.id, version: 6 }]);
  const found = await read(tier, [first, ...rest]);
  await tier.close();
  expect(found.map(({ state }) => state)).toEqual(['absent', ...rest.map(() => 'value')]);
});

test('what was dropped does not come back in an older version, and does in that version or a newer one', async () => {
  const tier = tierAt(world.redisUrl);
  const of = (value: string) => [entry('dropped', perceptualHashes, sha256('one'), value)];
  await tier.drop([{ id: of('')[0]?.id ?? '', version: 6 }]);
  await tier.write(stamped(of('older'), { version: 5 }));
  expect(await read(tier, of(''))).toEqual([ABSENT]);
  await tier.write(stamped(of('that'), { version: 6 }));
  expect(await read(tier, of(''))).toMatchObject([{ value: 'that' }]);
  await tier.write(stamped(of('newer'), { version: 7 }));
  expect(await read(tier, of(''))).toMatchObject([{ value: 'newer' }]);
  await tier.close();
});

test('a version that is there, or is newer, is not dropped', async () => {
  const tier = tierAt(world.redisUrl);
  const [one] = examples(freshTenant()) as [Entry];
  await tier.write(stamped([one], { version: 6 }));
  await tier.drop([{ id: one.id, version: 5 }]);
  await tier.drop([{ id: one.id, version: 6 }]);
  expect(plain(await read(tier, [one]))).toEqual([{ state: 'value', value: one.value }]);
  await tier.close();
});

test('a corrupt entry is dropped, unless it has been written anew since it was read', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const [first, second] = examples(freshTenant()) as [Entry, Entry];
  await tier.write(stamped([first, second], { version: 5 }));
  for (const { id } of [first, second]) {
    const whole = await client.getBuffer(tier.keyOf(id));
    await client.set(tier.keyOf(id), (whole as Buffer).subarray(0, -1));
  }
  const seen = await read(tier, [first, second]);
  expect(seen).toMatchObject([
    { state: 'corrupt', version: 5 },
    { state: 'corrupt', version: 5 },
  ]);
  await tier.write(stamped([first], { version: 6 }));
  await tier.drop([first, second].map(({ id }) => ({ id, version: 6 })));
  expect(await read(tier, [first, second])).toMatchObject([{ state: 'value' }, ABSENT]);
  client.disconnect();
  await tier.close();
});

test('the generation of a tenant is told with its first entry, for those who ask, and never goes back', async () => {
  const [writer, reader] = [tierAt(world.redisUrl), tierAt(world.redisUrl)];
  const tenant = freshTenant();
  const asked = async () => Object.fromEntries((await reader.read(examples(tenant), [tenant, '*'])).generations);
  expect(await asked()).toEqual({});
  await writer.write(stamped(examples(tenant), { generation: 4 }));
  expect(await asked()).toEqual({ [tenant]: 4 });
  await reader.write(stamped(examples(tenant), { generation: 3 }));
  await reader.tellGeneration(tenant, 2);
  expect(await asked()).toEqual({ [tenant]: 4 });
  await writer.tellGeneration(tenant, 7);
  expect(await asked()).toEqual({ [tenant]: 7 });
  await Promise.all([writer.close(), reader.close()]);
});

test('a value that was written while PostgreSQL was away says so, until one that PostgreSQL has takes its place', async () => {
  const tier = tierAt(world.redisUrl);
  const of = (value: string) => [entry('unjournaled', perceptualHashes, sha256('one'), value)];
  await tier.write(stamped(of('away'), { version: 9 }), { unjournaled: true });
  expect(await read(tier, of(''))).toMatchObject([{ value: 'away', unjournaled: true }]);
  await tier.write(stamped(of('there'), { version: 8 }));
  expect(await read(tier, of(''))).toMatchObject([{ value: 'there', version: 8, unjournaled: false }]);
  await tier.close();
});

test('versions for writes that PostgreSQL cannot order are later than what is there, and not before now', async () => {
  const tier = tierAt(world.redisUrl);
  const before = Date.now() * 1_000;
  const tenant = freshTenant();
  const [known, ahead] = ['known', 'ahead'].map((name) => entry(tenant, perceptualHashes, sha256(name), name));
  const later = before + 3_600_000_000;
  await tier.write([...stamped([known as Entry], { version: 5 }), ...stamped([ahead as Entry], { version: later })]);
  const missing = lookup(tenant, perceptualHashes, sha256('missing'));
  const [first, second, third] = await tier.nextVersions([known as Entry, ahead as Entry, missing]);
  expect(first).toBeGreaterThanOrEqual(before);
  expect(second).toBe(later + 1);
  expect(third).toBeGreaterThanOrEqual(before);
  await tier.close();
});

test('the entries of one tenant are found page by page, neither those of others nor what is not an entry', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const tenant = freshTenant();
  const mine = ['a', 'b', 'c'].flatMap((seed) => examples(tenant, seed));
  await tier.write(stamped(mine));
  await tier.write(stamped(examples(`${tenant}.`)));
  await client.set(`${world.namespace}:queue:${tenant}:wait`, 'not ours');
  const ids = new Set<string>();
  let cursor = '0';
  do {
    const page = await tier.scan(tenant, cursor);
    for (const id of page.ids) ids.add(id);
    cursor = page.cursor;
  } while (cursor !== '0');
  expect([...ids].sort()).toEqual([...mine.map(({ id }) => id), `generation:${tenant}`].sort());
  client.disconnect();
  await tier.close();
});

test('of the entries of a tenant those of an earlier generation are forgotten', async () => {
  const tier = tierAt(world.redisUrl);
  const content = (name: string) => entry('forgotten', crawlContents, sha256(name), crawlContent(name));
  const [old, now] = [content('old'), content('now')];
  await tier.write(stamped([old], { generation: 2 }));
  await tier.write(stamped([now], { generation: 3 }));
  await tier.forget([old, now].map(({ id }) => ({ id, before: 3 })));
  expect((await read(tier, [old, now])).map(({ state }) => state)).toEqual(['absent', 'value']);
  await tier.close();
});

test('what was dropped does not come back because its tenant is purged', async () => {
  const tier = tierAt(world.redisUrl);
  const one = entry('dropped', crawlContents, sha256('dropped'), crawlContent('dropped'));
  await tier.drop([{ id: one.id, version: 2_000 }]);
  await tier.forget([{ id: one.id, before: 3 }]);
  await tier.write(stamped([one], { generation: 3, version: 1_000 }));
  expect(await read(tier, [one])).toEqual([ABSENT]);
  await tier.close();
});

test('Redis is given a great batch in parts, so that it serves others in between', async () => {
  await using relay = await Relay.to(world.redisUrl);
  const tier = tierAt(relay.url);
  const many = Array.from({ length: 1_201 }, (_, i) => entry('many', perceptualHashes, sha256(`${i}`), 'f'.repeat(16)));
  await tier.write(stamped(many.slice(0, 2)));
  const calls = async (work: () => Promise<unknown>) => {
    relay.reset();
    await work();
    return relay.said('evalsha');
  };
  expect(await calls(() => tier.write(stamped(many)))).toBe(3);
  expect(await calls(() => tier.nextVersions(many))).toBe(3);
  expect(await tier.nextVersions(many)).toHaveLength(many.length);
  expect((await read(tier, many)).every(({ state }) => state === 'value')).toBe(true);
  expect(await calls(() => tier.drop(many.map(({ id }) => ({ id, version: 2 ** 52 }))))).toBe(3);
  expect((await read(tier, many)).every(({ state }) => state === 'absent')).toBe(true);
  await tier.close();
});

test('a key that holds something else than text is an error of the command and no outage', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const [one, other] = examples(freshTenant()) as [Entry, Entry];
  await client.lpush(tier.keyOf(one.id), 'x');
  // MGET answers nil for it, so it reads as absent; SET replaces it.
  expect(await read(tier, [one, other])).toEqual([ABSENT, ABSENT]);
  await tier.write(stamped([one]));
  expect(plain(await read(tier, [one]))).toStrictEqual([{ state: 'value', value: one.value }]);
  client.disconnect();
  await tier.close();
});

test('a key that holds something else than text is absent for who asks for it alone', async () => {
  const tier = tierAt(world.redisUrl);
  const client = redisClient(world);
  const [one] = examples(freshTenant()) as [Entry];
  await client.lpush(tier.keyOf(one.id), 'x');
  expect(await read(tier, [one])).toEqual([ABSENT]);
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
