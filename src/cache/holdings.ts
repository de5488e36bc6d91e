/** How much there is of some tenants: what `statistics.ts` tells of all of them together, and how many faces were found. */
import type { Query } from './query.js';
import { CURRENT } from './statement.js';

/** Rows that can be reached. */
export interface Holdings extends Readonly<Record<HoldingName, number>> {
  /** Of which of these there are more: they were counted up to a bound. */
  readonly atLeast: readonly HoldingName[];
  /** Which of these are estimates: there were too many to count. */
  readonly about: readonly HoldingName[];
}

/** The tables that are counted. */
export const HOLDINGS = {
  images: 'crawl_content_cache',
  urls: 'crawl_cache',
  embedded: 'face_embeddings_cache',
  refusals: 'rejection_cache',
} as const;

export type HoldingName = keyof typeof HOLDINGS;
export const HOLDING_NAMES = Object.keys(HOLDINGS) as HoldingName[];

export interface FaceCount {
  readonly faces: number;
  /** The embedded images that were looked at, and those of them that show a face. */
  readonly images: number;
  readonly withFaces: number;
  /** Whether these are all; else there are more. */
  readonly exact: boolean;
}

const MOST_ROWS = 10_000;
const MOST_FACE_ROWS = 2_000;

const counted = (table: string) => `(select count(*)::int from (
    select from ${table} as cached where cached.tenant_id = asked.tenant_id and cached.generation = asked.generation
    limit ${MOST_ROWS + 1}) as few)`;

const COUNTS = {
  name: 'holdings_of_few',
  text: `select ${HOLDING_NAMES.map((name) => `${counted(HOLDINGS[name])} as ${name}`).join(', ')}
    from (select tenant_id, ${CURRENT('tenant_id')} as generation from unnest($1::text[]) as tenant_id) as asked`,
};

const faceCount = (rows: string) => `with page as materialized (${rows})
  select coalesce(sum(faces), 0)::int as faces, count(*)::int as images,
    (count(*) filter (where faces > 0))::int as "withFaces", (select count(*) from page) < ${MOST_FACE_ROWS} as exact
  from page where model = $1 and generation = ${CURRENT('page.tenant_id')}`;

const FACES = {
  name: 'faces_of_all',
  text: faceCount(`select tenant_id, generation, model, faces from face_embeddings_cache
    order by created_at desc limit ${MOST_FACE_ROWS}`),
};

const FACES_OF_FEW = {
  name: 'faces_of_few',
  text: faceCount(`select cached.tenant_id, cached.generation, cached.model, cached.faces
    from unnest($2::text[]) as asked(tenant_id) cross join lateral (
      select * from face_embeddings_cache as own
      where own.tenant_id = asked.tenant_id and own.generation = ${CURRENT('asked.tenant_id')}
      limit ${MOST_FACE_ROWS}) as cached
    limit ${MOST_FACE_ROWS}`),
};

/** Up to 10,000 rows of each table and tenant are counted. @throws {TierUnavailableError} */
export async function holdingsOf(query: Query, tenants: readonly string[]): Promise<Holdings> {
  const { rows } = await query<Record<HoldingName, number>>({ ...COUNTS, values: [tenants] });
  const sums = { images: 0, urls: 0, embedded: 0, refusals: 0 };
  for (const row of rows) for (const name of HOLDING_NAMES) sums[name] += Math.min(row[name], MOST_ROWS);
  return { ...sums, atLeast: HOLDING_NAMES.filter((name) => rows.some((row) => row[name] > MOST_ROWS)), about: [] };
}

/** The faces of up to 2,000 images, the newest of all tenants or any of some. @throws {TierUnavailableError} */
export async function facesFound(query: Query, tenants: readonly string[] | null, model: string): Promise<FaceCount> {
  const statement = tenants ? { ...FACES_OF_FEW, values: [model, tenants] } : { ...FACES, values: [model] };
  const { rows } = await query<FaceCount>(statement);
  return rows[0] as FaceCount;
}
