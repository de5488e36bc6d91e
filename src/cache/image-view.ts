/** Everything that is known of one image, as a reader of the API sees it. */
import type { Pool } from 'pg';
import type { CrawlContent } from '../kinds/crawl.js';
import { crawlContents } from '../kinds/crawl.js';
import { type FaceEmbedding, faceEmbeddings } from '../kinds/faces.js';
import { perceptualHashes } from '../kinds/perceptual-hash.js';
import type { CacheConnection } from './connect.js';
import type { Guard } from './guard.js';
import { type Answer, known } from './hybrid.js';
import { type NearDuplicate, searchNearDuplicates } from './near-duplicates.js';
import { lookup } from './tier.js';

export interface ImageView {
  readonly contentHash: string;
  readonly rawKey: string;
  readonly thumbnailKey: string | null;
  readonly phash: string | null;
  readonly width: number | null;
  readonly height: number | null;
  readonly mimeType: string | null;
  /** Canonical URLs that served these bytes, in the order they were first seen. */
  readonly urls: string[];
  /** The model of `faces`. */
  readonly model: string;
  /** `null` until the image is embedded; `[]` where it shows no face. */
  readonly faces: FaceEmbedding[] | null;
  readonly nearDuplicates: NearDuplicate[];
}

const URLS = {
  name: 'image_urls',
  text: `select url from crawl_cache
    where tenant_id = $1 and generation = (select max(generation) from cache_generations where tenant_id in ($1, '*'))
      and content_hash = $2
    order by created_at, url limit 1000`,
};

/** `null` where the tenant has no such image. @throws {TierUnavailableError} */
export async function viewImage(
  connection: CacheConnection,
  tenantId: string,
  contentHash: string,
  model: string,
): Promise<ImageView | null> {
  const postgres = { pool: connection.pool, guard: connection.tiers.postgres.guard };
  const [content, phash, faces] = await connection.hybrid.readMany([
    lookup(tenantId, crawlContents, contentHash),
    lookup(tenantId, perceptualHashes, contentHash),
    lookup(tenantId, faceEmbeddings, { contentHash, model }),
  ]);
  const image = known(content as Answer<CrawlContent>);
  if (!image) return null;
  const hash = known(phash as Answer<string>);
  const [urls, nearDuplicates] = await Promise.all([
    urlsOf(postgres, tenantId, contentHash),
    hash ? searchNearDuplicates(postgres, tenantId, hash, { except: contentHash }) : [],
  ]);
  const { rawKey, thumbnailKey, width, height, mimeType } = image;
  const facts = { rawKey, thumbnailKey, phash: hash, width, height, mimeType };
  return { contentHash, ...facts, urls, model, faces: known(faces as Answer<FaceEmbedding[]>), nearDuplicates };
}

async function urlsOf({ pool, guard }: { pool: Pool; guard: Guard }, tenantId: string, contentHash: string) {
  const values = [tenantId, contentHash];
  const { rows } = await guard.run('query', () => pool.query<{ url: string }>({ ...URLS, values }));
  return rows.map(({ url }) => url);
}
