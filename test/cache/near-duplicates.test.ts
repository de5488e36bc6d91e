/** Near-duplicate search finds all that brute force finds, and asks the index alone. */
import type { QueryConfig } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type NearDuplicate, type SearchOptions, searchNearDuplicates } from '../../src/cache/near-duplicates.js';
import type { Query } from '../../src/cache/query.js';
import { entry } from '../../src/cache/tier.js';
import { ArgumentError } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { isTelling, perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { createWorld, type World } from '../support/world.js';
import { freshTenant, type OpenCache, openCache } from './support.js';

const MOST = 20;
/** Set bits of a hash that says something about a picture. */
const [FEWEST_BITS, MOST_BITS] = [12, 52];

let world: World;
let cache: OpenCache;

beforeAll(async () => {
  world = await createWorld();
  cache = openCache(world.config({ REDIS_URL: 'none' }), world.namespace);
});

afterAll(async () => {
  await cache[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

/** xorshift64 (Marsaglia 2003): the same hashes in every run. */
function randomHashes(seed: bigint): () => bigint {
  let state = seed;
  return () => {
    state ^= BigInt.asUintN(64, state << 13n);
    state ^= state >> 7n;
    state ^= BigInt.asUintN(64, state << 17n);
    return state;
  };
}

const text = (hash: bigint) => hash.toString(16).padStart(16, '0');

/** Set bits of every 16-bit number: brute force looks at millions of pairs. */
const BITS = Uint8Array.from({ length: 65_536 }, (_, n) => n.toString(2).replaceAll('0', '').length);

function distance(a: string, b: string): number {
  let bits = 0;
  for (let at = 0; at < 16; at += 4) {
    bits += BITS[Number.parseInt(a.slice(at, at + 4), 16) ^ Number.parseInt(b.slice(at, at + 4), 16)] ?? 0;
  }
  return bits;
}

/** `hash` with `count` different bits flipped. */
function flipped(hash: bigint, count: number, random: () => bigint): bigint {
  const bits = new Set<bigint>();
  while (bits.size < count) bits.add(random() % 64n);
  return [...bits].reduce((changed, bit) => changed ^ (1n << bit), hash);
}

async function put(tenant: string, phashes: readonly string[], name = 'image'): Promise<string[]> {
  const entries = phashes.map((phash, i) => entry(tenant, perceptualHashes, sha256(`${name} ${i}`), phash));
  for (let i = 0; i < entries.length; i += 1_000) {
    await cache.connection.tiers.postgres.tier.write(entries.slice(i, i + 1_000));
  }
  return entries.map(({ parts }) => parts[0] as string);
}

function search(tenant: string, phash: string, options: SearchOptions = {}, query = cache.connection.query) {
  return searchNearDuplicates(query, tenant, phash, options);
}

function bruteForce(hashes: readonly string[], keys: readonly string[], asked: string, most: number): NearDuplicate[] {
  const near = hashes.flatMap((phash, i) => {
    const apart = distance(phash, asked);
    const bits = distance(phash, '0'.repeat(16));
    const counts = apart <= most && bits >= FEWEST_BITS && bits <= MOST_BITS;
    return counts ? [{ contentHash: keys[i] ?? '', phash, distance: apart }] : [];
  });
  return near.sort((a, b) => a.distance - b.distance || (a.contentHash < b.contentHash ? -1 : 1)).slice(0, MOST);
}

test('of thousands of hashes, random and clustered, every one within the distance is found, for every distance', async () => {
  const tenant = freshTenant();
  const random = randomHashes(0x9e3779b97f4a7c15n);
  const centres = Array.from({ length: 40 }, () => random());
  const clustered = centres.flatMap((centre) =>
    Array.from({ length: 50 }, (_, i) => text(flipped(centre, i % 12, random))),
  );
  const scattered = Array.from({ length: 2_000 }, () => text(random()));
  const hashes = [...clustered, ...scattered];
  const keys = await put(tenant, hashes);
  const asked = [
    ...centres.slice(0, 12).map(text),
    ...clustered.slice(0, 400).filter((_, i) => i % 32 === 3),
    text(random()),
  ];
  let found = 0;
  for (let maxDistance = 0; maxDistance <= 7; maxDistance++) {
    for (const phash of asked) {
      const answer = await search(tenant, phash, { maxDistance });
      expect(answer, `${phash} within ${maxDistance}`).toEqual(bruteForce(hashes, keys, phash, maxDistance));
      found += answer.length;
    }
  }
  expect(found).toBeGreaterThan(1_000);
}, 120_000);

test('every way to be seven bits apart is found, wherever the bits are', async () => {
  const tenant = freshTenant();
  const random = randomHashes(42n);
  const centre = 0x0f0f_f0f0_0ff0_f00fn;
  // Two bits in each of three bands and one in the fourth is the hardest of all; ends and runs are the odd ones.
  const hardest = [0, 1, 2, 3].map((band) =>
    [0, 1, 2, 3]
      .flatMap((other) => (other === band ? [16 * other + 5] : [16 * other, 16 * other + 15]))
      .reduce((hash, bit) => hash ^ (1n << BigInt(bit)), centre),
  );
  const runs = Array.from({ length: 58 }, (_, start) => centre ^ (127n << BigInt(start)));
  const others = Array.from({ length: 200 }, () => flipped(centre, 7, random));
  const hashes = [...new Set([...hardest, ...runs, ...others])].map(text);
  const keys = await put(tenant, hashes);
  expect(await search(tenant, text(centre), { maxDistance: 7 })).toEqual(bruteForce(hashes, keys, text(centre), 7));
  // One at a time, so that the limit of twenty hides none.
  for (const phash of hashes) {
    const alone = freshTenant();
    const [key] = await put(alone, [phash]);
    expect(await search(alone, text(centre), { maxDistance: 7 })).toEqual([{ contentHash: key, phash, distance: 7 }]);
    expect(await search(alone, text(centre), { maxDistance: 6 })).toEqual([]);
  }
});

test('hashes with the highest bit set come back as they were', async () => {
  const tenant = freshTenant();
  const hashes = ['ffffffff00000000', '8000ffffffff0000', 'fedcba9876543210'];
  const keys = await put(tenant, hashes);
  for (const [i, phash] of hashes.entries()) {
    expect(await search(tenant, phash, { maxDistance: 0 })).toEqual([{ contentHash: keys[i], phash, distance: 0 }]);
  }
});

test('nearest come first, twenty at most, six bits apart unless said otherwise, and not the one that is asked about', async () => {
  const tenant = freshTenant();
  const centre = 0x00ff_00ff_00ff_00ffn;
  const hashes = Array.from({ length: 40 }, (_, i) => text(centre ^ ((1n << BigInt(i % 8)) - 1n)));
  const keys = await put(tenant, hashes);
  const answer = await search(tenant, text(centre));
  expect(answer).toHaveLength(MOST);
  expect(answer.map((one) => one.distance)).toEqual(answer.map((one) => one.distance).sort((a, b) => a - b));
  expect(answer).toEqual(bruteForce(hashes, keys, text(centre), 6));
  const rest = await search(tenant, text(centre), { maxDistance: 0, except: keys[0] });
  expect(rest.map((one) => one.contentHash)).toEqual(keys.filter((_, i) => i > 0 && i % 8 === 0).sort());
});

test('what the index holds and what is searched for is one rule: neither of two neighbours lists the other alone', async () => {
  const hashes = Array.from({ length: 65 }, (_, bits) => text((1n << BigInt(bits)) - 1n));
  const { rows } = await cache.connection.query<{ held: boolean }>({
    text: 'select perceptual_hash_number(phash) is not null as held from unnest($1::text[]) with ordinality as h(phash, n) order by n',
    values: [hashes],
  });
  expect(rows.map(({ held }) => held)).toEqual(hashes.map(isTelling));
  const tenant = freshTenant();
  const [few = '', enough = ''] = hashes.slice(11);
  const keys = await put(tenant, [few, enough]);
  for (const [i, hash] of [few, enough].entries()) expect(await search(tenant, hash, { except: keys[i] })).toEqual([]);
});

test('another tenant sees nothing of it', async () => {
  const tenant = freshTenant();
  await put(tenant, ['00ff00ff00ff00ff']);
  expect(await search(freshTenant(), '00ff00ff00ff00ff')).toEqual([]);
  expect(await search(`${tenant}.`, '00ff00ff00ff00ff')).toEqual([]);
});

test('what was invalidated is nobody’s near-duplicate, and what is written again is', async () => {
  const tenant = freshTenant();
  const [key] = await put(tenant, ['00ff00ff00ff00ff']);
  await cache.connection.invalidation.invalidate(tenant);
  expect(await search(tenant, '00ff00ff00ff00ff')).toEqual([]);
  await put(tenant, ['00ff00ff00ff00fe']);
  expect(await search(tenant, '00ff00ff00ff00ff')).toEqual([
    { contentHash: key, phash: '00ff00ff00ff00fe', distance: 1 },
  ]);
});

test.each([
  ['no bits', '0000000000000000'],
  ['eleven bits', '00000000000007ff'],
  ['fifty-three bits', '001fffffffffffff'],
  ['all bits', 'ffffffffffffffff'],
  ['opaque text', 'an opaque hash 1'],
  ['upper case', '00FF00FF00FF00FF'],
  ['seventeen characters', '00ff00ff00ff00ff0'],
])('a hash that says nothing about a picture is nobody’s near-duplicate: %s', async (_what, phash) => {
  const tenant = freshTenant();
  await put(tenant, [phash, phash]);
  expect(await search(tenant, phash, { maxDistance: 7 })).toEqual([]);
});

test.each(['0000000000000fff', '000fffffffffffff'])('a hash at the edge of what counts is found: %s', async (phash) => {
  const tenant = freshTenant();
  const [key] = await put(tenant, [phash]);
  expect(await search(tenant, phash)).toEqual([{ contentHash: key, phash, distance: 0 }]);
});

test('the index follows updates and deletions', async () => {
  const tenant = freshTenant();
  const [key, other] = await put(tenant, ['00ff00ff00ff00ff', '00ff00ff00ff00fe']);
  const found = async (phash: string) =>
    (await search(tenant, phash, { maxDistance: 0 })).map((one) => one.contentHash);
  expect(await found('00ff00ff00ff00ff')).toEqual([key]);

  await put(tenant, ['ff00ff00ff00ff00']);
  expect(await found('00ff00ff00ff00ff')).toEqual([]);
  expect(await found('ff00ff00ff00ff00')).toEqual([key]);

  await put(tenant, ['ff00ff00ff00ff00']);
  expect(await found('ff00ff00ff00ff00')).toEqual([key]);

  await put(tenant, ['opaque now']);
  expect(await found('ff00ff00ff00ff00')).toEqual([]);

  await put(tenant, ['ff00ff00ff00ff00']);
  await cache.connection.pool.query('delete from perceptual_hash_cache where tenant_id = $1', [tenant]);
  expect(await found('ff00ff00ff00ff00')).toEqual([]);
  expect(await found('00ff00ff00ff00fe')).not.toContain(other);
  const { rows } = await cache.connection.pool.query('select 1 from perceptual_hash_bands where tenant_id = $1', [
    tenant,
  ]);
  expect(rows).toEqual([]);
});

test('many writers of one hash leave four bands', async () => {
  const tenant = freshTenant();
  await Promise.all(
    Array.from({ length: 20 }, (_, i) => put(tenant, [i % 2 === 0 ? '00ff00ff00ff00ff' : 'ff00ff00ff00ff00'])),
  );
  const text =
    'select count(*)::int as n, count(distinct phash)::int as hashes from perceptual_hash_bands where tenant_id = $1';
  const { rows } = await cache.connection.pool.query(text, [tenant]);
  expect(rows).toEqual([{ n: 4, hashes: 1 }]);
});

test.each([-1, 8, 1.5, Number.NaN, Number.POSITIVE_INFINITY, '6'])('%j is no distance', async (maxDistance) => {
  const refusal = search('tenant', '00ff00ff00ff00ff', { maxDistance: maxDistance as number });
  await expect(refusal).rejects.toBeInstanceOf(ArgumentError);
  await expect(refusal).rejects.toMatchObject({ argument: 'maxDistance' });
});

test('a picture that a tenant has thousands of times costs one probe', async () => {
  const tenant = freshTenant();
  const centre = 0x00ff_00ff_00ff_00ffn;
  const hashes = [...Array.from({ length: 2_000 }, () => text(centre)), text(centre ^ 1n)];
  const keys = await put(tenant, hashes);
  const plans: string[] = [];
  const explained: Query = async (statement) => {
    const { text: sql, values } = statement;
    const { rows } = await cache.connection.pool.query(`explain (analyze, costs off) ${sql}`, values);
    plans.push(rows.map((row) => row['QUERY PLAN']).join('\n'));
    return cache.connection.query(statement);
  };
  expect(await search(tenant, text(centre), {}, explained)).toEqual(bruteForce(hashes, keys, text(centre), 6));
  expect(plans[0]).toMatch(/Function Scan on probe \(never executed\)/);
  // Nobody has this one's very hash: all the others are looked for.
  expect(await search(tenant, text(centre ^ 3n), {}, explained)).toEqual(
    bruteForce(hashes, keys, text(centre ^ 3n), 6),
  );
  expect(plans[1]).not.toMatch(/Function Scan on probe \(never executed\)/);
});

test('the search walks the primary key of the bands, whatever its plan was made for', async () => {
  const tenant = freshTenant();
  const random = randomHashes(7n);
  await put(
    tenant,
    Array.from({ length: 5_000 }, () => text(random())),
  );
  // Of a small table, a scan is the best plan.
  const generations =
    "insert into cache_generations (tenant_id, generation) select 'tenant ' || n, n from generate_series(1, 2000) as n";
  await cache.connection.pool.query(generations);
  await cache.connection.pool.query('vacuum analyze perceptual_hash_bands, cache_generations');
  let asked: QueryConfig | undefined;
  const watched: Query = (statement) => {
    asked = statement;
    return cache.connection.query(statement);
  };
  await search(tenant, text(random()), { maxDistance: 7 }, watched);
  const client = await cache.connection.pool.connect();
  try {
    for (const mode of ['force_custom_plan', 'force_generic_plan']) {
      await client.query(`set plan_cache_mode = ${mode}`);
      // Prepared, since only a prepared statement can have a generic plan.
      await client.query(`prepare near_${mode} as ${asked?.text}`);
      const values = (asked?.values ?? []).map((value) => client.escapeLiteral(literal(value))).join(', ');
      const sql = `explain (costs off) execute near_${mode}(${values.replace(/'null'/g, 'null')})`;
      const { rows } = await client.query<{ 'QUERY PLAN': string }>(sql);
      const plan = rows.map((row) => row['QUERY PLAN']).join('\n');
      expect(plan, mode).toMatch(/Index Only Scan using perceptual_hash_bands_pk/);
      expect(plan, mode).toMatch(/Index Cond: .*band = .*bits = /);
      expect(plan, mode).not.toContain('Seq Scan');
    }
  } finally {
    client.release(true);
  }
});

function literal(value: unknown): string {
  return Array.isArray(value) ? `{${value.join(',')}}` : String(value);
}
