/** Near-duplicate search of a tenant with a million hashes, and of one that has the same picture a hundred thousand times. */
import { randomInt } from 'node:crypto';
import pg from 'pg';
import { searchNearDuplicates } from '../src/cache/near-duplicates.js';
import type { StackEnv } from '../src/local/running-stack.js';
import { quantileOf, type Row, timed } from './compare.js';
import { told } from './sizing-work.js';
import type { World } from './world.js';

const HASHES = 1_000_000;
const COPIES = 100_000;
const QUESTIONS = 600;
const TENANT = 'look-alikes';

/** In the order of the key, since a B-tree that is filled in any other takes many times as long. */
const FILL = `insert into perceptual_hash_bands (tenant_id, generation, band, bits, phash, content_hash)
  select $1, (select max(generation) from cache_generations where tenant_id in ($1, '*')),
    band, perceptual_hash_band(phash, band), phash, content_hash
  from (select ('x' || substr(md5($4::text || least(n, $3)), 1, 16))::bit(64)::bigint as phash,
      encode(sha256(($4::text || n)::bytea), 'hex') as content_hash
    from generate_series(1, $2::int) as n) as hashed, generate_series(0, 3) as band
  order by 3, 4, 5, 6`;

export async function nearDuplicateRows({ app }: World, env: StackEnv): Promise<Row[]> {
  const { query } = app.connection;
  const { known, copy } = await filled(env);

  const measured = async (work: string, maxDistance: number, asked: () => bigint): Promise<Row> => {
    const samples: number[] = [];
    for (let n = -QUESTIONS; n < QUESTIONS; n++) {
      const hash = asked().toString(16).padStart(16, '0');
      const ms = await timed(() => searchNearDuplicates(query, TENANT, hash, { maxDistance }));
      if (n >= 0) samples.push(ms);
    }
    return told(work, quantileOf(samples, 0.5), 'ms', { p99Ms: quantileOf(samples, 0.99) });
  };
  const any = () => flipped(known[randomInt(known.length)] as bigint, randomInt(7));
  const found: Row[] = [];
  for (const distance of [3, 6, 7]) {
    found.push(await measured(`near-duplicates among a million hashes, up to ${distance} bits apart`, distance, any));
  }
  found.push(await measured('near-duplicates of a picture that is there 100,000 times', 6, () => copy));
  return found;
}

/** Hashes that are in it, and the one that is in it many times. */
async function filled(env: StackEnv): Promise<{ known: bigint[]; copy: bigint }> {
  // The service's own connections give up a statement that takes this long.
  const client = new pg.Client({ connectionString: env.DATABASE_URL });
  await client.connect();
  try {
    await client.query(FILL, [TENANT, COPIES, 1, 'always the same']);
    const first = 'select phash::text from perceptual_hash_bands limit 1';
    const [copied] = (await client.query<{ phash: string }>(first)).rows;
    await client.query(FILL, [TENANT, HASHES, HASHES, 'one of many']);
    await client.query('vacuum analyze perceptual_hash_bands');
    const some = `select phash::text from perceptual_hash_bands where tenant_id = $1 and band = 0
      and bits in (select floor(65536 * random())::int from generate_series(1, 300))`;
    const { rows } = await client.query<{ phash: string }>(some, [TENANT]);
    return { known: rows.map(({ phash }) => toHash(phash)), copy: toHash(copied?.phash ?? '') };
  } finally {
    await client.end();
  }
}

const toHash = (phash: string) => BigInt.asUintN(64, BigInt(phash));

function flipped(hash: bigint, count: number): bigint {
  const bits = Array.from({ length: count }, () => 1n << BigInt(randomInt(64)));
  return bits.reduce((changed, bit) => changed ^ bit, hash);
}
