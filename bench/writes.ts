/** Writes through both tiers, which are done when both have confirmed. */
import type { StackEnv } from '../src/local/running-stack.js';
import { latency, type Row, throughput } from './compare.js';
import { waysOf } from './peers.js';
import { openRaw, type Raw, upsertFaces, upsertRecord } from './raw.js';
import { FACES, freshHash, HASHES, nth, PACKED, recordEntry, recordOf, TENANT } from './samples.js';
import { facesKey, facesName, recordKey, recordName, type World, write } from './world.js';

const TTL_MS = 3_600_000;

export async function writeRows(world: World, env: StackEnv): Promise<Row[]> {
  const { app, raw, peers } = world;
  // The floor is a client of each, as in sequence: one statement after another on one connection. What a pool of ten
  // makes of the same is told beside it.
  await using single = openRaw(env, 1);
  const [hash = ''] = HASHES;
  // Entries of ours as they stand in Redis, so that the raw client writes as many bytes.
  const [facesBytes, recordBytes] = await raw.redis.mgetBuffer(facesKey(app, hash), recordKey(app, hash));
  if (!facesBytes || !recordBytes) throw new Error('Redis was to know the first image');
  const sql = peers.filter((peer) => peer.sql);

  const rawFaces = (from: Raw, key: string) =>
    Promise.all([upsertFaces(from, key, PACKED), from.redis.set(`raw:faces:${key}`, facesBytes, 'PX', TTL_MS)]);
  const rawRecord = (from: Raw, key: string) =>
    Promise.all([upsertRecord(from, key), from.redis.set(`raw:record:${key}`, recordBytes, 'PX', TTL_MS)]);
  const faces = (hashOf: (n: number) => string) => ({
    ours: async (n: number) => {
      const durable = await app.cache.cacheFaceEmbeddings(hashOf(n), TENANT, FACES);
      if (!durable) throw new Error('the faces could not be written');
    },
    raw: (n: number) => rawFaces(raw, hashOf(n)),
    peers: waysOf(sql, (peer) => (n) => peer.set(facesName(hashOf(n)), FACES)),
  });
  const records = {
    ours: () => write(app, [recordEntry(TENANT, freshHash())]),
    raw: () => rawRecord(raw, freshHash()),
    peers: waysOf(sql, (peer) => () => {
      const key = freshHash();
      return peer.set(recordName(key), recordOf(key));
    }),
  };
  return [
    await latency({
      work: 'write through both tiers in sequence, one face of 512 numbers, new keys',
      target: 1.3,
      turns: 15,
      ...faces(freshHash),
    }),
    await latency({
      work: 'write through both tiers in sequence, one face of 512 numbers, overwriting',
      target: null,
      turns: 10,
      ...faces((n) => nth(HASHES, n)),
    }),
    await throughput({
      work: 'write through both tiers, 64 in flight, one face of 512 numbers',
      target: 5,
      ...faces(freshHash),
      raw: () => rawFaces(single, freshHash()),
      beside: { rawOnTenConnections: () => rawFaces(raw, freshHash()) },
    }),
    await throughput({
      work: 'write through both tiers, 64 in flight, a record of 300 bytes',
      target: 4,
      ...records,
      raw: () => rawRecord(single, freshHash()),
      beside: { rawOnTenConnections: () => rawRecord(raw, freshHash()) },
    }),
  ];
}
