/** Everything that is known of one image, as a reader of the API sees it. */
import type { CrawlContent } from '../kinds/crawl.js';
import { crawlContents } from '../kinds/crawl.js';
import { type FaceEmbedding, faceEmbeddings } from '../kinds/faces.js';
import { perceptualHashes } from '../kinds/perceptual-hash.js';
import { type Answer, known } from './answer.js';
import type { CacheConnection } from './connect.js';
import { type NearDuplicate, searchNearDuplicates } from './near-duplicates.js';
import type { Query } from './query.js';
import { CURRENT } from './statement.js';
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
    where tenant_id = $1 and generation = ${CURRENT('$1')}
      and content_hash = $2
    order by created_at, url limit 1000`,
};

/** `null` where the tenant has no such image. @throws {TierUnavailableError} */
export async function viewImage(
  { hybrid, query }: CacheConnection,
  tenantId: string,
  contentHash: string,
  model: string,
): Promise<ImageView | null> {
  const lookups = [
    lookup(tenantId, crawlContents, contentHash),
    lookup(tenantId, perceptualHashes, contentHash),
    lookup(tenantId, faceEmbeddings, { contentHash, model }),
  ];
  const [content, phash, faces] = await hybrid.readMany(lookups, { counted: false });
  const image = known(content as Answer<CrawlContent>);
  if (!image) return null;
  const hash = known(phash as Answer<string>);
  const [urls, nearDuplicates] = await Promise.all([
    urlsOf(query, tenantId, contentHash),
    hash ? searchNearDuplicates(query, tenantId, hash, { except: contentHash }) : [],
  ]);
  // Invalidated meanwhile: the image is unknown.
  if (content?.state === 'hit' && !hybrid.reaches(tenantId, content.generation)) return null;
  const { rawKey, thumbnailKey, width, height, mimeType } = image;
  const facts = { rawKey, thumbnailKey, phash: hash, width, height, mimeType };
  return { contentHash, ...facts, urls, model, faces: known(faces as Answer<FaceEmbedding[]>), nearDuplicates };
}

async function urlsOf(query: Query, tenantId: string, contentHash: string) {
  const values = [tenantId, contentHash];
  const { rows } = await query<{ url: string }>({ ...URLS, values });
  return rows.map(({ url }) => url);
}
