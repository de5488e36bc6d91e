/** What the queue says of the jobs, held against the records and the site's log: I1, I3 and I6. */
import { failureReasonOf } from '../../src/errors.js';
import { canonicalUrl } from '../../src/kinds/url.js';
import type { Expected } from './checker.js';
import type { Broken, ContentRow, End, Ended, Evidence, UrlRow } from './evidence.js';

/** The end of a job is told by the clock of its queue's server as of the last answer, less the way of that. */
const BEHIND_MS = 2_000;

/** @returns how many are gone */
export function everyJobEnded({ lab, ends }: Evidence, expected: Expected, broken: Broken): number {
  let lost = 0;
  // A store that was set back has forgotten that a job had ended.
  if (!expected.lost) for (const id of lab.endedAgain) broken(`I1 job ${id} ended more than once`);
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

export function resultsAreKept({ ends, urls, served }: Evidence, { recorded }: Expected, broken: Broken): void {
  const known = new Set(urls.map(({ tenant, url }) => `${tenant} ${url}`));
  for (const { job } of ends) {
    const isImage = 'hash' in (served.get(job.url) ?? {});
    if (isImage && recorded?.(job) && !known.has(`${job.tenantId} ${canonicalUrl(job.url)}`)) {
      broken(`I1 job ${job.id} had ended, and ${job.tenantId} has no record of ${job.url}`);
    }
  }
}

/** A job speaks of what its URL serves: of these bytes, or of this refusal. */
export function outcomesAreTrue({ ends, served }: Evidence, broken: Broken): void {
  for (const { job, outcome } of ends) {
    if (!outcome?.outcome) continue;
    const truth = served.get(job.url);
    const said = outcome.outcome === 'rejected' ? outcome.reason : outcome.contentHash;
    const is = truth && ('hash' in truth ? truth.hash : truth.refusal);
    if (said !== is) broken(`I1 job ${job.id} says ${outcome.outcome} ${said}, and ${job.url} serves ${is}`);
  }
}

/** Skips rest on records that were there before them; `stored` is said by whoever wrote the record, and by nobody else. */
export function skipsAreFounded(evidence: Evidence, expected: Expected, broken: Broken): void {
  const current = evidence.ends.filter(({ job }) => !expected.outdated?.(job));
  const contents = new Map(evidence.contents.map((row) => [`${row.tenant} ${row.hash}`, row]));
  const urls = new Map(evidence.urls.map((row) => [`${row.tenant} ${row.url}`, row]));
  const storedBy = new Map<string, string>();
  for (const end of current) {
    const { job, outcome } = end;
    if (outcome?.outcome !== 'stored' && outcome?.outcome !== 'skipped') continue;
    const content = contents.get(`${job.tenantId} ${outcome.contentHash}`);
    const url = urls.get(`${job.tenantId} ${canonicalUrl(job.url)}`);
    if (!content || content.raw !== outcome.rawKey) {
      broken(`I3 job ${job.id} says ${outcome.outcome}, and ${job.tenantId} has no record of ${outcome.contentHash}`);
      continue;
    }
    if (url?.hash !== outcome.contentHash) {
      broken(`I3 job ${job.id} says ${outcome.outcome}, and the record of ${job.url} is another`);
    }
    if (outcome.outcome === 'skipped') skippedInTime(end, { content, url }, broken);
    else storedOnce(end, content, storedBy, broken);
  }
  writersSayStored(current, evidence.contents, broken);
}

function skippedInTime(
  { job, outcome, finishedOn }: End,
  { content, url }: { content: ContentRow; url: UrlRow | undefined },
  broken: Broken,
): void {
  // Who skips by content writes the record of its URL itself.
  const since = outcome?.reason === 'url' ? Math.max(content.createdAt, url?.createdAt ?? 0) : content.createdAt;
  const late = Math.floor(since) - finishedOn;
  if (late > BEHIND_MS) broken(`I3 job ${job.id} skipped ${job.url} ${late} ms before there was a record of it`);
}

function storedOnce({ job, identity }: End, content: ContentRow, storedBy: Map<string, string>, broken: Broken): void {
  const key = `${content.tenant} ${content.hash}`;
  if (content.jobId !== identity) broken(`I1 job ${job.id} says stored, and ${content.jobId} wrote the record`);
  const other = storedBy.get(key);
  if (other) broken(`I1 jobs ${other} and ${job.id} both say that they stored ${content.hash}`);
  storedBy.set(key, job.id);
}

function writersSayStored(ends: readonly End[], contents: readonly ContentRow[], broken: Broken): void {
  const byIdentity = new Map(ends.map((end) => [end.identity, end]));
  for (const { jobId, hash, tenant } of contents) {
    const end = byIdentity.get(jobId ?? '');
    if (!end || (end.outcome?.outcome === 'stored' && end.outcome.contentHash === hash)) continue;
    const said = end.outcome?.outcome ?? end.state;
    broken(`I1 job ${end.job.id} wrote the record of ${hash} of ${tenant}, and says ${said}`);
  }
}

export function originWasSpared({ lab, ends }: Evidence, { mostRequests, inVain = 0 }: Expected, broken: Broken): void {
  if (mostRequests === undefined) return;
  const wanted = new Map<string, Set<string>>();
  for (const { job } of ends) wanted.set(job.url, (wanted.get(job.url) ?? new Set()).add(job.tenantId));
  let beyond = 0;
  for (const [url, count] of lab.origin.counts()) {
    const most = mostRequests * (wanted.get(url)?.size ?? 0) + (lab.origin.failsFirst(url) ? 1 : 0);
    beyond += Math.max(0, count - most);
    if (count > most && beyond > inVain) broken(`I1 ${url} was asked for ${count} times, and not ${most}`);
  }
}

/** By queue: what counts its ends, and how an end is named there. */
const COUNTED = {
  crawl: {
    series: /^crawl_images_total\{outcome="(.*?)",reason="(.*?)"\} (\d+)/gm,
    nameOf: ({ outcome, error }: Ended) =>
      outcome?.outcome ? `${outcome.outcome} ${outcome.reason ?? ''}` : `failed ${failureReasonOf(error ?? '')}`,
  },
  embedding: {
    series: /^embedding_images_total\{outcome="(.*?)"()\} (\d+)/gm,
    nameOf: ({ outcome }: Ended) => `${outcome?.outcome ?? 'failed'} `,
  },
};

/** Counted once each, over all processes. */
export async function countersAgree({ ended }: Evidence, expected: Expected, broken: Broken): Promise<void> {
  const { uncounted = 0, failedBefore = 0 } = expected;
  const metrics = await expected.metrics?.();
  if (!metrics) return;
  let missed = 0;
  for (const queue of ['crawl', 'embedding'] as const) {
    const { series, nameOf } = COUNTED[queue];
    const counted = countedEnds(metrics, series);
    const were = new Map(queue === 'embedding' && failedBefore > 0 ? [['failed ', failedBefore]] : []);
    for (const end of ended[queue]) were.set(nameOf(end), (were.get(nameOf(end)) ?? 0) + 1);
    for (const key of new Set([...counted.keys(), ...were.keys()])) {
      const [said, was] = [counted.get(key) ?? 0, were.get(key) ?? 0];
      missed += Math.max(0, was - said);
      const isWrong = said > was || (said < was && missed > uncounted);
      if (isWrong) broken(`I6 the workers of ${queue} counted ${said} of "${key.trim()}", and there were ${was}`);
    }
  }
}

function countedEnds(metrics: readonly string[], series: RegExp): Map<string, number> {
  const counted = new Map<string, number>();
  for (const text of metrics) {
    for (const [, outcome, reason, value] of text.matchAll(series)) {
      const key = `${outcome} ${reason}`;
      counted.set(key, (counted.get(key) ?? 0) + Number(value));
    }
  }
  return counted;
}
