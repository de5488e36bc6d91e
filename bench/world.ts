/** All contestants on one stack: our cache, the raw clients, the peers; and the same facts known to each of them. */
import { setTimeout as pause } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { type App, connect } from '../src/app.js';
import { type Entry, type Lookup, lookup } from '../src/cache/tier.js';
import type { Config } from '../src/config.js';
import { crawlUrls } from '../src/kinds/crawl.js';
import { faceEmbeddings } from '../src/kinds/faces.js';
import { sha256 } from '../src/kinds/identity.js';
import type { StackEnv } from '../src/local/running-stack.js';
import { createLogger } from '../src/logger.js';
import type { LookupResult } from '../src/metrics.js';
import { openPeers, type Peer } from './peers.js';
import { openRaw, type Raw } from './raw.js';
import { FACES, HASHES, MODEL, recordEntry, recordOf, TENANT, urlOf } from './samples.js';

export interface World extends AsyncDisposable {
  readonly app: App;
  readonly raw: Raw;
  readonly peers: readonly Peer[];
}

export function openWorld(config: Config, env: StackEnv): World {
  // What breaks on purpose need not be told.
  const app = connect(config, { logger: createLogger('silent') });
  const raw = openRaw(env);
  const peers = openPeers(env);
  return {
    app,
    raw,
    peers,
    [Symbol.asyncDispose]: async () => {
      // cacheable's and cache-manager's stores share a pool of Keyv's, and end it twice.
      await Promise.allSettled(peers.map((peer) => peer.close()));
      // That pool says it has ended before its connections have; a server that stops now would end this process.
      await pause(500);
      await raw[Symbol.asyncDispose]();
      await app.close();
    },
  };
}

/** Keys of the peers. */
export const facesName = (contentHash: string) => `faces:${contentHash}`;
export const recordName = (contentHash: string) => `record:${contentHash}`;

/** Tells everybody of every image in HASHES, and checks that they remember. */
export async function remember({ app, raw, peers }: World): Promise<void> {
  for (const hash of HASHES) {
    await app.cache.cacheFaceEmbeddings(hash, TENANT, FACES);
    await write(app, [recordEntry(TENANT, hash)]);
    for (const peer of peers) {
      await peer.set(facesName(hash), FACES);
      await peer.set(recordName(hash), recordOf(hash));
    }
  }
  const [hash = ''] = HASHES;
  const told = [
    await app.cache.getCachedFaceEmbeddings(hash, TENANT),
    ...(await Promise.all(peers.map((peer) => peer.get(facesName(hash))))),
  ];
  if (!told.every((faces) => isDeepStrictEqual(faces, FACES))) throw new Error('a contestant has forgotten the faces');
  // As autovacuum would within a minute: plans made for empty tables do not outlive it.
  await raw.pool.query('vacuum (analyze)');
}

/** One call of ours, whatever the kinds. */
export async function write(app: App, entries: readonly Entry[]): Promise<void> {
  const { durable } = await app.connection.hybrid.write(entries, { hotWithoutDurable: false });
  if (!durable) throw new Error('the entries could not be written');
}

/** Our keys in Redis. */
export function facesKey({ connection }: App, contentHash: string): string {
  return keyOf(connection, lookup(TENANT, faceEmbeddings, { contentHash, model: MODEL }));
}

export function recordKey({ connection }: App, contentHash: string): string {
  return keyOf(connection, lookup(TENANT, crawlUrls, sha256(urlOf(contentHash))));
}

function keyOf({ tiers }: App['connection'], { id }: Lookup): string {
  if (!tiers.redis) throw new Error('this cache has no Redis');
  return tiers.redis.tier.keyOf(id);
}

/** Measures, and makes sure that every look-up of ours ended as it was meant to. */
export async function proving<T>({ metrics }: App, result: LookupResult, measure: () => Promise<T>): Promise<T> {
  const counts = async () => {
    const { values } = await metrics.cacheRequests.get();
    const count = (meant: boolean) =>
      values.filter(({ labels }) => (labels.result === result) === meant).reduce((sum, { value }) => sum + value, 0);
    return { meant: count(true), others: count(false) };
  };
  const before = await counts();
  const measured = await measure();
  const after = await counts();
  if (after.meant === before.meant || after.others > before.others) {
    throw new Error(`look-ups were to end as ${result}: ${after.others - before.others} did not`);
  }
  return measured;
}
