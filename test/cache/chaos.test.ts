/**
 * Everything that can happen to the servers, in both orders of failing and of recovering, with writes, overwrites and
 * invalidations in between. What was acknowledged is there in the end, what was forgotten or overwritten is not.
 */
import { once } from 'node:events';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { POLL_MS } from '../../src/cache/coherence.js';
import { verify } from '../../src/cache/verify.js';
import { migrate } from '../../src/db/migrate.js';
import { TierUnavailableError } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { until } from '../support/until.js';
import { childProcess, recovered, type ServerName, Servers } from './chaos-support.js';
import { freshTenant, type OpenCache } from './support.js';

/** Scenarios mostly wait: several run at once, each on servers of its own. */
const LANES = 3;
/** Waiting for a lane included. */
const TIMEOUT_MS = 180_000;
/** SPEC: after recovery nothing older is served for more than a second. */
const PROMISED_MS = 1_000;
const WATCHED_MS = 1_200;
/** Long enough for every process to ask PostgreSQL, also on a busy machine. */
const TOLD_MS = 3 * POLL_MS;

const free: Servers[] = [];
const waiting: ((servers: Servers) => void)[] = [];

beforeAll(async () => {
  free.push(...(await Promise.all(Array.from({ length: LANES }, () => Servers.start()))));
});

afterAll(async () => {
  await Promise.all(free.map((servers) => servers[Symbol.asyncDispose]()));
});

async function onServers(work: (servers: Servers) => Promise<void>): Promise<void> {
  const servers = free.pop() ?? (await new Promise<Servers>((resolve) => waiting.push(resolve)));
  try {
    await work(servers);
  } finally {
    await servers.heal();
    // A database that is empty when its test fails would fail the next.
    await migrate({ connectionString: servers.stack.env.DATABASE_URL }, { queueOnPostgres: false });
    const next = waiting.shift();
    if (next) next(servers);
    else free.push(servers);
  }
}

/** What befalls a server: how it begins, and how it ends. */
interface Fault {
  readonly tier: ServerName;
  /** The journal would go with it, and every queue: it is elsewhere. */
  readonly losesData?: boolean;
  /** What was acknowledged since goes with it. */
  readonly setsBack?: boolean;
  begin(servers: Servers): Promise<void>;
  /** `copy` sets the tier's data back to what it was at the beginning. */
  end(servers: Servers, copy: () => Promise<void>): Promise<void>;
}

const FAULTS = {
  'Redis stops': {
    tier: 'redis',
    begin: (servers) => servers.kill('redis'),
    end: (servers) => servers.restart('redis'),
  },
  'Redis freezes': {
    tier: 'redis',
    begin: (servers) => servers.freeze('redis'),
    end: (servers) => servers.thaw('redis'),
  },
  'Redis comes back empty': {
    tier: 'redis',
    losesData: true,
    begin: async (servers) => {
      const folder = await servers.redisFolder();
      await servers.kill('redis');
      for (const name of await readdir(folder)) await rm(join(folder, name), { recursive: true });
    },
    end: (servers) => servers.restart('redis'),
  },
  'Redis comes back with old data': {
    tier: 'redis',
    losesData: true,
    begin: (servers) => servers.kill('redis'),
    end: async (servers, copy) => {
      await copy();
      await servers.restart('redis');
    },
  },
  'PostgreSQL stops': {
    tier: 'postgres',
    begin: (servers) => servers.kill('postgres'),
    end: (servers) => servers.restart('postgres'),
  },
  'PostgreSQL freezes': {
    tier: 'postgres',
    begin: (servers) => servers.freeze('postgres'),
    end: (servers) => servers.thaw('postgres'),
  },
  'PostgreSQL comes back empty': {
    tier: 'postgres',
    setsBack: true,
    begin: async (servers) => {
      await servers.sql('drop schema public, drizzle, queue_state cascade; create schema public');
      await servers.kill('postgres');
    },
    end: async (servers) => {
      await servers.restart('postgres');
      await migrate({ connectionString: servers.stack.env.DATABASE_URL }, { queueOnPostgres: false });
    },
  },
  'PostgreSQL comes back with old data': {
    tier: 'postgres',
    setsBack: true,
    begin: (servers) => servers.kill('postgres'),
    end: async (servers, copy) => {
      await copy();
      await servers.restart('postgres');
    },
  },
} satisfies Record<string, Fault>;

type FaultName = keyof typeof FAULTS;

/** What was promised about every entry: the value that was acknowledged last, and what was tried since. */
class Ledger {
  readonly #promised = new Map<string, { tenant: string; hash: string; values: Set<string | null> }>();
  /** Every value that an entry ever had. */
  readonly #former = new Map<string, Set<string | null>>();
  #count = 0;

