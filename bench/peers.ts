/** The caches a Node service would take instead of ours, set up as their documentation shows it. */
import { createKeyv as createPostgres } from '@keyv/postgres';
import { createKeyv as createRedis } from '@keyv/redis';
import { BentoCache, bentostore } from 'bentocache';
import { redisDriver } from 'bentocache/drivers/redis';
import { createCache } from 'cache-manager';
import { Cacheable } from 'cacheable';
import { Redis } from 'ioredis';
import type { StackEnv } from '../src/local/running-stack.js';
import type { PeerName, Way } from './compare.js';

const TTL_MS = 3_600_000;

export interface Peer {
  readonly name: PeerName;
  /** Whether it can stand before PostgreSQL. */
  readonly sql: boolean;
  /** What it puts before a key in Redis. */
  readonly prefix: string;
  get(key: string): Promise<unknown>;
  set(key: string, value: unknown): Promise<unknown>;
  /** In one call, where the peer has such a call. */
  getMany?(keys: string[]): Promise<unknown[]>;
  setMany?(keys: string[], value: unknown): Promise<unknown>;
  /** Takes the key out of Redis alone. */
  forget(key: string): Promise<unknown>;
  /** Removes everything of this peer's namespace, in both tiers. */
  clear(): Promise<unknown>;
  close(): Promise<unknown>;
}

export function openPeers(env: StackEnv): Peer[] {
  return [openCacheable(env), openBento(env), openCacheManager(env)];
}

/** A way for each of the peers. */
export function waysOf(peers: readonly Peer[], way: (peer: Peer) => Way): Partial<Record<PeerName, Way>> {
  return Object.fromEntries(peers.map((peer) => [peer.name, way(peer)]));
}

/** Redis before PostgreSQL, for those who take Keyv's stores. */
function openStores({ REDIS_URL, DATABASE_URL }: StackEnv, name: string) {
  const redis = createRedis(REDIS_URL, { namespace: name });
  const postgres = createPostgres({ uri: DATABASE_URL, table: `bench_${name}` });
  postgres.namespace = name;
  for (const store of [redis, postgres]) store.on('error', () => undefined);
  return { redis, postgres };
}

function openCacheable(env: StackEnv): Peer {
  const { redis, postgres } = openStores(env, 'cacheable');
  const cache = new Cacheable({ primary: redis, secondary: postgres, ttl: TTL_MS });
  cache.on('error', () => undefined);
  return {
    name: 'cacheable',
    sql: true,
    prefix: 'cacheable::',
    get: (key) => cache.get(key),
    set: (key, value) => cache.set(key, value),
    getMany: (keys) => cache.getMany(keys),
    setMany: (keys, value) => cache.setMany(keys.map((key) => ({ key, value }))),
    forget: (key) => redis.delete(key),
    clear: () => cache.clear(),
    close: () => cache.disconnect(),
  };
}

/** Without its memory tier: nobody else here has one, and what another process writes must be seen. */
function openBento({ REDIS_URL }: StackEnv): Peer {
  const connection = new Redis(REDIS_URL);
  connection.on('error', () => undefined);
  const store = bentostore().useL2Layer(redisDriver({ connection }));
  const cache = new BentoCache({ default: 'bench', ttl: TTL_MS, stores: { bench: store } });
  return {
    name: 'bentocache',
    sql: false,
    prefix: 'bentocache:',
    get: (key) => cache.get({ key }),
    set: (key, value) => cache.set({ key, value }),
    forget: (key) => cache.delete({ key }),
    clear: () => cache.clear(),
    close: async () => {
      await cache.disconnectAll();
      connection.disconnect();
    },
  };
}

/** Brings nothing back to Redis that PostgreSQL had. */
function openCacheManager(env: StackEnv): Peer {
  const { redis, postgres } = openStores(env, 'cache_manager');
  const cache = createCache({ stores: [redis, postgres], ttl: TTL_MS });
  return {
    name: 'cache-manager',
    sql: true,
    prefix: 'cache_manager::',
    get: (key) => cache.get(key),
    set: (key, value) => cache.set(key, value),
    getMany: (keys) => cache.mget(keys),
    setMany: (keys, value) => cache.mset(keys.map((key) => ({ key, value }))),
    forget: (key) => redis.delete(key),
    clear: () => cache.clear(),
    close: () => cache.disconnect(),
  };
}
