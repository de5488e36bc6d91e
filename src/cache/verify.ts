/**
 * Compares samples of both tiers. PostgreSQL is the truth: a Redis entry that would be served has to be what it holds.
 * What would not be served (another run of Redis, a dead generation, a tombstone, a pending repair) is no difference,
 * and neither is what a second look, a moment later, does not see any more: writes are under way at any time.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { KINDS } from '../kinds/index.js';
import type { AnyKind, KeyPart } from '../kinds/kind.js';
import type { KindName } from '../metrics.js';
import type { CacheConnection } from './connect.js';
import { CURRENT } from './statement.js';
import { ALL_TENANTS, type Found, idOf, type Lookup } from './tier.js';

interface Difference {
  readonly kind: KindName;
  readonly tenantId: string;
  /** The entry's Redis key without the prefix. */
  readonly id: string;
  readonly what:
    | 'in Redis and not in PostgreSQL'
    | 'another version in Redis'
    | 'another value in Redis'
    | 'unreadable in Redis'
    | 'unreadable in PostgreSQL';
}

export interface Verification {
  /** Entries that were looked at, by where they were found. */
  readonly sampled: Readonly<Record<'redis' | 'postgres', Readonly<Partial<Record<KindName, number>>>>>;
  /** Entries that both tiers were found to have an answer to: with none, nothing is verified. */
  readonly compared: number;
  readonly differences: readonly Difference[];
  /** What the samples met in Redis that is not served, and so not compared. */
  readonly passedOver: {
    /** Of another run of the server, a tombstone, or expired meanwhile. */
    readonly void: number;
    /** Of a generation that an invalidation has ended. */
    readonly dead: number;
    /** Older than an overwrite that waits for Redis to confirm it. */
    readonly repairing: number;
    /** Served only while PostgreSQL is away. */
    readonly unjournaled: number;
  };
  /** Writes that wait for PostgreSQL; `null` without a queue on Redis, or where that does not answer. */
  readonly pendingReplays: number | null;
}

type Passed = keyof Verification['passedOver'];
type Verdict = Passed | 'same' | Difference['what'];

/** Entries in one page: one round trip to each tier. */
const PAGE = 200;
/** Rather several pages of a table than one, whose rows were written together. */
const BLOCKS = 64;
const SECOND_LOOK_MS = 1_000;
/** SCAN goes on from any number; of greater ones than it gives itself only the lowest bits count. */
const CURSORS = 2 ** 32;

/**
 * Looks at `sample` entries of Redis and of every table.
 *
 * @throws {TierUnavailableError} when a tier is away
 */
export async function verify(connection: CacheConnection, { sample = 1_000 } = {}): Promise<Verification> {
  await connection.begin();
  const hot = connection.tiers.redis ? await sampleRedis(connection, sample) : [];
  const permanent = await samplePostgres(connection, sample);
  const all = [...new Map([...hot, ...permanent].map((one) => [one.id, one])).values()];
  const verdicts = connection.tiers.redis ? await compared(connection, all) : [];
  const suspects = verdicts.filter(({ verdict }) => isDifference(verdict)).map(({ asked }) => asked);
  if (suspects.length > 0) await pause(SECOND_LOOK_MS);
  const again = await compared(connection, suspects);
  const differences = again.flatMap(({ asked: { kind, tenantId, id }, verdict }) =>
    isDifference(verdict) ? [{ kind: kind.name, tenantId, id, what: verdict }] : [],
  );
  const seen = new Set(hot.map(({ id }) => id));
  const passed = (what: Passed) =>
    verdicts.filter(({ asked, verdict }) => seen.has(asked.id) && verdict === what).length;
  return {
    sampled: { redis: counted(hot), postgres: counted(permanent) },
    compared: verdicts.filter(({ verdict }) => verdict === 'same' || isDifference(verdict)).length,
    differences,
    passedOver: {
      void: passed('void'),
      dead: passed('dead'),
      repairing: passed('repairing'),
      unjournaled: passed('unjournaled'),
    },
    pendingReplays: (await connection.journal?.pending().catch(() => null)) ?? null,
  };
}

/** From anywhere on, so that who asks often sees all there is: to the end, and where that is not enough from the beginning. */
async function sampleRedis({ tiers: { redis } }: CacheConnection, sample: number): Promise<Lookup[]> {
  const found = new Map<string, Lookup>();
  let cursor = String(randomInt(CURSORS));
  for (let rounds = 0; rounds < 2 && found.size < sample; rounds += cursor === '0' ? 1 : 0) {
    const page = await redis?.guard.run('query', () => redis.tier.scan(ALL_TENANTS, cursor));
    for (const one of (page?.ids ?? []).flatMap(parsed)) found.set(one.id, one);
    cursor = page?.cursor ?? '0';
  }
  return [...found.values()].slice(0, sample);
}

