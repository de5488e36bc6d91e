import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../src/errors.js';
import { canonicalUrl } from '../../src/kinds/url.js';
import { anyRest, twoSpellings } from '../support/urls.js';

describe('canonicalUrl', () => {
  it.each([
    ['HTTP://EXAMPLE.com', 'http://example.com/'],
    ['https://example.com:443/a', 'https://example.com/a'],
    ['http://example.com:443/a', 'http://example.com:443/a'],
    ['http://example.com./a', 'http://example.com/a'],
    ['http://example.com/a#part', 'http://example.com/a'],
    ['http://example.com/a?b=2&a=1#x', 'http://example.com/a?b=2&a=1'],
    ['http://example.com/?', 'http://example.com/?'],
    ['http://example.com/a/../b/./c', 'http://example.com/b/c'],
    ['http://example.com/a/%2e%2E/b', 'http://example.com/b'],
    ['http://example.com/%7euser/%41%2d%5f', 'http://example.com/~user/A-_'],
    ['http://example.com/a%2fb%3fc', 'http://example.com/a%2Fb%3Fc'],
    ['http://example.com/?q=%61%26%3d', 'http://example.com/?q=a%26%3D'],
    ['http://example.com/%252e', 'http://example.com/%252e'],
    ['http://example.com/100%', 'http://example.com/100%25'],
    ['http://example.com/%%36%31', 'http://example.com/%2561'],
    ['http://example.com/a|b?c[]=^', 'http://example.com/a%7Cb?c%5B%5D=%5E'],
    ['http://example.com/ä b', 'http://example.com/%C3%A4%20b'],
    ['http://Bücher.example/', 'http://xn--bcher-kva.example/'],
    ['http://example。com/', 'http://example.com/'],
    ['http://0x7f.1/', 'http://127.0.0.1/'],
    ['http://2130706433/', 'http://127.0.0.1/'],
    ['http://[2001:DB8:0::1]:8080/', 'http://[2001:db8::1]:8080/'],
    ['http://[::FFFF:127.0.0.1]/', 'http://[::ffff:7f00:1]/'],
    ['http://１２７.0.0.1/', 'http://127.0.0.1/'],
    ['http://127.0.0.1./', 'http://127.0.0.1/'],
    ['http://@example.com/', 'http://example.com/'],
    ['http:\\\\example.com\\a\\..\\b', 'http://example.com/b'],
    ['http:example.com', 'http://example.com/'],
    ['http://example.com:080/', 'http://example.com/'],
    ['http://example.com:/', 'http://example.com/'],
    ['http://faß.example/', 'http://xn--fa-hia.example/'],
    ['http://example.com/\ud800', 'http://example.com/%EF%BF%BD'],
    ["http://example.com/it's?it's", "http://example.com/it's?it%27s"],
    ['http://example.com//a///b/', 'http://example.com//a///b/'],
    ['http://example.com/a/..', 'http://example.com/'],
    ['http://example.com/../../a', 'http://example.com/a'],
    ['http://example.com/a?b/../c', 'http://example.com/a?b/../c'],
    ['  http://example.com/\n', 'http://example.com/'],
  ])('%s is %s', (input, expected) => {
    expect(canonicalUrl(input)).toBe(expected);
  });

  it.each([
    '',
    'example.com/a',
    '//example.com/a',
    'ftp://example.com/a',
    'file:///etc/passwd',
    'data:image/png;base64,AAAA',
    'javascript:alert(1)',
    'ws://example.com/',
    'gopher://example.com/',
    'blob:http://example.com/a',
    'view-source:http://example.com/',
    'http+unix://%2Fvar%2Frun%2Fdocker.sock/',
    'http://',
    'http://user@example.com/',
    'http://:secret@example.com/',
    'http://a..b/',
    'http://./',
    'http://a"b/',
    'http://[fe80::1%25eth0]/',
    'http://1.2.3.4.5/',
    'http://example.com:65536/',
    `http://example.com/${'a'.repeat(2_030)}`,
    `http://example.com/${'ä'.repeat(1_000)}`,
  ])('refuses %s', (input) => {
    expect(() => canonicalUrl(input)).toThrow(ArgumentError);
    expect(() => canonicalUrl(input)).toThrow(/^url: must be /);
  });

  it.each([
    ['http://example.com/a', 'http://example.com/a/'],
    ['http://example.com/a', 'http://example.com/A'],
    ['http://example.com/a', 'https://example.com/a'],
    ['http://example.com/a', 'http://www.example.com/a'],
    ['http://example.com/a', 'http://example.com:8080/a'],
    ['http://example.com/a', 'http://example.com//a'],
    ['http://example.com/a', 'http://example.com/a?'],
    ['http://example.com/?a&b', 'http://example.com/?b&a'],
    ['http://example.com/?a=1', 'http://example.com/?A=1'],
    ['http://example.com/?a+b', 'http://example.com/?a%20b'],
    ['http://example.com/?a+b', 'http://example.com/?a%2Bb'],
    ['http://example.com/a/b', 'http://example.com/a%2Fb'],
    ['http://example.com/a?b', 'http://example.com/a%3Fb'],
    ['http://example.com/%41', 'http://example.com/%2541'],
    ['http://example.com/;a', 'http://example.com/%3Ba'],
  ])('tells %s from %s', (one, other) => {
    expect(canonicalUrl(one)).not.toBe(canonicalUrl(other));
  });

  it('takes 2,048 characters and not one more', () => {
    const longest = 'http://example.com/'.padEnd(2_048, 'a');
    expect(canonicalUrl(longest)).toBe(longest);
    expect(() => canonicalUrl(`${longest}a`)).toThrow('at most 2048 characters');
  });

  it('repeats neither credentials nor query in its message', () => {
    expect(() => canonicalUrl('http://me:secret@example.com/?token=t0k3n')).toThrow(/^url: must be a URL without cred/);
  });

  it.each([null, undefined, 7, {}])('refuses %s, which is no string', (input) => {
    expect(() => canonicalUrl(input as unknown as string)).toThrow(ArgumentError);
  });
});

