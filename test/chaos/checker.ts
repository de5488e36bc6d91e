/**
 * The judge: reads PostgreSQL, the object store, Redis and the origin's log, and says which invariants do not hold.
 *
 *     I1  each accepted job ended once: completed, or failed for a reason of its own
 *     I2  one record per (tenant, URL, content), one set of objects per (tenant, content); no record without its
 *         objects, no object without its record, and the bytes are those that were served
 *     I3  no skip without a committed record of the same tenant
 *     I4  what Redis has equals what PostgreSQL has
 *     I5  no tenant sees another's
 *     I6  the workers' counters equal the outcomes; where no process was killed
 */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { verify } from '../../src/cache/verify.js';
import { failureReasonOf } from '../../src/errors.js';
import { decodePixels } from '../../src/images/image.js';
import { canonicalUrl } from '../../src/kinds/url.js';
import { ContentEngine } from './app.js';
import type { Accepted, Lab } from './lab.js';

export interface Expected {
  /** Accepted jobs that may be gone, because their store lost what it had not kept; the others must be there. */
  readonly lost?: (job: Accepted) => boolean;
  /** Jobs whose URL must have a record, also where the job itself is gone. */
  readonly recorded?: (job: Accepted) => boolean;
  /** Jobs that ended before their tenant was invalidated: the records that they speak of held then, and need not now. */
  readonly outdated?: (job: Accepted) => boolean;
  /** Jobs that must have failed, and why. */
  readonly failed?: (job: Accepted) => string | null;
  /** Requests that the origin may have seen of one URL, for each tenant that wanted it; default: any number. */
  readonly mostRequests?: number;
  /** The text of every worker's `/metrics`, for I6. */
  readonly metrics?: readonly string[];
}

export interface Judgement {
  /** What does not hold, each beginning with its invariant; at most 20. */
  readonly violations: readonly string[];
  readonly figures: Readonly<Record<string, number>>;
}

interface ContentRow {
  readonly tenant: string;
  readonly hash: string;
  readonly raw: string;
  readonly thumbnail: string | null;
  readonly jobId: string | null;
}

interface UrlRow {
  readonly tenant: string;
  readonly url: string;
  readonly hash: string;
}

interface End {
  readonly job: Accepted;
  readonly state: string;
  readonly outcome: { outcome: string; reason?: string; contentHash?: string; rawKey?: string } | null;
  readonly error: string | null;
  readonly identity: string;
}

const AT_ONCE = 100;
const MOST_SHOWN = 20;

export async function judge(lab: Lab, expected: Expected): Promise<Judgement> {
  const violations: string[] = [];
  const broken = (what: string) => void violations.push(what);
  if (lab.accepted.length === 0) broken('no job was accepted: nothing was tried');
  const ends = await endsOf(lab);
  const contents = await lab.servers.sql<ContentRow>(
    `select tenant_id as tenant, content_hash as hash, raw_key as raw, thumbnail_key as thumbnail, job_id as "jobId"
       from crawl_content_cache`,
  );
  const urls = await lab.servers.sql<UrlRow>(`select tenant_id as tenant, url, content_hash as hash from crawl_cache`);
  const lost = everyJobEnded(ends, expected, broken);
  resultsAreKept(ends, urls, expected, broken);
  recordsAreOne(contents, urls, broken);
  await objectsAreTheirs(lab, contents, broken);
  await facesAreTheirs(lab, contents, broken);
  const current = ends.filter(({ job }) => !expected.outdated?.(job));
  skipsAreFounded(current, contents, urls, broken);
  await tiersAgree(lab, broken);
  await tenantsAreApart(lab, ends, urls, broken);
  originWasSpared(lab, ends, expected, broken);
  if (expected.metrics) countersAgree(ends, expected.metrics, broken);
  const count = (outcome: string) => ends.filter((end) => end.outcome?.outcome === outcome).length;
  return {
    violations: violations.slice(0, MOST_SHOWN),
    figures: {
      accepted: lab.accepted.length,
      refused: lab.refused,
      stored: count('stored'),
      skipped: count('skipped'),
      rejected: count('rejected'),
      failed: ends.filter(({ state }) => state === 'failed').length,
      lost,
      contents: contents.length,
      requests: lab.origin.requests.length,
      kills: lab.kills.length,
    },
  };
}

