/** What robots.txt and X-Robots-Tag are understood to say. */
import fc from 'fast-check';
import commonJs from 'robots-parser';
import { describe, expect, test } from 'vitest';
import { allowedGap, forbidsIndexing, robotsOf, unreachableRobots } from '../../src/crawl/robots.js';
import { RejectedError, RetryableError } from '../../src/errors.js';
import { canonicalUrl } from '../../src/kinds/url.js';

const ORIGIN = 'https://example.com';
const CRAWLER = 'hybrid-cache-service';
const read = (text: string | Buffer) => robotsOf(ORIGIN, Buffer.from(text), CRAWLER);
const gapOf = (text: string | Buffer, path: string) => allowedGap(read(text), ORIGIN + path, CRAWLER);

// The package's types tell of a `default` that its CommonJS form does not have.
const robotsParser = commonJs as unknown as typeof commonJs.default;

function gapOrClosed(text: string, path: string): number | 'closed' {
  try {
    return gapOf(text, path);
  } catch (error) {
    if (error instanceof RejectedError) return 'closed';
    throw error;
  }
}

function expectClosed(text: string | Buffer, path: string): void {
  expect(() => gapOf(text, path)).toThrow(RejectedError);
}

describe('robots.txt', () => {
  test.each([
    ['nothing', ''],
    ['a page for people', '<!doctype html><title>Welcome</title>'],
    ['rules for another', 'User-agent: googlebot\nDisallow: /'],
    ['an empty rule', 'User-agent: *\nDisallow:'],
    ['rules of nobody', 'Disallow: /'],
    ['bytes that are no text', Buffer.from([0, 255, 254, 137, 80, 78, 71, 10, 0])],
    ['a comment', 'User-agent: * # Disallow: /\n#Disallow: /'],
  ])('%s closes nothing', (_what, text) => {
    expect(gapOf(text, '/a.jpg')).toBe(0);
  });

  test.each([
    ['all', 'User-agent: *\nDisallow: /'],
    ['us by name, in any case', 'User-agent: Hybrid-Cache-Service\nDisallow: /'],
    ['us with a version', 'User-agent: hybrid-cache-service/0.1\nDisallow: /'],
    ['us, in a group of several', 'User-agent: googlebot\nUser-agent: hybrid-cache-service\nDisallow: /'],
    ['with a byte order mark and CR LF', '\ufeffUser-agent: *\r\nDisallow: /\r\n'],
    ['with CR alone', 'User-agent: *\rDisallow: /'],
    ['with blanks and a comment', '  user-AGENT :\t* \n  disallow : /a   # images'],
    ['with a wildcard', 'User-agent: *\nDisallow: /*.jpg$'],
    ['with an escape of what needs none', 'User-agent: *\nDisallow: /%61.jpg'],
    ['with a line separator', 'User-agent: *\nDisallow: /a # \u2028'],
  ])('closes to %s', (_what, text) => {
    expectClosed(text, '/a.jpg');
  });

  test('our own group goes before that for all, and the longest rule before the others (RFC 9309 section 2.2)', () => {
    const text = `User-agent: *\nDisallow: /\n\nUser-agent: ${CRAWLER}\nDisallow: /private/\nAllow: /private/open/`;
    expect(gapOf(text, '/a.jpg')).toBe(0);
    expectClosed(text, '/private/a.jpg');
    expect(gapOf(text, '/private/open/a.jpg')).toBe(0);
  });

  test('the query is part of what a rule is about', () => {
    expectClosed('User-agent: *\nDisallow: /*?size=', '/a.jpg?size=9');
    expect(gapOf('User-agent: *\nDisallow: /*?size=', '/a.jpg')).toBe(0);
  });

  test('a refusal names the rule and not the query', () => {
    const refusal = () => gapOf('Sitemap: /map\n\nUser-agent: *\nDisallow: /', '/a.jpg?signature=secret');
    expect(refusal).toThrow('robots: https://example.com/robots.txt: Disallow: /');
  });

  test.each([
    ['/%7Euser/', '/~user/a.jpg'],
    ['/~user/', '/%7euser/a.jpg'],
    ['/a%2fb', '/a%2Fb.jpg'],
    ['/bücher', '/b%C3%BCcher.jpg'],
    ['/a b', '/a%20b.jpg'],
    ['/100%', '/100%25.jpg'],
    ['/%2A.jpg', '/*.jpg'],
    ['/a%24', '/a$.jpg'],
    ['/*.%6Apg$', '/a.jpg'],
    ['/a$b', '/a%24b.jpg'],
  ])('the rule %s closes %s: one spelling for all that mean the same (sections 2.2.2 and 2.2.3)', (rule, path) => {
    const { origin, href } = new URL(canonicalUrl(ORIGIN + path));
    expectClosed(`User-agent: *\nDisallow: ${rule}`, href.slice(origin.length));
  });

  test.each([
    ['/a%2Fb', '/a/b.jpg'],
    ['/%2A.jpg', '/a.jpg'],
    ['/a%24', '/a'],
    ['/a$', '/a.jpg'],
    ['a', '/a'],
  ])('the rule %s does not close %s', (rule, path) => {
    expect(gapOf(`User-agent: *\nDisallow: ${rule}`, path)).toBe(0);
  });

  test('of what is read only the rules for us are kept, and mean the same', () => {
    const text = `User-agent: *\nDisallow: /\n\nuser-agent: ${CRAWLER}/2\ncrawl-delay: 2.5\nallow: /%61\nDisallow: /b # no\n`;
    const { rules } = read(`Sitemap: /map\n${text}\nUser-agent: other\nDisallow: /c\n`);
    expect(rules).toBe('User-agent: *\nCrawl-delay: 2.5\nAllow: /a\nDisallow: /b');
    expect(read(rules).rules).toBe(rules);
    expect(gapOf(rules, '/a')).toBe(2_500);
  });

  test.each([
    ['2', 2_000],
    ['0.5', 500],
    ['2.01', 2_010],
    ['0.0001', 1],
    ['0', 0],
    ['-3', 0],
    ['soon', 0],
    ['1e9', 3_600_000],
  ])('Crawl-delay: %s is %d ms', (delay, ms) => {
    expect(gapOf(`User-agent: *\nCrawl-delay: ${delay}\nDisallow:`, '/a.jpg')).toBe(ms);
  });

  test('500 KiB are read, and what is behind them is not', () => {
    const filler = '# nothing to see here\n'.repeat(30_000);
    const text = `User-agent: *\nDisallow: /early\n${filler}Disallow: /late\n`;
    expectClosed(text, '/early.jpg');
    expect(gapOf(text, '/late.jpg')).toBe(0);
    expect(read(text).rules).toBe('User-agent: *\nDisallow: /early');
  });

  test('what can be kept is kept: no NUL, no half of a surrogate pair', () => {
    const { rules } = read(
      Buffer.concat([Buffer.from('User-agent: *\nDisallow: /\0'), Buffer.from([0xed, 0xa0, 0x80])]),
    );
    expect(rules).not.toMatch(/\0|\p{Surrogate}/u);
  });

  test('rules with too many wildcards to match them for every URL close the site instead', () => {
    const rule = `Disallow: /${'*a'.repeat(500)}b\n`;
    const many = read(`User-agent: *\n${rule.repeat(100)}`);
    expect(() => allowedGap(many, `${ORIGIN}/${'a'.repeat(2_000)}`, CRAWLER)).toThrow(RetryableError);
    expect(many.rules).toBe('');
    expect(gapOf(`User-agent: *\n${rule.repeat(10)}`, `/${'a'.repeat(2_000)}`)).toBe(0);
    expect(gapOf(`User-agent: other\n${rule.repeat(100)}`, `/${'a'.repeat(2_000)}`)).toBe(0);
  });

  test('a group that names us ten thousand times has each of its rules once', () => {
    const text = `${'User-agent: *\n'.repeat(10_000)}${'Disallow: /a\n'.repeat(10)}`;
    expect(read(text).rules).toBe(`User-agent: *\n${'Disallow: /a\n'.repeat(10)}`.trimEnd());
  });

  test('groups, wildcards and the longest match are those of robots-parser', () => {
    const line = fc.oneof(
      fc.constantFrom('User-agent: *', `User-agent: ${CRAWLER}`, `User-agent: ${CRAWLER}/1.0`, 'User-agent: other', ''),
      fc.constantFrom('Crawl-delay: 2', 'Sitemap: /a', 'Disallow:', 'Allow:', 'Disallow: /', '# Disallow: /'),
      fc
        .tuple(fc.constantFrom('Allow: /', 'Disallow: /', 'Disallow: *'), fc.stringMatching(/^[ab/*]{0,6}\$?$/))
        .map((parts) => parts.join('')),
    );
    const path = fc.stringMatching(/^\/[ab/*$]{0,8}$/);
    fc.assert(
      fc.property(fc.array(line, { maxLength: 12 }), path, (lines, where) => {
        // Of `Sitemap` it says that it ends a head, and RFC 9309 section 2.2.4 that it must not.
        const known = lines.filter((one) => !one.startsWith('Sitemap')).join('\n');
        const reference = robotsParser(`${ORIGIN}/robots.txt`, known);
        const isClosed = reference.isAllowed(ORIGIN + where, CRAWLER) === false;
        const gap = 1_000 * (reference.getCrawlDelay(CRAWLER) ?? 0);
        expect(gapOrClosed(lines.join('\n'), where)).toBe(isClosed ? 'closed' : gap);
      }),
      { numRuns: 3_000 },
    );
  });

  test('what could not be had closes the site until it is asked for again', () => {
    const robots = unreachableRobots(ORIGIN, 'server-error: example.com/robots.txt: status 500');
    const error = caught(() => allowedGap(robots, `${ORIGIN}/a.jpg`, CRAWLER)) as RetryableError;
    expect(error).toBeInstanceOf(RetryableError);
    expect(error.retryAfterMs).toBeGreaterThan(0);
    expect(error.retryAfterMs).toBeLessThanOrEqual(robots.expiresAt - robots.fetchedAt);
  });
});

describe('X-Robots-Tag', () => {
  test.each([
    [['noindex']],
    [['none']],
    [['NoImageIndex']],
    [['noai']],
    [['nofollow, noimageai']],
    [['nofollow', 'noindex']],
    [[`${CRAWLER}: noindex`]],
    [['googlebot: nofollow, hybrid-cache-service: noindex']],
    [['unavailable_after: 25 Jun 2010 15:00:00 PST, noindex']],
    [['unavailable_after: Wed, 25 Jun 2010 15:00:00 GMT, noindex']],
    [['unavailable_after: Friday, 25-Jun-10 15:00:00 GMT, noindex']],
    [[`${CRAWLER}: unavailable_after: Wed, 25 Jun 2010 15:00:00 GMT, noindex`]],
    [['*: noindex']],
  ])('%j forbids', (values) => {
    expect(forbidsIndexing(values, CRAWLER)).toBe(true);
  });

  test.each([
    [[]],
    [['']],
    [['all']],
    [['nofollow, nosnippet, noarchive']],
    [['googlebot: noindex']],
    [['googlebot: nofollow, noindex']],
    [['googlebot: unavailable_after: Wed, 25 Jun 2010 15:00:00 GMT, noindex']],
    [['max-image-preview: none']],
    [['noindexing']],
  ])('%j allows', (values) => {
    expect(forbidsIndexing(values, CRAWLER)).toBe(false);
  });
});

function caught(work: () => unknown): unknown {
  try {
    work();
  } catch (error) {
    return error;
  }
  throw new Error('it did not throw');
}
