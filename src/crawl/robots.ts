/**
 * robots.txt (RFC 9309) and `X-Robots-Tag`: what an origin says that crawlers may do. Texts are a stranger's: however they
 * are made, reading them takes a bounded time.
 */
import { RejectedError, RetryableError, retryReasonOf } from '../errors.js';
import type { Robots } from '../kinds/robots.js';
import { decidingRule, lineOf, type RobotsRules, rulesFor, textOf } from './robots-rules.js';

/** As much as RFC 9309 section 2.5 asks for; the rest is not read. */
const MAX_ROBOTS_BYTES = 500 * 1024;
/** Length of all rules with wildcards. Matching one takes at worst its length times the URL's. */
const MAX_WILDCARD_LENGTH = 32 * 1024;
/** Characters of rules that a process keeps in the form that is matched, which takes about twenty times as many bytes. */
const MAX_READ_LENGTH = 2 * 1024 * 1024;
const HOUR_MS = 3_600_000;
/** Sections 2.4 and 2.3.1.4: a day; what could not be had is asked for again soon. */
const LIFETIME_MS = 24 * HOUR_MS;
const TROUBLE_LIFETIME_MS = 60_000;
/** Nobody's wish holds a host back for longer. */
const MAX_CRAWL_DELAY_MS = HOUR_MS;
/** Of a rule, in a refusal. */
const MAX_TOLD_LENGTH = 200;

const FORBIDDING = new Set(['none', 'noindex', 'noimageindex', 'noai', 'noimageai']);
/** Directives that have a value, and are not the name of a crawler. */
const VALUED = new Set(['unavailable_after', 'max-snippet', 'max-image-preview', 'max-video-preview']);
/** What else stands before a colon is the time in a date: `Wed, 25 Jun 2010 15:00:00 GMT`. */
const CRAWLER_NAME = /^(\*|[a-z0-9_-]+)$/;

/**
 * What was found under an origin's /robots.txt; an empty file is none.
 *
 * @param crawler our product token, such as `hybrid-cache-service`: the rules for others are not kept
 */
export function robotsOf(origin: string, file: Buffer, crawler: string): Robots {
  const text = file
    .subarray(0, MAX_ROBOTS_BYTES)
    .toString('utf8')
    .replaceAll('\0', '')
    .replace(/^\ufeff/, '');
  const found = rulesFor(crawler, text);
  const wildcards = found.rules.filter(({ parts }) => parts.length > 1);
  const tooMany = wildcards.reduce((sum, { pattern }) => sum + pattern.length, 0) > MAX_WILDCARD_LENGTH;
  if (tooMany) return remembered(origin, '', 'too many rules with wildcards', LIFETIME_MS);
  return remembered(origin, textOf(found), null, LIFETIME_MS);
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
 * @param url canonical, of the origin
 * @param crawler our product token
 * @throws {RejectedError} `robots` where the URL is not for us
 * @throws {RetryableError} where nobody can say
 */
export function allowedGap(robots: Robots, url: string, crawler: string): number {
  if (robots.trouble !== null) {
    const retryAfterMs = Math.max(robots.expiresAt - Date.now(), 0);
    throw troubled(robots.origin, robots.trouble, retryAfterMs);
  }
  if (robots.rules === '') return 0;
  const rules = readRules(robots.rules, crawler);
  const rule = decidingRule(rules, url.slice(robots.origin.length));
  if (rule && !rule.allows) {
    throw new RejectedError('robots', `${robots.origin}/robots.txt: ${lineOf(rule)}`.slice(0, MAX_TOLD_LENGTH));
  }
  return delayOf(rules);
}

/** As `allowedGap`, of whatever URLs are for us; 0 where nobody can say. */
export function crawlDelay({ rules, trouble }: Robots, crawler: string): number {
  return trouble !== null || rules === '' ? 0 : delayOf(readRules(rules, crawler));
}

function delayOf({ delaySeconds }: RobotsRules): number {
  return Math.min(Math.ceil(delaySeconds * 1_000), MAX_CRAWL_DELAY_MS);
}

/** Whoever could not be had for a reason of its own (`connection: …`) fails for that. */
function troubled(origin: string, trouble: string, retryAfterMs: number): RetryableError {
  const reason = retryReasonOf(trouble);
  const why = reason ? trouble.slice(reason.length + 2) : trouble;
  return new RetryableError(reason ?? 'server-error', `${origin}/robots.txt: ${why}`, { retryAfterMs });
}

/** By crawler and text, the last used last: every request to a host looks at its rules. */
const read = new Map<string, RobotsRules>();
let readLength = 0;

function readRules(text: string, crawler: string): RobotsRules {
  const key = `${crawler}\n${text}`;
  const rules = read.get(key) ?? rulesFor(crawler, text);
  if (!read.delete(key)) readLength += key.length;
  read.set(key, rules);
  for (const oldest of read.keys()) {
    if (readLength <= MAX_READ_LENGTH) break;
    read.delete(oldest);
    readLength -= oldest.length;
  }
  return rules;
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
      const scoped = rest !== undefined && CRAWLER_NAME.test(name) && !VALUED.has(name);
      if (scoped) concerned = name === '*' || name === crawler;
      return concerned && FORBIDDING.has(scoped ? rest : name);
    });
  });
}
