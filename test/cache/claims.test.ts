/** Claims: of many takers one wins, for as long as its lease, and a job re-enters its own. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Claim, Claims } from '../../src/cache/claims.js';
import { DeferredError } from '../../src/errors.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

const LONG = 600_000;

let world: World;
let cache: OpenCache;
let other: OpenCache;
let claims: Claims;

beforeAll(async () => {
  world = await createWorld();
  cache = openCache(world.config(), world.namespace);
  other = openCache(world.config(), world.namespace);
  claims = cache.claims;
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

const claimOf = (holder: string, changes: Partial<Claim> = {}): Claim => ({
  tenantId: 'tenant',
  subject: 'url:1',
  holder,
  ...changes,
});

async function holderOf({ tenantId, subject }: Claim): Promise<string | undefined> {
  const text = 'select holder from claims where tenant_id = $1 and subject = $2';
  const { rows } = await cache.connection.pool.query<{ holder: string }>(text, [tenantId, subject]);
  return rows[0]?.holder;
}

test('of fifty takers at once exactly one wins', async () => {
  const tenantId = freshTenant();
  const answers = await Promise.all(
    Array.from({ length: 50 }, (_, i) =>
      (i % 2 === 0 ? cache : other).claims.take(claimOf(`job-${i}`, { tenantId }), LONG),
    ),
  );
  const winners = answers.flatMap(({ taken }, i) => (taken ? [`job-${i}`] : []));
  expect(winners).toHaveLength(1);
  expect(await holderOf(claimOf('', { tenantId }))).toBe(winners[0]);
});

test('the loser learns how long the winner has held it', async () => {
  const tenantId = freshTenant();
  await claims.take(claimOf('first', { tenantId }), LONG);
  const longer = await until('a claim that is some milliseconds old', async () => {
    const answer = await claims.take(claimOf('second', { tenantId }), LONG);
    return !answer.taken && answer.heldForMs > 5 ? answer.heldForMs : undefined;
  });
  expect(longer).toBeLessThan(LONG);
});

test('a job that comes again re-enters its own claim, which is then held for longer', async () => {
  const tenantId = freshTenant();
  await claims.take(claimOf('job', { tenantId }), 1_000);
  expect(await claims.take(claimOf('job', { tenantId }), LONG)).toMatchObject({ taken: true });
  const { rows } = await cache.connection.pool.query(
    "select expires_at > now() + interval '5 minutes' as long from claims where tenant_id = $1",
    [tenantId],
  );
  expect(rows).toEqual([{ long: true }]);
  expect(await claims.take(claimOf('other', { tenantId }), LONG)).toMatchObject({ taken: false });
});

test('a claim whose lease has ended is taken over, by one of many', async () => {
  const tenantId = freshTenant();
  await claims.take(claimOf('gone', { tenantId }), 5);
  await until('the end of the lease', async () => {
    const text = 'select expires_at <= now() as ended from claims where tenant_id = $1';
    const { rows } = await cache.connection.pool.query<{ ended: boolean }>(text, [tenantId]);
    return rows[0]?.ended;
  });
  const answers = await Promise.all(
    Array.from({ length: 10 }, (_, i) => claims.take(claimOf(`heir-${i}`, { tenantId }), LONG)),
  );
  expect(answers.filter(({ taken }) => taken)).toHaveLength(1);
  expect(await claims.take(claimOf('gone', { tenantId }), LONG)).toMatchObject({ taken: false });
});

test('only its holder releases a claim, and of its runs the one that took it last', async () => {
  const tenantId = freshTenant();
  const claim = claimOf('holder', { tenantId });
  const lost = await taking(claim);
  const taken = await taking(claim);
  await claims.release(claimOf('somebody', { tenantId }), taken);
  await claims.release(claim, lost);
  expect(await holderOf(claim)).toBe('holder');
  await claims.release(claim, taken);
  expect(await holderOf(claim)).toBeUndefined();
  await claims.release(claim, taken);
});

async function taking(claim: Claim): Promise<Map<string, string>> {
  const answer = await claims.take(claim, LONG);
  if (!answer.taken) throw new Error('it is claimed');
  return new Map([[claim.subject, answer.since]]);
}

test('of several claims those are given back that the run took last', async () => {
  const tenantId = freshTenant();
  const [lost, kept] = ['url:1', 'content:1'].map((subject) => claimOf('job', { tenantId, subject })) as [Claim, Claim];
  const taken = new Map([...(await taking(lost)), ...(await taking(kept))]);
  await taking(lost);
  await claims.release(lost, taken);
  expect(await Promise.all([lost, kept].map(holderOf))).toEqual(['job', undefined]);
});

test('a run that has lost its job gives back nothing that the next run has taken', async () => {
  const claim = claimOf('job', { tenantId: freshTenant() });
  await holding(claim, LONG, () => claims.take(claim, LONG));
  expect(await holderOf(claim)).toBe('job');
});

/** Does something under one claim. */
function holding<T>(claim: Claim, leaseMs: number, work: () => Promise<T>): Promise<T> {
  return claims.during(claim, leaseMs, async ({ take }) => {
    await take(claim.subject);
    return work();
  });
}

