/** Which recorded images have no embedding of a model yet, and no reason why not: what a crash can leave behind. */
import type { Pool } from 'pg';
import type { Guard } from './guard.js';

export interface Unembedded {
  readonly tenantId: string;
  readonly contentHash: string;
}

interface Row extends Unembedded {
  readonly createdAt: string;
}

const PAGE = 1_000;

const NEXT = {
  name: 'unembedded',
  text: `select tenant_id as "tenantId", content_hash as "contentHash", created_at::text as "createdAt"
    from crawl_content_cache as image
    where (created_at, tenant_id, content_hash) > ($2::timestamptz, $3, $4)
      and not exists (
        select from face_embeddings_cache as face
        where face.tenant_id = image.tenant_id and face.content_hash = image.content_hash and face.model = $1)
      and not exists (
        select from rejection_cache as refusal
        where refusal.tenant_id = image.tenant_id and refusal.subject_hash = image.content_hash
          and refusal.expires_at > now())
    order by created_at, tenant_id, content_hash limit ${PAGE}`,
};

/** Pages of images recorded at `since` or later, oldest first. @throws {TierUnavailableError} */
export async function* unembeddedSince(
  { pool, guard }: { pool: Pool; guard: Guard },
  model: string,
  since: Date,
): AsyncGenerator<Unembedded[]> {
  // As text, since a Date would cut the microseconds off, and a page would begin within the one before.
  let last: Row = { createdAt: since.toISOString(), tenantId: '', contentHash: '' };
  for (;;) {
    const values = [model, last.createdAt, last.tenantId, last.contentHash];
    const { rows } = await guard.run('query', () => pool.query<Row>({ ...NEXT, values }));
    const end = rows.at(-1);
    if (end) yield rows;
    if (!end || rows.length < PAGE) return;
    last = end;
  }
}
