/** What lies in PostgreSQL, Redis and the object store, held against each other and against the site: I2, I4 and I5. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { known } from '../../src/cache/answer.js';
import { verify } from '../../src/cache/verify.js';
import { decodePixels } from '../../src/images/image.js';
import { crawlContents } from '../../src/kinds/crawl.js';
import type { FaceEmbedding } from '../../src/kinds/faces.js';
import { sha256 } from '../../src/kinds/identity.js';
import { until } from '../support/until.js';
import { ContentEngine } from './app.js';
import type { Broken, ContentRow, Evidence } from './evidence.js';

/** URLs, and contents, that every tenant asks the library about. */
const ASKED = 500;
/** What the judge itself has asked for lies in Redis by then. */
const BACKFILL_MS = 5_000;
/** Every process works off what another did not see confirmed. */
const REPAIR_MS = 5_000;

export function recordsAreOne({ contents, urls, served }: Evidence, broken: Broken): void {
  const seen = new Set<string>();
  for (const { tenant, hash } of contents) {
    if (seen.has(`${tenant} ${hash}`)) broken(`I2 two records of content ${hash} of ${tenant}`);
    seen.add(`${tenant} ${hash}`);
  }
  const known = new Set<string>();
  for (const { tenant, url, hash } of urls) {
    if (known.has(`${tenant} ${url}`)) broken(`I2 two records of ${url} of ${tenant}`);
    known.add(`${tenant} ${url}`);
    if (!seen.has(`${tenant} ${hash}`))
      broken(`I2 the record of ${url} names content ${hash}, which ${tenant} has not`);
    const truth = served.get(url);
    const is = truth && ('hash' in truth ? truth.hash : truth.refusal);
    if (is !== hash) broken(`I2 the record of ${url} names content ${hash}, and the site serves ${is}`);
  }
}

/** The objects are exactly those that the records name, and hold what their names say. */
export async function objectsAreTheirs({ lab, contents, objects }: Evidence, broken: Broken): Promise<void> {
  const named = new Set(contents.flatMap(({ raw, thumbnail }) => (thumbnail ? [raw, thumbnail] : [raw])));
  for (const key of named) if (!objects.has(key)) broken(`I2 ${key} is recorded and not there`);
  for (const key of objects) if (!named.has(key)) broken(`I2 ${key} is there and not recorded`);
  for (const { raw, hash } of contents) {
    if (!objects.has(raw)) continue;
    if (sha256(await readFile(join(lab.folder, raw))) !== hash) broken(`I2 ${raw} holds other bytes than were served`);
  }
}

/** One embedding result per content, and it is that of its image, vectors included; no embedding failed. */
export async function facesAreTheirs(evidence: Evidence, broken: Broken): Promise<void> {
  const { lab, contents, ended, objects } = evidence;
  for (const { outcome, error } of ended.embedding) if (!outcome) broken(`I1 an embedding failed: ${error}`);
  const engine = new ContentEngine();
  const rows = await lab.servers.sql<{ tenant: string; hash: string }>(
    'select tenant_id as tenant, content_hash as hash from face_embeddings_cache where model = $1',
    [engine.models.embedding],
  );
  const embedded = new Set<string>();
  for (const { tenant, hash } of rows) {
    if (embedded.has(`${tenant} ${hash}`)) broken(`I2 two embeddings of ${hash} of ${tenant}`);
    embedded.add(`${tenant} ${hash}`);
  }
  for (const content of contents) {
    const { tenant, hash } = content;
    if (!embedded.has(`${tenant} ${hash}`)) broken(`I1 ${hash} of ${tenant} was never embedded`);
    else if (objects.has(content.raw)) await facesAreRight(evidence, content, engine, broken);
  }
}

async function facesAreRight({ lab }: Evidence, content: ContentRow, engine: ContentEngine, broken: Broken) {
  const { tenant, hash, raw } = content;
  const found = await lab.app.cache.getCachedFaceEmbeddings(hash, tenant, { model: engine.models.embedding });
  const bytes = await readFile(join(lab.folder, raw));
  if (sha256(bytes) !== hash) return; // of which we know already
  const pixels = await decodePixels(bytes, { maxPixels: 1e6 });
  const faces = await engine.embed(pixels, await engine.detect(pixels));
  if (isDeepStrictEqual(found, faces)) return;
  broken(`I2 the faces of ${hash} of ${tenant} are ${shown(found)}, and not ${shown(faces)}`);
}

