/** What is asked for on the wire is what the canonical URL says: by it jobs are deduplicated and records are found. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RejectedError } from '../../src/errors.js';
import { canonicalUrl } from '../../src/kinds/url.js';
import { startSite } from '../support/site.js';
import { anyRest, twoSpellings } from '../support/urls.js';
import { fetcher } from './support.js';

/** What follows the host in some spelling, as a canonical URL of the origin has it; nothing for what is refused. */
function targetOf(origin: string, rest: string): string | undefined {
  try {
    return canonicalUrl(`${origin}/${rest}`).slice(origin.length);
  } catch {
    return undefined;
  }
}

const rests = fc.oneof(
  anyRest,
  twoSpellings.map(([one]) => {
    const { pathname, search } = new URL(one);
    return pathname.slice(1) + search;
  }),
);

describe('the request target', () => {
  it.each(['asked for', 'redirected to'])('is that of the canonical URL, %s in any spelling', async (how) => {
    await using site = await startSite();
    await using client = fetcher();
    const property = fc.asyncProperty(rests, async (rest) => {
      const target = targetOf(site.url, rest);
      // A place that leads to itself is not asked twice.
      if (target === undefined || target === '/start') return;
      site.redirect('/start', Buffer.from(`${site.url}/${rest.replace(/[\r\n\0]/g, '')}`).toString('latin1'));
      const url = how === 'asked for' ? `${site.url}/${rest}` : `${site.url}/start`;
      const error = await client.fetch(url).catch((reason) => reason);
      expect(error).toBeInstanceOf(RejectedError);
      expect(error.reason).toBe('gone');
      expect(site.requests.at(-1)?.path).toBe(target);
    });
    await fc.assert(property, { numRuns: 500 });
  });
});
