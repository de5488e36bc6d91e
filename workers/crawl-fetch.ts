/** What a crawl job asks of the origin, and what it remembers of that for its next run. */
import { performance } from 'node:perf_hooks';
import type { Fetched, Validators } from '../src/crawl/fetch.js';
import { DeferredError, RejectedError } from '../src/errors.js';
import type { CrawlUrl } from '../src/kinds/crawl.js';
import { type Step, timed } from './crawl-step.js';
import { comesBack } from './run.js';

/** Characters of an `ETag` or `Last-Modified` that are kept. */
const MAX_VALIDATOR_LENGTH = 1_000;

/** `null` where the origin says that what is known is still the same. */
export async function fetchImage(step: Step, known: CrawlUrl | null): Promise<Fetched | null> {
  const { fetcher, politeness, job, signal } = step;
  const trails = trailsOf(step);
  const { trail, robotsTrail } = trails;
  const asker = { tenantId: job.tenantId, jobId: step.id, signal, force: job.force, robotsTrail };
  const options = {
    signal,
    trail,
    crawler: politeness.crawler,
    admit: (url: string) => politeness.admit(asker, url),
  };
  return timed(step, 'fetch', async () => {
    const started = performance.now();
    try {
      const fetched = await (known ? fetcher.fetchUnless(known, job.url, options) : fetcher.fetch(job.url, options));
      if (fetched) step.events.fetched((performance.now() - started) / 1000, fetched.bytes.length);
      return fetched;
    } catch (error) {
      throw await afterFetch(step, trails, error);
    }
  });
}

/** Who is put off goes on where he was; who failed begins anew. */
async function afterFetch(step: Step, { trail, robotsTrail }: Trails, error: unknown): Promise<unknown> {
  const { remembered } = step;
  if (comesBack(error)) {
    // Whoever asked nothing yet but the job's own URL, or its host's robots.txt, goes on there anyway.
    const led = trail.length > 1 || remembered.trail ? { trail } : null;
    const ledByRobots = robotsTrail.length > 1 || remembered.robotsTrail ? { robotsTrail } : null;
    if (led ?? ledByRobots) await step.remember({ ...led, ...ledByRobots });
    return error;
  }
  // Who was told to stop did not fail.
  if (step.signal.aborted) return error;
  // Where the URL led some time ago may have been meant for a minute: its refusal says nothing of the URL, once.
  const isOutdated = error instanceof RejectedError && trailsOf(step).trail.length > 1 && !remembered.askedAnew;
  const led = remembered.trail ? { trail: [], ...(isOutdated && { askedAnew: true }) } : null;
  const ledByRobots = remembered.robotsTrail ? { robotsTrail: [] } : null;
  // Nor does a request that failed say anything of the bytes of before: who waits for them is held up by it once.
  const waited = fetchedContent(step) === null ? null : { contentHash: null };
  if (led ?? ledByRobots ?? waited) await step.remember({ ...led, ...ledByRobots, ...waited });
  return isOutdated ? new DeferredError(1, `${error.message}, where the URL led in an earlier run`) : error;
}

/** What an earlier run of the job asked, and was put off at. */
interface Trails {
  /** URLs of the image. */
  readonly trail: string[];
  /** URLs of the robots.txt that it needed. */
  readonly robotsTrail: string[];
}

function trailsOf({ remembered: { trail, robotsTrail } }: Step): Trails {
  const copied = (urls: unknown): string[] => (Array.isArray(urls) ? [...urls] : []);
  return { trail: copied(trail), robotsTrail: copied(robotsTrail) };
}

/** Of the URL itself: what it redirects to has its own. What is too long to be kept is not needed. */
export function validatorsOf({ job }: Step, { finalUrl, etag, lastModified }: Fetched): Validators {
  if (finalUrl !== job.url) return { etag: null, lastModified: null };
  const short = (text: string | null) => (text !== null && text.length <= MAX_VALIDATOR_LENGTH ? text : null);
  return { etag: short(etag), lastModified: short(lastModified) };
}

/** The hash of the bytes that an earlier run fetched, and was put off for because another job worked on the same. */
export function fetchedContent({ remembered: { contentHash } }: Step): string | null {
  return typeof contentHash === 'string' ? contentHash : null;
}

/** Gives back the turns at hosts that an earlier run has booked. */
export async function forgetVisit(step: Step): Promise<void> {
  const { trail, robotsTrail } = trailsOf(step);
  const booked = [trail.at(-1) ?? (step.isRepeat ? step.job.url : undefined), robotsTrail.at(-1)];
  const forget = (url: string) => step.politeness.forget(step.id, url).catch(() => undefined);
  await Promise.all(booked.filter((url) => url !== undefined).map(forget));
}
