/** What Redis has: one after another, 64 in flight, 100 in one call; and what it costs there. */
import { crawlUrls } from '../src/kinds/crawl.js';
import { sha256 } from '../src/kinds/identity.js';
import { latency, type Row, throughput, toRow } from './compare.js';
import { waysOf } from './peers.js';
import { decodeFaces, decodeRecord } from './raw.js';
import { FACES, HASHES, nth, TENANT, URLS } from './samples.js';
import { facesKey, facesName, proving, recordKey, recordName, type World } from './world.js';

export async function hitRows(world: World): Promise<Row[]> {
  const { app, raw, peers } = world;
  const { hybrid } = app.connection;
  const faceKeys = HASHES.map((hash) => facesKey(app, hash));
  const recordKeys = HASHES.map((hash) => recordKey(app, hash));
  const urlHashes = URLS.map(sha256);
  const faces = {
    ours: (n: number) => app.cache.getCachedFaceEmbeddings(nth(HASHES, n), TENANT),
    raw: async (n: number) => decodeFaces(await raw.redis.getBuffer(nth(faceKeys, n))),
    peers: waysOf(peers, (peer) => (n) => peer.get(facesName(nth(HASHES, n)))),
  };
  const records = {
    ours: (n: number) => hybrid.read(TENANT, crawlUrls, nth(urlHashes, n)),
    raw: async (n: number) => decodeRecord(await raw.redis.getBuffer(nth(recordKeys, n))),
    peers: waysOf(peers, (peer) => (n) => peer.get(recordName(nth(HASHES, n)))),
  };
  const skips = {
    ours: (n: number) => app.cache.shouldSkipUrl(nth(URLS, n), TENANT),
    raw: (n: number) => raw.redis.getBuffer(nth(recordKeys, n)),
    peers: records.peers,
  };
  return proving(app, 'redis_hit', async () => [
    await latency({ work: 'Redis hit in sequence, one face of 512 numbers', target: 1.15, turns: 40, ...faces }),
    await latency({ work: 'Redis hit in sequence, a record of 300 bytes', target: 1.15, turns: 40, ...records }),
    await throughput({ work: 'Redis hits, 64 in flight, one face of 512 numbers', target: 0.85, ...faces }),
    await throughput({ work: 'Redis hits, 64 in flight, a record of 300 bytes', target: 0.85, ...records }),
    await throughput({ work: 'shouldSkipUrl, 64 in flight', target: 0.8, ...skips }),
    await batchRow(world, faceKeys.slice(0, 100)),
  ]);
}

function batchRow({ app, raw, peers }: World, keys: readonly string[]): Promise<Row> {
  const hashes = HASHES.slice(0, 100);
  const names = hashes.map(facesName);
  return latency({
    work: 'Redis hits, 100 keys in one call, a face of 512 numbers each',
    target: 1.2,
    turns: 5,
    ours: () => app.cache.getCachedFaceEmbeddingsBatch(hashes, TENANT),
    raw: async () => (await raw.redis.mgetBuffer(...keys)).map(decodeFaces),
    peers: waysOf(
      peers.filter(({ getMany }) => getMany),
      (peer) => async () => peer.getMany?.(names),
    ),
  });
}

/** Bytes of Redis for one face of 512 numbers, key and all, beside the same as JSON text under the same key. */
export async function memoryRows({ app, raw: { redis }, peers }: World): Promise<Row[]> {
  const [hash = ''] = HASHES;
  const memoryOf = async (key: string) => Number(await redis.memory('USAGE', key));
  const key = facesKey(app, hash);
  const asText = key.replace(/^../, 'js');
  await redis.set(asText, JSON.stringify(FACES), 'PX', 60_000);
  const figures = peers.map(async ({ name, prefix }) => [name, await memoryOf(prefix + facesName(hash))]);
  const measured = {
    ours: await memoryOf(key),
    raw: await memoryOf(asText),
    peers: Object.fromEntries(await Promise.all(figures)),
  };
  const work = 'Redis memory of one face of 512 numbers, beside JSON text';
  return [toRow({ work, target: 0.3 }, measured, { better: 'lower', unit: 'bytes' })];
}
