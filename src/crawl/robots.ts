/**
 * robots.txt (RFC 9309) and `X-Robots-Tag`: what an origin says that crawlers may do. Texts are a stranger's: however they
 * are made, reading them takes a bounded time.
 */
import commonJs from 'robots-parser';
import { RejectedError, RetryableError } from '../errors.js';
import type { Robots } from '../kinds/robots.js';

// The package's types tell of a `default` that its CommonJS form does not have.
const robotsParser = commonJs as unknown as typeof commonJs.default;

/** As much as RFC 9309 section 2.5 asks for; the rest is not read. */
const MAX_ROBOTS_BYTES = 500 * 1024;
/** Length of all rules with wildcards. Matching one takes its length times the URL's. */
const MAX_WILDCARD_LENGTH = 32 * 1024;
const HOUR_MS = 3_600_000;
/** Sections 2.4 and 2.3.1.4: a day; what could not be had is asked for again soon. */
const LIFETIME_MS = 24 * HOUR_MS;
const TROUBLE_LIFETIME_MS = 60_000;
/** Nobody's wish holds a host back for longer. */
const MAX_CRAWL_DELAY_MS = HOUR_MS;

const RULE = /^\s*(user-agent|allow|disallow|crawl-delay)\s*:/i;
const FORBIDDING = new Set(['none', 'noindex', 'noimageindex', 'noai', 'noimageai']);
/** Directives that have a value, and are not the name of a crawler. */
const VALUED = new Set(['unavailable_after', 'max-snippet', 'max-image-preview', 'max-video-preview']);

/** What was found under an origin's /robots.txt; empty where there is none. */
export function robotsOf(origin: string, file: Buffer): Robots {
  const lines = file
    .subarray(0, MAX_ROBOTS_BYTES)
    .toString('utf8')
    .replaceAll('\0', '')
    .replace(/^\ufeff/, '')
    .split(/\r\n|\r|\n/);
  const rules = lines.map((line) => line.replace(/#.*/, '').trim()).filter((line) => RULE.test(line));
  const wildcards = rules.filter((line) => line.includes('*', line.indexOf(':') + 1) && !/^user-agent/i.test(line));
  const tooMany = wildcards.reduce((sum, line) => sum + line.length, 0) > MAX_WILDCARD_LENGTH;
  return remembered(origin, rules.join('\n'), tooMany ? 'too many rules with wildcards' : null, LIFETIME_MS);
}

/** What could not be had: nothing is allowed until somebody asks again (section 2.3.1.4). */
export function unreachableRobots(origin: string, why: string): Robots {
  return remembered(origin, '', why, TROUBLE_LIFETIME_MS);
}

function remembered(origin: string, rules: string, trouble: string | null, lifetimeMs: number): Robots {
  const fetchedAt = Date.now();
  return { origin, rules, trouble, fetchedAt, expiresAt: fetchedAt + lifetimeMs };
}

/**
 * Milliseconds that the origin wants between two requests of ours; whole ones, and none too few.
 *
 * @param crawler our product token, such as `hybrid-cache-service`
 * @throws {RejectedError} `robots` where the URL is not for us
 * @throws {RetryableError} where nobody can say
 */
export function allowedGap(robots: Robots, url: string, crawler: string): number {
  if (robots.trouble !== null) {
    const retryAfterMs = Math.max(robots.expiresAt - Date.now(), 0);
    throw new RetryableError('server-error', `${robots.origin}/robots.txt: ${robots.trouble}`, { retryAfterMs });
  }
  if (robots.rules === '') return 0;
  const rules = robotsParser(`${robots.origin}/robots.txt`, robots.rules);
  if (rules.isAllowed(url, crawler) === false) {
    throw new RejectedError('robots', `${robots.origin}/robots.txt, line ${rules.getMatchingLineNumber(url, crawler)}`);
  }
  const seconds = rules.getCrawlDelay(crawler) ?? 0;
  return seconds > 0 ? Math.min(Math.ceil(seconds * 1_000), MAX_CRAWL_DELAY_MS) : 0;
}

/**
 * Whether a response says that its image is not to be indexed, to all or to us.
 *
 * @param values the response's `X-Robots-Tag` headers; each may begin a list with the name of a crawler
 */
export function forbidsIndexing(values: readonly string[], crawler: string): boolean {
  return values.some((value) => {
    let concerned = true;
    return value.split(',').some((part) => {
      const [name = '', rest] = part.split(/:(.*)/s).map((text) => text.trim().toLowerCase());
      const scoped = rest !== undefined && !VALUED.has(name);
      if (scoped) concerned = name === '*' || name === crawler;
      return concerned && FORBIDDING.has(scoped ? rest : name);
    });
  });
}
