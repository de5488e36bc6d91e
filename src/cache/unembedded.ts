/** Which recorded images have no embedding of a model yet, and no reason why not: what a crash can leave behind. */
import type { RejectReason } from '../errors.js';
import type { Query } from './query.js';
import { CURRENT } from './statement.js';

export interface Unembedded {
  readonly tenantId: string;
  readonly contentHash: string;
}

interface Row extends Unembedded {
  readonly createdAt: string;
  readonly missing: boolean;
}

const PAGE = 1_000;
/** Of a job that came before its image did: it is no reason any more. */
const UNKNOWN: RejectReason = 'unknown-image';

// A page of images first, and then which of them lack something: every query is bounded by its work and not by what it
// finds, however large the table is and however few are missing. What the library recorded (no job) lies in a store of
// its user's own.
const NEXT = {
  name: 'unembedded',
  text: `with page as materialized (
      select tenant_id, generation, content_hash, created_at, job_id from crawl_content_cache
      where (created_at, tenant_id, content_hash) > ($2::timestamptz, $3, $4)
      order by created_at, tenant_id, content_hash limit ${PAGE})
    select tenant_id as "tenantId", content_hash as "contentHash", created_at::text as "createdAt",
      not exists (
        select from face_embeddings_cache as face
        where face.tenant_id = page.tenant_id and face.generation = page.generation
          and face.content_hash = page.content_hash and face.model = $1)
      and not exists (
        select from rejection_cache as refusal
        where refusal.tenant_id = page.tenant_id and refusal.generation = page.generation
          and refusal.subject_hash = page.content_hash and refusal.reason <> '${UNKNOWN}'
          and refusal.expires_at > now())
      and generation >= ${CURRENT('page.tenant_id')}
      and job_id is not null as missing
    from page order by created_at, tenant_id, content_hash`,
};

/** Pages of images recorded at `since` or later, oldest first, until `signal` fires. @throws {TierUnavailableError} */
export async function* unembeddedSince(
  query: Query,
  model: string,
  since: Date,
  signal?: AbortSignal,
): AsyncGenerator<Unembedded[]> {
  // As text, since a Date would cut the microseconds off, and a page would begin within the one before.
  let last = { createdAt: since.toISOString(), tenantId: '', contentHash: '' };
  while (!signal?.aborted) {
    const values = [model, last.createdAt, last.tenantId, last.contentHash];
    const { rows } = await query<Row>({ ...NEXT, values });
    const missing = rows.filter((row) => row.missing);
    if (missing.length > 0) yield missing.map(({ tenantId, contentHash }) => ({ tenantId, contentHash }));
    const end = rows.at(-1);
    if (!end || rows.length < PAGE) return;
    last = end;
  }
}
