/** What robots.txt and X-Robots-Tag are understood to say. */
import { describe, expect, test } from 'vitest';
import { allowedGap, forbidsIndexing, robotsOf, unreachableRobots } from '../../src/crawl/robots.js';
import { RejectedError, RetryableError } from '../../src/errors.js';

const ORIGIN = 'https://example.com';
const CRAWLER = 'hybrid-cache-service';
const read = (text: string | Buffer) => robotsOf(ORIGIN, Buffer.from(text));
const gapOf = (text: string | Buffer, path: string) => allowedGap(read(text), ORIGIN + path, CRAWLER);

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
    ['with an escape', 'User-agent: *\nDisallow: /%61.jpg\nDisallow: /a'],
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

  test('a refusal names the place and not the query', () => {
    const refusal = () => gapOf('User-agent: *\nDisallow: /', '/a.jpg?signature=secret');
    expect(refusal).toThrow('robots: https://example.com/robots.txt, line 2');
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

  test('rules that would take for ever to match close the site instead', () => {
    const rule = `Disallow: /${'*a'.repeat(500)}b\n`;
    const many = read(`User-agent: *\n${rule.repeat(100)}`);
    expect(() => allowedGap(many, `${ORIGIN}/${'a'.repeat(2_000)}`, CRAWLER)).toThrow(RetryableError);
    expect(gapOf(`User-agent: *\n${rule.repeat(10)}`, `/${'a'.repeat(2_000)}`)).toBe(0);
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