async function samplePostgres({ query }: CacheConnection, sample: number): Promise<Lookup[]> {
  const found: Lookup[] = [];
  for (const kind of KINDS) {
    const { rows } = await query<(string | number)[]>({ ...sampling(kind), values: [sample], rowMode: 'array' });
    found.push(...rows.map(([tenantId, ...parts]) => lookupOf(kind, String(tenantId), parts)));
  }
  return found;
}

/** Of a table of up to `BLOCKS` blocks, all rows are candidates; of a larger one, those of about as many. */
function sampling({ name, table }: AnyKind) {
  const columns = ['tenant_id', ...table.key.map((column) => column.name)].join(', ');
  const share = `100.0 * greatest($1::int / 8, ${BLOCKS}) / greatest(pg_relation_size('${table.name}') / 8192, 1)`;
  const rows = `select ${columns} from ${table.name} tablesample system (least(100, ${share}))`;
  return {
    name: `sample ${name}`,
    text: `select distinct ${columns} from (${rows} order by random() limit $1::int) as rows`,
  };
}

/** One round trip to Redis and two to PostgreSQL, at once, for every page. */
async function compared(connection: CacheConnection, lookups: readonly Lookup[]) {
  const { redis, postgres } = connection.tiers;
  const verdicts: { asked: Lookup; verdict: Verdict }[] = [];
  for (let at = 0; redis && at < lookups.length; at += PAGE) {
    const page = lookups.slice(at, at + PAGE);
    // Redis first: what PostgreSQL says afterwards is at least as new.
    const { found: hot } = await redis.guard.run('read', () => redis.tier.read(page));
    const [permanent, truths] = await Promise.all([
      postgres.guard.run('read', () => postgres.tier.read(page)),
      truthsOf(connection, page),
    ]);
    page.forEach((asked, i) => {
      const truth = truths.get(asked.id) ?? { generation: 0, repair: 0 };
      verdicts.push({ asked, verdict: verdictOf(asked, hot[i] as Found, permanent[i] as Found, truth) });
    });
  }
  return verdicts;
}

interface Truth {
  readonly generation: number;
  /** The version below which Redis' entry is not believed. */
  readonly repair: number;
}

const TRUTHS = {
  name: 'verify',
  text: `select asked.entry,
      ${CURRENT('asked.tenant_id')}::float8 as generation,
      coalesce((select version from redis_repairs r where r.tenant_id = asked.tenant_id and r.entry = asked.entry), 0)::float8
        as repair
    from unnest($1::text[], $2::text[]) as asked(tenant_id, entry)`,
};

async function truthsOf({ query }: CacheConnection, page: readonly Lookup[]): Promise<Map<string, Truth>> {
  const values = [page.map(({ tenantId }) => tenantId), page.map(({ id }) => id)];
  const { rows } = await query<Truth & { entry: string }>({ ...TRUTHS, values });
  return new Map(rows.map((row) => [row.entry, row]));
}

function verdictOf({ kind }: Lookup, hot: Found, permanent: Found, truth: Truth): Verdict {
  if (permanent.state === 'corrupt') return 'unreadable in PostgreSQL';
  if (hot.state === 'corrupt') return 'unreadable in Redis';
  if (hot.state === 'absent') return 'void';
  if (hot.unjournaled) return 'unjournaled';
  if (hot.generation < truth.generation) return 'dead';
  if (hot.version < truth.repair) return 'repairing';
  if (permanent.state === 'absent') return 'in Redis and not in PostgreSQL';
  if (hot.version !== permanent.version) return 'another version in Redis';
  // Decoded and encoded alike: JSON of a table's columns and of the writer may differ in their order.
  const bytes = [hot, permanent].map(({ value }) => kind.encode(value));
  const same = isDeepStrictEqual(bytes[0], bytes[1]) || isDeepStrictEqual(hot.value, permanent.value);
  return same ? 'same' : 'another value in Redis';
}

function isDifference(verdict: Verdict): verdict is Difference['what'] {
  return verdict.includes('Redis') || verdict.includes('PostgreSQL');
}

/** The look-up behind an entry's name. Parts of a key hold no colon. */
function parsed(id: string): Lookup[] {
  const [name, tenantId = '', ...parts] = id.split(':');
  const kind = KINDS.find((one) => one.name === name);
  return kind && parts.length === kind.table.key.length ? [lookupOf(kind, tenantId, parts)] : [];
}

function lookupOf(kind: AnyKind, tenantId: string, parts: readonly KeyPart[]): Lookup {
  return { kind, tenantId, parts, id: idOf(kind.name, tenantId, parts) };
}

function counted(sampled: readonly Lookup[]): Partial<Record<KindName, number>> {
  const counts: Partial<Record<KindName, number>> = {};
  for (const { kind } of sampled) counts[kind.name] = (counts[kind.name] ?? 0) + 1;
  return counts;
}