/** One for each job, as it was first accepted: a twin was given the id of the job that it found. */
async function endsOf(lab: Lab): Promise<End[]> {
  const jobs = [...new Map([...lab.accepted].reverse().map((job) => [job.id, job])).values()];
  const queue = lab.app.queues.get('crawl');
  const ends: End[] = [];
  for (let from = 0; from < jobs.length; from += AT_ONCE) {
    const found = jobs.slice(from, from + AT_ONCE).map(async (job): Promise<End> => {
      const [state, view] = await Promise.all([queue.getJobState(job.id), queue.getJob(job.id)]);
      return {
        job,
        state: view ? state : 'unknown',
        outcome: state === 'completed' ? (view?.returnvalue ?? null) : null,
        error: view?.failedReason ?? null,
        identity: `${job.id}@${view?.timestamp}`,
      };
    });
    ends.push(...(await Promise.all(found)));
  }
  return ends;
}

/** @returns how many are gone */
function everyJobEnded(ends: readonly End[], expected: Expected, broken: (what: string) => void): number {
  let lost = 0;
  for (const { job, state, outcome, error } of ends) {
    const reason = expected.failed?.(job) ?? null;
    if (state === 'unknown') {
      lost += 1;
      if (!expected.lost?.(job)) broken(`I1 job ${job.id} of ${job.url} is gone`);
    } else if (state === 'completed') {
      if (!outcome?.outcome) broken(`I1 job ${job.id} completed without an outcome`);
      if (reason !== null)
        broken(`I1 job ${job.id} of ${job.url} should have failed as ${reason}: ${outcome?.outcome}`);
    } else if (state === 'failed') {
      if (reason === null || failureReasonOf(error ?? '') !== reason) broken(`I1 job ${job.id} failed: ${error}`);
    } else {
      broken(`I1 job ${job.id} of ${job.url} is ${state}`);
    }
  }
  return lost;
}

function resultsAreKept(
  ends: readonly End[],
  urls: readonly UrlRow[],
  { recorded }: Expected,
  broken: (what: string) => void,
): void {
  const known = new Set(urls.map(({ tenant, url }) => `${tenant} ${url}`));
  for (const { job } of ends) {
    if (recorded?.(job) && !known.has(`${job.tenantId} ${canonicalUrl(job.url)}`)) {
      broken(`I1 job ${job.id} had ended, and ${job.tenantId} has no record of ${job.url}`);
    }
  }
}

function recordsAreOne(contents: readonly ContentRow[], urls: readonly UrlRow[], broken: (what: string) => void): void {
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
  }
}