test('other tenants and other subjects are free', async () => {
  const tenantId = freshTenant();
  await claims.take(claimOf('first', { tenantId }), LONG);
  expect(await claims.take(claimOf('second', { tenantId: `${tenantId}.` }), LONG)).toMatchObject({ taken: true });
  expect(await claims.take(claimOf('second', { tenantId, subject: 'url:2' }), LONG)).toMatchObject({ taken: true });
});

test('the claim is held while the work runs, and free when it is done', async () => {
  const claim = claimOf('worker', { tenantId: freshTenant() });
  const result = await holding(claim, LONG, async () => {
    expect(await holderOf(claim)).toBe('worker');
    expect(await claims.take({ ...claim, holder: 'other' }, LONG)).toMatchObject({ taken: false });
    return 42;
  });
  expect(result).toBe(42);
  expect(await holderOf(claim)).toBeUndefined();
});

test('the claim is free after work that failed, and the failure is what the caller sees', async () => {
  const claim = claimOf('worker', { tenantId: freshTenant() });
  const failure = new Error('the work failed');
  await expect(holding(claim, LONG, () => Promise.reject(failure))).rejects.toBe(failure);
  expect(await holderOf(claim)).toBeUndefined();
});

test('work under a claim that somebody else has is put off and not begun', async () => {
  const claim = claimOf('worker', { tenantId: freshTenant() });
  await claims.take({ ...claim, holder: 'other' }, LONG);
  let began = false;
  const refusal = await holding(claim, LONG, async () => {
    began = true;
  }).catch((error: unknown) => error);
  expect(refusal).toBeInstanceOf(DeferredError);
  expect((refusal as DeferredError).delayMs).toBeGreaterThan(0);
  expect((refusal as DeferredError).delayMs).toBeLessThan(10_000);
  expect(began).toBe(false);
  expect(await holderOf(claim)).toBe('other');
});

test('what the work claimed until another claim was refused stays its own, for the time when it comes back', async () => {
  const tenantId = freshTenant();
  const [first, second] = [claimOf('job', { tenantId }), claimOf('other', { tenantId, subject: 'content:1' })];
  const taken = await taking(second);
  const work = () =>
    claims.during(first, LONG, async ({ take }) => {
      await take(first.subject);
      await take(second.subject);
    });
  await expect(work()).rejects.toBeInstanceOf(DeferredError);
  expect(await Promise.all([first, second].map(holderOf))).toEqual(['job', 'other']);
  await claims.release(second, taken);
  await work();
  expect(await Promise.all([first, second].map(holderOf))).toEqual([undefined, undefined]);
});

test('work that was put off for another reason than a claim holds nothing meanwhile', async () => {
  const claim = claimOf('worker', { tenantId: freshTenant() });
  const putOff = new DeferredError(1, 'its host is busy');
  await expect(holding(claim, LONG, () => Promise.reject(putOff))).rejects.toBe(putOff);
  expect(await holderOf(claim)).toBeUndefined();
});

test('what the work needs no more is free before its end, and the rest is not', async () => {
  const claim = claimOf('worker', { tenantId: freshTenant() });
  const unneeded = { ...claim, subject: 'content:1' };
  await claims.during(claim, LONG, async ({ take, giveBack }) => {
    await take(claim.subject);
    await take(unneeded.subject);
    await giveBack(unneeded.subject);
    await giveBack('what it never had');
    expect(await Promise.all([claim, unneeded].map(holderOf))).toEqual(['worker', undefined]);
    await claims.take({ ...unneeded, holder: 'other' }, LONG);
  });
  expect(await Promise.all([claim, unneeded].map(holderOf))).toEqual([undefined, 'other']);
});

test('work that outlived its lease does not release its heir', async () => {
  const claim = claimOf('slow', { tenantId: freshTenant() });
  const heir = { ...claim, holder: 'heir' };
  await holding(claim, 5, () => until('the heir', async () => (await claims.take(heir, LONG)).taken));
  expect(await holderOf(claim)).toBe('heir');
});

test('claims that ended more than an hour ago are forgotten, others are kept', async () => {
  const tenantId = freshTenant();
  for (const subject of ['long ago', 'just now', 'running']) {
    await claims.take(claimOf('job', { tenantId, subject }), subject === 'running' ? LONG : 1);
  }
  const age = "update claims set expires_at = now() - interval '61 minutes' where tenant_id = $1 and subject = $2";
  await cache.connection.pool.query(age, [tenantId, 'long ago']);
  await claims.forgetExpired();
  const text = 'select subject from claims where tenant_id = $1 order by subject';
  const { rows } = await cache.connection.pool.query(text, [tenantId]);
  expect(rows).toEqual([{ subject: 'just now' }, { subject: 'running' }]);
});