function shown(faces: readonly FaceEmbedding[] | null): string {
  return JSON.stringify(faces?.map(({ embedding }) => embedding.slice(0, 2)) ?? null);
}

/** Every tenant, and one that never asked for anything, knows what is its own and nothing else. */
export async function tenantsAreApart(evidence: Evidence, broken: Broken): Promise<void> {
  const tenants = [...new Set([...evidence.ends.map(({ job }) => job.tenantId), 'nobody'])];
  for (const tenant of tenants) {
    await urlsAreIts(evidence, tenant, broken);
    await contentsAreIts(evidence, tenant, broken);
  }
}

async function urlsAreIts({ lab: { app }, urls }: Evidence, tenant: string, broken: Broken): Promise<void> {
  const own = new Set(urls.filter((row) => row.tenant === tenant).map(({ url }) => url));
  const asked = sampleOf([...new Set(urls.map(({ url }) => url))]);
  const answers = await app.cache.shouldSkipUrlBatch(asked, tenant);
  for (const [i, url] of asked.entries()) {
    const isSkipped = answers[i]?.shouldSkip ?? false;
    if (isSkipped && !own.has(url)) broken(`I5 ${tenant} is told to skip ${url}, which is another's`);
    if (!isSkipped && own.has(url)) broken(`I4 ${tenant} is not told to skip its own ${url}`);
  }
}

/** Contents that are another's alone are unknown to the tenant, and so are their faces. */
async function contentsAreIts({ lab, contents }: Evidence, tenant: string, broken: Broken): Promise<void> {
  const { cache, models, connection } = lab.app;
  const own = new Set(contents.filter((row) => row.tenant === tenant).map(({ hash }) => hash));
  const others = sampleOf([...new Set(contents.map(({ hash }) => hash))].filter((hash) => !own.has(hash)));
  const faces = await cache.getCachedFaceEmbeddingsBatch(others, tenant, { model: models.embedding });
  for (const [i, hash] of others.entries()) {
    // Not by `shouldSkipCrawledImage`, which would remember a URL of whoever is told to skip.
    const content = known(await connection.hybrid.read(tenant, crawlContents, hash));
    if (content) broken(`I5 ${tenant} knows content ${hash}, which is another's`);
    if (faces[i]) broken(`I5 ${tenant} is given the faces of ${hash}, which is another's`);
  }
}

function sampleOf<T>(all: readonly T[]): T[] {
  return all.filter((_, i) => i % Math.ceil(all.length / ASKED) === 0);
}

/** Compared after the tenants have asked, by which Redis has something in any case. */
export async function tiersAgree({ lab, urls }: Evidence, broken: Broken): Promise<void> {
  const { connection } = lab.app;
  const look = () => verify(connection, { sample: 100_000 });
  const isMissing = urls.length > 0;
  const found = await until(
    'something to be in both tiers',
    async () => {
      const verification = await look();
      return verification.compared > 0 || !isMissing ? verification : null;
    },
    BACKFILL_MS,
  ).catch(look);
  for (const { id, what } of found.differences) broken(`I4 ${id}: ${what}`);
  if (isMissing && found.compared === 0) broken('I4 nothing is in both tiers: nothing was compared');
  if (found.pendingReplays === null && lab.options.backend === 'redis') broken('I4 the journal does not answer');
  const repairs = () => lab.servers.sql<{ entry: string }>('select entry from redis_repairs');
  await until('Redis to confirm all overwrites', async () => (await repairs()).length === 0, REPAIR_MS).catch(
    () => null,
  );
  const [unconfirmed] = await repairs();
  if (unconfirmed) broken(`I4 Redis has yet to confirm the overwrite of ${unconfirmed.entry}`);
  if (found.pendingReplays) broken(`I4 ${found.pendingReplays} writes still wait for PostgreSQL`);
}