/** The objects are exactly those that the records name, and hold what their names say. */
async function objectsAreTheirs(
  lab: Lab,
  contents: readonly ContentRow[],
  broken: (what: string) => void,
): Promise<void> {
  await lab.app.objects.tidy(0); // the collector has run
  const files = (await readdir(lab.folder, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => relative(lab.folder, join(entry.parentPath, entry.name)));
  const objects = new Set(files);
  const named = new Set(contents.flatMap(({ raw, thumbnail }) => (thumbnail ? [raw, thumbnail] : [raw])));
  for (const key of named) if (!objects.has(key)) broken(`I2 ${key} is recorded and not there`);
  for (const key of objects) if (!named.has(key)) broken(`I2 ${key} is there and not recorded`);
  for (const { raw, hash } of contents) {
    if (!objects.has(raw)) continue;
    const digest = createHash('sha256')
      .update(await readFile(join(lab.folder, raw)))
      .digest('hex');
    if (digest !== hash) broken(`I2 ${raw} holds other bytes than were served`);
  }
}

/** One embedding result per content, and it is that of its image. */
async function facesAreTheirs(
  lab: Lab,
  contents: readonly ContentRow[],
  broken: (what: string) => void,
): Promise<void> {
  const engine = new ContentEngine();
  const rows = await lab.servers.sql<{ tenant: string; hash: string; model: string; faces: number }>(
    'select tenant_id as tenant, content_hash as hash, model, faces from face_embeddings_cache',
  );
  const faces = new Map<string, number>();
  for (const { tenant, hash, model, faces: count } of rows) {
    if (model !== engine.models.embedding) continue;
    if (faces.has(`${tenant} ${hash}`)) broken(`I2 two embeddings of ${hash} of ${tenant}`);
    faces.set(`${tenant} ${hash}`, count);
  }
  for (const { tenant, hash, raw } of contents) {
    const count = faces.get(`${tenant} ${hash}`);
    if (count === undefined) {
      broken(`I1 ${hash} of ${tenant} was never embedded`);
      continue;
    }
    const pixels = await decodePixels(await readFile(join(lab.folder, raw)), { maxPixels: 1e6 });
    const found = await engine.detect(pixels);
    if (found.length !== count) broken(`I2 ${hash} of ${tenant} has ${found.length} faces, and ${count} in its record`);
  }
}

function skipsAreFounded(
  ends: readonly End[],
  contents: readonly ContentRow[],
  urls: readonly UrlRow[],
  broken: (what: string) => void,
): void {
  const known = new Map(contents.map((row) => [`${row.tenant} ${row.hash}`, row]));
  const byUrl = new Map(urls.map((row) => [`${row.tenant} ${row.url}`, row]));
  const storedBy = new Map<string, string>();
  for (const { job, outcome, identity } of ends) {
    if (outcome?.outcome !== 'stored' && outcome?.outcome !== 'skipped') continue;
    const content = known.get(`${job.tenantId} ${outcome.contentHash}`);
    if (!content || content.raw !== outcome.rawKey) {
      broken(`I3 job ${job.id} says ${outcome.outcome}, and ${job.tenantId} has no record of ${outcome.contentHash}`);
      continue;
    }
    if (byUrl.get(`${job.tenantId} ${canonicalUrl(job.url)}`)?.hash !== outcome.contentHash) {
      broken(`I3 job ${job.id} says ${outcome.outcome}, and the record of ${job.url} is another`);
    }
    if (outcome.outcome !== 'stored') continue;
    if (content.jobId !== identity) broken(`I1 job ${job.id} says stored, and ${content.jobId} wrote the record`);
    const other = storedBy.get(`${job.tenantId} ${outcome.contentHash}`);
    if (other) broken(`I1 jobs ${other} and ${job.id} both say that they stored ${outcome.contentHash}`);
    storedBy.set(`${job.tenantId} ${outcome.contentHash}`, job.id);
  }
}

async function tiersAgree({ app }: Lab, broken: (what: string) => void): Promise<void> {
  const { differences, pendingReplays } = await verify(app.connection, { sample: 100_000 });
  for (const { id, what } of differences) broken(`I4 ${id}: ${what}`);
  if (pendingReplays) broken(`I4 ${pendingReplays} writes still wait for PostgreSQL`);
}

async function tenantsAreApart(
  { app }: Lab,
  ends: readonly End[],
  urls: readonly UrlRow[],
  broken: (what: string) => void,
): Promise<void> {
  const owned = new Set(urls.map(({ tenant, url }) => `${tenant} ${url}`));
  const tenants = [...new Set(ends.map(({ job }) => job.tenantId)), 'nobody'];
  const sample = urls.filter((_, i) => i % Math.ceil(urls.length / 500) === 0);
  for (const { url } of sample) {
    for (const tenant of tenants) {
      const { shouldSkip } = await app.cache.shouldSkipUrl(url, tenant);
      if (shouldSkip && !owned.has(`${tenant} ${url}`))
        broken(`I5 ${tenant} is told to skip ${url}, which is another's`);
      if (!shouldSkip && owned.has(`${tenant} ${url}`)) broken(`I4 ${tenant} is not told to skip its own ${url}`);
    }
  }
}

function originWasSpared(
  lab: Lab,
  ends: readonly End[],
  { mostRequests }: Expected,
  broken: (what: string) => void,
): void {
  if (mostRequests === undefined) return;
  const wanted = new Map<string, Set<string>>();
  for (const { job } of ends) wanted.set(job.url, (wanted.get(job.url) ?? new Set()).add(job.tenantId));
  for (const [url, count] of lab.origin.counts()) {
    const most = mostRequests * (wanted.get(url)?.size ?? 0);
    if (count > most) broken(`I1 ${url} was asked for ${count} times, and not ${most}`);
  }
}

/** Counted once each, over all processes. */
function countersAgree(ends: readonly End[], metrics: readonly string[], broken: (what: string) => void): void {
  const counted = new Map<string, number>();
  for (const text of metrics) {
    for (const [, outcome, reason, value] of text.matchAll(
      /^crawl_images_total\{outcome="(.*?)",reason="(.*?)"\} (\d+)/gm,
    )) {
      const key = `${outcome} ${reason}`;
      counted.set(key, (counted.get(key) ?? 0) + Number(value));
    }
  }
  const ended = new Map<string, number>();
  for (const { state, outcome, error } of ends) {
    const key =
      state === 'failed' ? `failed ${failureReasonOf(error ?? '')}` : `${outcome?.outcome} ${outcome?.reason ?? ''}`;
    ended.set(key, (ended.get(key) ?? 0) + 1);
  }
  for (const key of new Set([...counted.keys(), ...ended.keys()])) {
    const [said, was] = [counted.get(key) ?? 0, ended.get(key) ?? 0];
    if (said !== was) broken(`I6 the workers counted ${said} of "${key}", and there were ${was}`);
  }
}