  /** Overwrites, with a value that there never was. */
  async write({ service }: OpenCache, tenant: string, key: string): Promise<void> {
    const hash = sha256(key);
    const value = `${key} ${++this.#count}`;
    const known = this.#promised.get(`${tenant} ${key}`)?.values ?? new Set([null]);
    this.#former.set(`${tenant} ${key}`, new Set([...(this.#former.get(`${tenant} ${key}`) ?? [null]), value]));
    const acknowledged = await service.cachePerceptualHash(hash, tenant, value);
    this.#promised.set(`${tenant} ${key}`, {
      tenant,
      hash,
      values: new Set(acknowledged ? [value] : [...known, value]),
    });
  }

  async invalidate({ service }: OpenCache, tenant: string): Promise<void> {
    try {
      await service.invalidateTenantCache(tenant);
    } catch (error) {
      // Then nothing has happened.
      expect(error).toBeInstanceOf(TierUnavailableError);
      return;
    }
    for (const one of this.#promised.values()) if (one.tenant === tenant) one.values = new Set([null]);
  }

  /** PostgreSQL may have any former value now, but one alone. */
  setBack(): void {
    for (const [entry, one] of this.#promised) one.values = this.#former.get(entry) ?? one.values;
  }

  /** What processes answer that they must not, or not all alike. */
  async broken(caches: Readonly<Record<string, OpenCache>>): Promise<string[]> {
    const promises = [...this.#promised];
    const answers = await Promise.all(
      Object.entries(caches).map(async ([name, { service }]) => ({ name, values: await this.#read(service) })),
    );
    return promises.flatMap(([entry, { values }], i) => {
      const [first] = answers;
      return answers.flatMap(({ name, values: read }) => {
        const value = read[i] ?? null;
        const fine = values.has(value) && value === (first?.values[i] ?? null);
        return fine ? [] : [`${name} reads ${value} for ${entry}, and not ${[...values].map(String).join(' or ')}`];
      });
    });
  }

  #read(service: OpenCache['service']): Promise<(string | null)[]> {
    return Promise.all(
      [...this.#promised.values()].map(({ tenant, hash }) => service.getCachedPerceptualHash(hash, tenant)),
    );
  }
}

interface Scenario {
  readonly faults: readonly FaultName[];
  /** In which order the faults end. */
  readonly recovery: readonly FaultName[];
}

async function play({ faults, recovery }: Scenario, servers: Servers): Promise<void> {
  const losesData = faults.some((name) => 'losesData' in FAULTS[name]);
  // What takes the data of a queue's Redis takes the journal. That is a fault of its own.
  const env: Record<string, string> = losesData ? { QUEUE_REDIS_URL: inject('redisUrl') } : {};
  const [a, b, plain] = [servers.open(env), servers.open(env), servers.openWithoutRedis()];
  const ledger = new Ledger();
  const tenant = freshTenant();
  const victims = [freshTenant(), freshTenant(), freshTenant(), freshTenant()];

  /** Every process overwrites what every process knows, and one of them invalidates somebody. */
  const work = async (stage: number) => {
    await Promise.all([
      ledger.write(a, tenant, 'of a'),
      ledger.write(b, tenant, 'of b'),
      ledger.write(plain, tenant, 'of the one without Redis'),
      ledger.write(a, tenant, 'of all').then(() => ledger.write(b, tenant, 'of all')),
      ledger.write(b, tenant, `new at stage ${stage}`),
      ledger.write(plain, tenant, 'of all in turn').then(() => ledger.write(a, tenant, 'of all in turn')),
    ]);
    const victim = victims[stage] as string;
    const invalidating = [a, plain, b][stage % 3] as OpenCache;
    await ledger.invalidate(invalidating, victim);
    await ledger.write(stage % 2 ? a : b, victim, 'written after all');
  };

  /** The processes that did not invalidate have a second to hear of it. */
  const kept = (caches: Record<string, OpenCache>) =>
    until('every promise to be kept', async () => (await ledger.broken(caches)).length === 0, PROMISED_MS);

  for (const victim of victims) for (const key of ['one', 'two']) await ledger.write(a, victim, key);
  await work(0);
  await kept({ a, b, plain });
  const setsBack = faults.some((name) => 'setsBack' in FAULTS[name]);
  const copies = {
    redis: await servers.copyRedis(),
    postgres: setsBack ? await servers.copyPostgres() : async () => undefined,
  };
  await recovered(a, b, plain);
  await work(0);
  await ledger.broken({ a, b }); // fills Redis
  // A copy that is older than what a process was told last is noticed: each has to be told of this server, and this work.
  await pause(TOLD_MS);

  let stage = 0;
  for (const name of faults) {
    await FAULTS[name].begin(servers);
    await work(++stage);
  }
  for (const [i, name] of recovery.entries()) {
    const { tier } = FAULTS[name];
    await FAULTS[name].end(servers, copies[tier]);
    if ('setsBack' in FAULTS[name]) ledger.setBack();
    if (i < recovery.length - 1) await work(++stage);
  }

  await recovered(a, b, plain);
  const since = Date.now();
  const late = servers.open(env);
  // Until then an older value may be served, but not one of before an invalidation by whoever made it.
  while (Date.now() - since < PROMISED_MS) await ledger.broken({ a, b, plain, late });
  for (const end = Date.now() + WATCHED_MS; Date.now() < end; await pause(20)) {
    expect(await ledger.broken({ a, b, plain, late })).toEqual([]);
  }
  await work(3);
  await kept({ a, b, plain, late });
  expect(await verify(a.connection)).toMatchObject({ differences: [], pendingReplays: 0 });
  if (losesData) await forgetJournal(servers);
}

/** It lies in a Redis that others use too. */
async function forgetJournal({ prefix }: Servers): Promise<void> {
  const redis = new Redis(inject('redisUrl'));
  await redis.del(`${prefix}:replay`, `${prefix}:replay:refused`);
  redis.disconnect();
}

const NAMES = Object.keys(FAULTS) as FaultName[];
const OF_REDIS = NAMES.filter((name) => FAULTS[name].tier === 'redis');
const OF_POSTGRES = NAMES.filter((name) => FAULTS[name].tier === 'postgres');

/** Of each pair, two of the four orders, of one with a backup one; together all of them, with every fault. */
const PAIRS = OF_REDIS.flatMap((redis, i) =>
  OF_POSTGRES.flatMap((postgres, j) => {
    const orders = [
      [redis, postgres],
      [postgres, redis],
    ] as const;
    const played = 'setsBack' in FAULTS[postgres] ? orders.slice(i % 2, (i % 2) + 1) : orders;
    return played.map((faults) => ({ faults, recovery: (i + j) % 2 ? faults : faults.toReversed() }));
  }),
);
const SCENARIOS: Scenario[] = [...NAMES.map((name) => ({ faults: [name], recovery: [name] })), ...PAIRS];

describe('acknowledged writes are kept, and nothing forgotten or overwritten is served [M2] [M5] [M49] [M50]', () => {
  for (const scenario of SCENARIOS) {
    const { faults, recovery } = scenario;
    const ends = faults.length > 1 ? `; it ends with “${recovery.at(-1)}”` : '';
    const name = `${faults.join(', then ')}${ends}`;
    test.concurrent(name, () => onServers((servers) => play(scenario, servers)), TIMEOUT_MS);
  }
});

test.concurrent('a process is killed between its commit and its SET: what it overwrote is served for a second at most', () =>
  onServers(async (servers) => {
    const link = await servers.link('redis');
    const tenant = freshTenant();
    const hash = sha256('crash');
    const [a, b] = [servers.open(), servers.open()];
    const served = () => Promise.all([a, b].map(({ service }) => service.getCachedPerceptualHash(hash, tenant)));
    expect(await a.service.cachePerceptualHash(hash, tenant, 'old')).toBe(true);
    expect(await served()).toEqual(['old', 'old']);
    const code = `
      if ((await cache.getCachedPerceptualHash('${hash}', '${tenant}')) !== 'old') process.exit(1);
      process.stdout.write('ready');
      await told();
      await cache.cachePerceptualHash('${hash}', '${tenant}', 'new');
      process.exit(2);
    `;
    const child = childProcess(code, { ...servers.stack.env, REDIS_URL: link.url }, servers.prefix);
    const ended = once(child, 'exit');
    await Promise.race([once(child.stdout as NodeJS.ReadableStream, 'data'), ended]);
    link.silence();
    child.stdin?.write('go');
    await until('the commit', async () => {
      const [row] = await servers.sql<{ phash: string }>(
        'select phash from perceptual_hash_cache where tenant_id = $1',
        [tenant],
      );
      return row?.phash === 'new';
    });
    child.kill('SIGKILL');
    expect(await ended).toEqual([null, 'SIGKILL']);
    await until(
      'both to serve the new value',
      async () => (await served()).every((value) => value === 'new'),
      PROMISED_MS,
    );
    for (let i = 0; i < 20; i++) expect(await served()).toEqual(['new', 'new']);
    expect(await verify(a.connection)).toMatchObject({ differences: [] });
  }));
