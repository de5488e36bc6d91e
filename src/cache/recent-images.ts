/** The newest images of some tenants or of all, with their faces: what a person looks at, not what a program pages through. */
import { unpackFaces } from '../kinds/face-codec.js';
import type { FaceDetection } from '../kinds/faces.js';
import type { Query } from './query.js';
import { CURRENT } from './statement.js';

export interface RecentImage {
  readonly tenantId: string;
  readonly contentHash: string;
  /** When it was first recorded, in milliseconds since the epoch. */
  readonly at: number;
  readonly hasThumbnail: boolean;
  /** Pixels of the upright image, `null` where nobody said. */
  readonly width: number | null;
  readonly height: number | null;
  /** The canonical URL that served these bytes first. */
  readonly url: string | null;
  /** How many did, counted up to 100. */
  readonly urls: number;
  readonly phash: string | null;
  /** `null` until the image is embedded. */
  readonly faces: number | null;
  /** Boxes of the faces in pixels of the upright image, `[x1, y1, x2, y2]`; none where there are too many to draw. */
  readonly boxes: FaceDetection['bbox'][];
}

interface Row extends Omit<RecentImage, 'boxes'> {
  readonly payload: Buffer | null;
}

/** Entries of the index that are looked at, whatever is found among them. */
const WALK = 10_000;
/** Some hundred faces. */
const MOST_FACE_BYTES = 256 * 1024;
const MOST_URLS = 100;

// `limit 1` where a key finds no more than one row: what has a limit is looked up row by row. Joined as tables, whole ones
// were read and hashed for 24 images, since a plan for any `limit $2` reckons with a thousand.
const details = (images: string) => `select image.tenant_id as "tenantId", image.content_hash as "contentHash",
    (extract(epoch from image.created_at) * 1000)::float8 as at, image.thumbnail_key is not null as "hasThumbnail",
    image.width, image.height, served.url, served.urls::int, hash.phash, face.faces,
    case when octet_length(face.payload) <= ${MOST_FACE_BYTES} then face.payload end as payload
  from (${images}) as image
  cross join lateral (
    select (array_agg(url order by created_at, url))[1] as url, count(*) as urls from (
      select url, created_at from crawl_cache as one
      where one.tenant_id = image.tenant_id and one.generation = image.generation
        and one.content_hash = image.content_hash
      limit ${MOST_URLS}) as few) as served
  left join lateral (
    select phash from perceptual_hash_cache as one
    where one.tenant_id = image.tenant_id and one.generation = image.generation
      and one.content_hash = image.content_hash
    limit 1) as hash on true
  left join lateral (
    select faces, payload from face_embeddings_cache as one
    where one.tenant_id = image.tenant_id and one.generation = image.generation
      and one.content_hash = image.content_hash and one.model = $1
    limit 1) as face on true
  order by image.created_at desc, image.content_hash`;

// Backwards through the index until there are enough; what is not reachable is passed over there.
const NEWEST = {
  name: 'recent_images',
  text: details(`select cached.* from (
      select tenant_id, content_hash, created_at from crawl_content_cache
      order by created_at desc, tenant_id desc, content_hash desc limit ${WALK}) as walk
    cross join lateral (
      select * from crawl_content_cache as own
      where own.tenant_id = walk.tenant_id and own.generation = ${CURRENT('walk.tenant_id')}
        and own.content_hash = walk.content_hash and own.created_at = walk.created_at
      limit 1) as cached
    order by walk.created_at desc, walk.tenant_id desc, walk.content_hash desc limit $2`),
};

// The newest of each tenant, from an index of their own: who was idle for a year is as quick to find as who is busy.
const NEWEST_OF_FEW = {
  name: 'recent_images_of_few',
  text: details(`select cached.* from unnest($3::text[]) as asked(tenant_id) cross join lateral (
      select * from crawl_content_cache as own
      where own.tenant_id = asked.tenant_id and own.generation = ${CURRENT('asked.tenant_id')}
      order by own.created_at desc limit $2) as cached
    order by cached.created_at desc, cached.content_hash limit $2`),
};

/**
 * The newest first, at most `limit`.
 *
 * @param tenants `null` for all
 * @throws {TierUnavailableError}
 */
export async function recentImages(
  query: Query,
  tenants: readonly string[] | null,
  model: string,
  limit: number,
): Promise<RecentImage[]> {
  const statement = tenants
    ? { ...NEWEST_OF_FEW, values: [model, limit, tenants] }
    : { ...NEWEST, values: [model, limit] };
  const { rows } = await query<Row>(statement);
  return rows.map(({ payload, ...image }) => ({ ...image, boxes: payload ? boxesOf(payload) : [] }));
}

/** A damaged payload is the cache's to report, when somebody looks the faces up. */
function boxesOf(payload: Buffer): FaceDetection['bbox'][] {
  try {
    return unpackFaces(payload).map((face) => face.bbox as FaceDetection['bbox']);
  } catch {
    return [];
  }
}
