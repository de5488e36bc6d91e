/**
 * The identity of a URL: one spelling for all that mean the same. Deduplication, records, requests and `explain` all
 * pass through `canonicalUrl`, so that no two of them can disagree.
 */
import { ArgumentError } from '../errors.js';

/** Longest URL in characters, before and after; longer ones break indexes, logs and many servers. */
const MAX_URL_LENGTH = 2_048;

// What DNS and certificates can carry. WHATWG URL also lets `"` or `{` through, which no host on the web has.
const HOST_NAME = /^(?!-)[a-z0-9_-]+(\.[a-z0-9_-]+)*$/;
const IPV6_LITERAL = /^\[[0-9a-f:.]+\]$/;
const STRAY_PERCENT = /%(?![0-9a-f]{2})/gi;
const ESCAPE = /%[0-9a-f]{2}/gi;
const UNRESERVED = /[A-Za-z0-9\-._~]/;
const NOT_A_URI_CHARACTER = /[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]/g;
/** Most URLs: neither an escape nor anything that would have to be one. */
const PLAIN = /^[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*$/;

/**
 * The canonical form of an http or https URL (WHATWG URL, then RFC 3986 section 6.2.2): lower-case host in punycode
 * without its trailing dot, no default port, no dot segments, no fragment, escapes in upper case and only where they
 * are needed. The query is kept as it stands, its order included. Pure ASCII and idempotent.
 *
 * @throws ArgumentError `url` for what is not such a URL, carries credentials or is longer than 2,048 characters. The
 * message never repeats the URL, which may be signed.
 */
export function canonicalUrl(input: string): string {
  if (typeof input !== 'string') throw refused('an absolute http or https URL');
  if (input.length > MAX_URL_LENGTH) throw refused(`at most ${MAX_URL_LENGTH} characters`);
  const url = parsed(input);
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw refused('an http or https URL');
  if (url.username !== '' || url.password !== '') throw refused('a URL without credentials');
  const port = url.port === '' ? '' : `:${url.port}`;
  const rest = normalised(pathAndQuery(url));
  const canonical = `${url.protocol}//${hostOf(url)}${port}${rest}`;
  if (canonical.length > MAX_URL_LENGTH) throw refused(`at most ${MAX_URL_LENGTH} characters once escaped`);
  return canonical;
}

function parsed(input: string): URL {
  try {
    return new URL(input);
  } catch {
    throw refused('an absolute http or https URL');
  }
}

/** Sliced from `href` because `search` does not tell an empty query (`/?`) from none, and RFC 3986 6.2.3 does. */
function pathAndQuery({ href, protocol }: URL): string {
  const start = href.indexOf('/', protocol.length + 2);
  const end = href.indexOf('#', start);
  return end < 0 ? href.slice(start) : href.slice(start, end);
}

/** One trailing dot only says that the name is absolute; every other empty label is a mistake. */
function hostOf(url: URL): string {
  const host = url.hostname.replace(/\.$/, '');
  if (!HOST_NAME.test(host) && !IPV6_LITERAL.test(host)) throw refused('a URL with a valid host name');
  return host;
}

/**
 * RFC 3986 section 6.2.2.1 and .2 for path and query, and for the patterns of robots.txt that are compared with them. Safe
 * in this order only: a stray `%` is escaped first, or else decoding the digits behind it (`%%36%31`) would forge a new
 * escape. No dot segment can appear by decoding, since the WHATWG parser has already taken `%2e` for a dot. Reserved
 * characters stay as they were written.
 *
 * @param rest ASCII
 */
export function normalised(rest: string): string {
  if (PLAIN.test(rest)) return rest;
  return rest
    .replace(STRAY_PERCENT, '%25')
    .replace(ESCAPE, (escape) => {
      const character = String.fromCharCode(Number.parseInt(escape.slice(1), 16));
      return UNRESERVED.test(character) ? character : escape.toUpperCase();
    })
    .replace(NOT_A_URI_CHARACTER, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
}

function refused(expectation: string): ArgumentError {
  return new ArgumentError('url', `must be ${expectation}`);
}