const anyUrl = fc.oneof(
  fc.webUrl({ withFragments: true, withQueryParameters: true }),
  anyRest.map((text) => `http://example.com/${text}`),
  anyRest.map((text) => `https://${text}`),
);

/** What canonicalUrl gives, or nothing for what it refuses. */
function accepted(input: string): string | undefined {
  try {
    return canonicalUrl(input);
  } catch (error) {
    expect(error).toBeInstanceOf(ArgumentError);
    return undefined;
  }
}

describe('canonicalUrl, whatever it is given,', () => {
  const holds = (property: (canonical: string, input: string) => void) =>
    fc.assert(
      fc.property(anyUrl, (input) => {
        const canonical = accepted(input);
        if (canonical !== undefined) property(canonical, input);
      }),
      { numRuns: 3_000 },
    );

  it('is idempotent', () => {
    holds((canonical) => expect(canonicalUrl(canonical)).toBe(canonical));
  });

  it('gives a valid RFC 3986 URI without fragment, userinfo, and needless escapes', () => {
    const uri = /^https?:\/\/([a-z0-9_.-]+|\[[0-9a-f:]+\])(:\d+)?\/([A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-F]{2})*$/;
    holds((canonical) => {
      expect(canonical).toMatch(uri);
      for (const [escape] of canonical.matchAll(/%[0-9A-F]{2}/g)) {
        expect(decodeURIComponent(escape.replace(/%[89A-F]./, '%00'))).not.toMatch(/[A-Za-z0-9\-._~]/);
      }
    });
  });

  it('asks the same host for the same path, as far as decoding can tell', () => {
    const decoded = (text: string) => Buffer.from(text.replace(/%(?![0-9a-f]{2})/gi, '%25')).toString('latin1');
    const bytes = (text: string) =>
      decoded(text).replace(/%([0-9a-f]{2})/gi, (_all, hex) => String.fromCharCode(Number.parseInt(hex, 16)));
    holds((canonical, input) => {
      const [was, is] = [new URL(input), new URL(canonical)];
      expect(is.hostname).toBe(was.hostname.replace(/\.$/, ''));
      expect(bytes(is.pathname)).toBe(bytes(was.pathname));
      expect(bytes(is.search)).toBe(bytes(was.search));
      // Reserved characters are told apart from their escapes, so the structure stays.
      expect(is.pathname.split('/').length).toBe(was.pathname.split('/').length);
    });
  });

  it('is the same for two spellings that mean the same', () => {
    const property = fc.property(twoSpellings, ([one, other]) => {
      expect(canonicalUrl(one)).toBe(canonicalUrl(other));
    });
    fc.assert(property, { numRuns: 3_000 });
  });

  it('throws nothing but ArgumentError', () => {
    const anyText = fc.oneof(
      fc.string({ unit: 'binary' }),
      // Halves of surrogate pairs and all.
      fc.array(fc.nat(0xffff)).map((codes) => String.fromCharCode(...codes)),
      fc.webUrl().chain((url) => fc.nat(url.length).chain((at) => anyRest.map((text) => url.slice(0, at) + text))),
    );
    const input = fc.oneof(
      anyUrl,
      anyText,
      anyText.map((text) => `http://${text}`),
      fc.anything(),
    );
    const property = fc.property(input, (given) => {
      expect(typeof accepted(given as string)).toMatch(/^(string|undefined)$/);
    });
    fc.assert(property, { numRuns: 5_000 });
  });

  it('does not depend on the case of scheme, host and escapes', () => {
    const shout = (url: string) =>
      url
        .replace(/^https?:\/\/[^/]*/, (head) => head.toUpperCase())
        .replace(/%[0-9A-F]{2}/g, (one) => one.toLowerCase());
    holds((canonical) => expect(canonicalUrl(shout(canonical))).toBe(canonical));
  });
});
