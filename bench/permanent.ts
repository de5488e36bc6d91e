/** What Redis does not have: found in PostgreSQL, or nowhere. */
import { latency, type Row } from './compare.js';
import { waysOf } from './peers.js';
import { selectFaces } from './raw.js';
import { freshHash, HASHES, nth, TENANT } from './samples.js';
import { facesKey, facesName, proving, type World } from './world.js';

export async function permanentRows(world: World): Promise<Row[]> {
  return [
    await proving(world.app, 'postgres_hit', () => hitRow(world)),
    await proving(world.app, 'miss', () => missRow(world)),
  ];
}

function hitRow({ app, raw, peers }: World): Promise<Row> {
  const keys = HASHES.map((hash) => facesKey(app, hash));
  const copies = keys.map((key) => key.replace(/^../, 'raw'));
  return latency({
    work: 'PostgreSQL hit in sequence, Redis empty, one face of 512 numbers',
    target: 1.15,
    turns: 15,
    ours: {
      prepare: (n) => raw.redis.del(nth(keys, n)),
      run: (n) => app.cache.getCachedFaceEmbeddings(nth(HASHES, n), TENANT),
    },
    raw: {
      prepare: (n) => raw.redis.del(nth(copies, n)),
      run: async (n) => {
        const key = nth(copies, n);
        if (await raw.redis.getBuffer(key)) throw new Error('Redis was to be empty');
        const { rows } = await selectFaces(raw, nth(HASHES, n));
        raw.redis.set(key, rows[0].payload, 'PX', 3_600_000);
      },
    },
    peers: waysOf(
      peers.filter(({ sql }) => sql),
      (peer) => ({
        prepare: (n) => peer.forget(facesName(nth(HASHES, n))),
        run: (n) => peer.get(facesName(nth(HASHES, n))),
      }),
    ),
  });
}

function missRow({ app, raw, peers }: World): Promise<Row> {
  return latency({
    work: 'miss in both tiers, in sequence',
    target: 1.15,
    turns: 15,
    ours: () => app.cache.getCachedFaceEmbeddings(freshHash(), TENANT),
    raw: async () => {
      const hash = freshHash();
      await raw.redis.getBuffer(hash);
      await selectFaces(raw, hash);
    },
    peers: waysOf(
      peers.filter(({ sql }) => sql),
      (peer) => () => peer.get(freshHash()),
    ),
  });
}
