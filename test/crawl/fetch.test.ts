import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../src/errors.js';
import { type Behaviour, startSite } from '../support/site.js';
import { SITE_TEST } from './certificate.js';
import { allClosed, failure, failureOf, fetcher, LOOPBACK } from './support.js';

describe('a good site', () => {
  it('gives the bytes, what the headers say, and the canonical URL', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const body = Buffer.from([0xff, 0xd8, 0, 1, 2]);
    const url = site.put('/a.jpg', {
      body,
      headers: { etag: '"1"', 'last-modified': 'Sun, 06 Nov 1994 08:49:37 GMT' },
    });
    expect(await client.fetch(`${url}?v=%7e#top`)).toEqual({
      bytes: body,
      finalUrl: `${url}?v=~`,
      etag: '"1"',
      lastModified: 'Sun, 06 Nov 1994 08:49:37 GMT',
    });
    expect(site.requests).toMatchObject([
      {
        method: 'GET',
        path: '/a.jpg?v=~',
        headers: { 'user-agent': 'bot/1 (+mailto:a@b)', 'accept-encoding': 'identity', host: `127.0.0.1:${site.port}` },
      },
    ]);
  });

  it('gives null for headers that are not there', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const got = await client.fetch(site.put('/a', { body: 'x' }));
    expect(got).toMatchObject({ etag: null, lastModified: null });
  });

  it('is asked over the connections that are open already', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const url = site.put('/a', { body: 'x' });
    for (let i = 0; i < 10; i++) await client.fetch(url);
    // Two: undici takes a connection for free again a turn after its response has ended.
    expect(site.connections).toBeLessThanOrEqual(2);
  });

  it('gets no more connections at a time than agreed, and every request is answered', async () => {
    await using site = await startSite();
    await using client = fetcher({ connectionsPerOrigin: 2 });
    const url = site.put('/a', { body: 'x' });
    await Promise.all(Array.from({ length: 20 }, () => client.fetch(url)));
    expect(site.connections).toBe(2);
    expect(site.countOf('/a')).toBe(20);
  });

  it('is reached over IPv6 and by name', async () => {
    await using site = await startSite({ host: '::1' });
    await using client = fetcher({ lookup: async () => [{ address: '::1', family: 6 }] });
    site.put('/a', { body: 'x' });
    expect((await client.fetch(`${site.url}/a`)).bytes.toString()).toBe('x');
    expect((await client.fetch(`http://site.test:${site.port}/a`)).bytes.toString()).toBe('x');
    expect(site.requests.at(-1)?.headers.host).toBe(`site.test:${site.port}`);
  });

  it('is reached at its second address when nobody listens at the first', async () => {
    await using site = await startSite();
    await using client = fetcher({
      lookup: async () => [
        { address: '::1', family: 6 },
        { address: '127.0.0.1', family: 4 },
      ],
    });
    site.put('/a', { body: 'x' });
    expect((await client.fetch(`http://site.test:${site.port}/a`)).bytes.toString()).toBe('x');
  });

  it.each([
    ['gzip', gzipSync],
    ['x-gzip', gzipSync],
    ['deflate', deflateSync],
    ['br', brotliCompressSync],
    ['Identity', (body: Buffer) => body],
  ])('may compress unasked with %s', async (encoding, compress) => {
    await using site = await startSite();
    await using client = fetcher();
    const body = Buffer.alloc(100_000, 'pixels');
    const url = site.put('/a', { body: compress(body), headers: { 'content-encoding': encoding } });
    expect((await client.fetch(url)).bytes.equals(body)).toBe(true);
  });
});

describe('a redirect', () => {
  it.each([301, 302, 303, 307, 308])('with %i is followed, relative or not', async (status) => {
    await using site = await startSite();
    await using client = fetcher();
    const end = site.put('/c', { body: 'x' });
    site.redirect('/deep/b', `${end}#part`, status);
    expect(await client.fetch(site.redirect('/a', 'deep/b', status))).toMatchObject({ finalUrl: end });
  });

  it('is followed five times and not more', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const end = site.put('/end', { body: 'x' });
    expect((await client.fetch(site.chain('/five', 5, end))).finalUrl).toBe(end);
    expect(await failure(client.fetch(site.chain('/six', 6, end)))).toMatchObject({
      kind: 'rejected',
      message: `gone: more than 5 redirects at 127.0.0.1:${site.port}/end`,
    });
    expect(site.countOf('/end')).toBe(1);
  });

  it.each<[Behaviour, string]>([
    ['redirect-self', 'gone: redirect loop at 127.0.0.1/a'],
    ['redirect-loop', 'gone: redirect loop at 127.0.0.1/a'],
    ['redirect-endless', 'gone: more than 5 redirects at 127.0.0.1/a'],
  ])('that is a %s ends', async (behaviour, message) => {
    expect(await failureOf(behaviour)).toMatchObject({ kind: 'rejected', reason: 'gone', message });
  });

  it.each(['/%61', '/b/../a', '/a#again', '//127.0.0.1:PORT/a', 'HTTP://127.1:PORT/a'])(
    'to itself, spelled %s, is a loop',
    async (spelling) => {
      await using site = await startSite();
      await using client = fetcher();
      const url = site.redirect('/a', spelling.replace('PORT', String(site.port)));
      expect((await failure(client.fetch(url))).message).toBe(`gone: redirect loop at 127.0.0.1:${site.port}/a`);
      expect(site.countOf('/a')).toBe(1);
    },
  );

  it('brings its UTF-8 path along', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const end = site.put('/%C3%A4', { body: 'x' });
    const location = Buffer.from('/ä').toString('latin1');
    expect((await client.fetch(site.redirect('/a', location))).finalUrl).toBe(end);
  });

  it.each([
    'ftp://example.com/x',
    'file:///etc/passwd',
    'data:image/png;base64,AAAA',
    'http://user:secret@example.com/?token=secret',
    'http://[fe80::1%25eth0]/',
    'http://',
    `/${'x'.repeat(2_048)}`,
  ])('to %s leads nowhere, and is gone', async (to) => {
    await using site = await startSite();
    await using client = fetcher();
    const { kind, reason, message } = await failure(client.fetch(site.redirect('/a', to)));
    expect({ kind, reason }).toEqual({ kind: 'rejected', reason: 'gone' });
    expect(message).not.toContain('secret');
  });

  it('without a place to go is gone', async () => {
    await using site = await startSite();
    await using client = fetcher();
    expect(await failure(client.fetch(site.put('/a', { status: 302 })))).toMatchObject({ reason: 'gone' });
    expect(await failure(client.fetch(site.put('/b', { status: 305 })))).toMatchObject({ reason: 'gone' });
  });
});

describe('a conditional request', () => {
  const LATER = 'Mon, 07 Nov 1994 08:49:37 GMT';
  const validators = { etag: '"1"', lastModified: LATER };

  it.each([
    ['tag', { etag: '"1"', lastModified: null }],
    ['date', { etag: null, lastModified: LATER }],
  ])('by its %s ends with nothing where the bytes are the same', async (_what, known) => {
    await using site = await startSite();
    await using client = fetcher();
    const url = site.put('/a', { body: 'x', headers: { etag: '"1"', 'last-modified': LATER } });
    expect(await client.fetchUnless(known, url)).toBeNull();
    expect(await client.fetchUnless({ etag: '"0"', lastModified: null }, url)).toMatchObject({ etag: '"1"' });
  });

  it('asks the URL alone: where it redirects to, an older page is another page', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const older = { 'last-modified': 'Sun, 06 Nov 1994 08:49:37 GMT' };
    const end = site.put('/b', { body: 'other', headers: older });
    const url = site.redirect('/a', end);
    expect((await client.fetchUnless(validators, url))?.bytes.toString()).toBe('other');
    // Put off at the second URL, and going on from there.
    expect((await client.fetchUnless(validators, url, { trail: [url, end] }))?.bytes.toString()).toBe('other');
    const sent = site.requests.map(({ path, headers }) => [
      path,
      headers['if-none-match'],
      headers['if-modified-since'],
    ]);
    expect(sent).toEqual([
      ['/a', '"1"', LATER],
      ['/b', undefined, undefined],
      ['/b', undefined, undefined],
    ]);
  });

  it('alone is answered with 304: from whoever was asked without a condition, it is a failure', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const unasked = site.put('/b', { status: 304 });
    const failed = { kind: 'retryable', reason: 'server-error' };
    expect(await failure(client.fetchUnless({ etag: null, lastModified: null }, unasked))).toMatchObject(failed);
    expect(await failure(client.fetchUnless(validators, site.redirect('/a', unasked)))).toMatchObject(failed);
  });
});

describe('a status', () => {
  it.each([
    [404, 'rejected', 'gone'],
    [410, 'rejected', 'gone'],
    [400, 'rejected', 'forbidden'],
    [401, 'rejected', 'forbidden'],
    [403, 'rejected', 'forbidden'],
    [451, 'rejected', 'forbidden'],
    [408, 'retryable', 'server-error'],
    [425, 'retryable', 'server-error'],
    [429, 'retryable', 'throttled'],
    [500, 'retryable', 'server-error'],
    [502, 'retryable', 'server-error'],
    [503, 'retryable', 'throttled'],
    [206, 'retryable', 'server-error'],
    [304, 'retryable', 'server-error'],
    [999, 'rejected', 'forbidden'],
  ])('of %i is %s as %s', async (status, kind, reason) => {
    await using site = await startSite();
    await using client = fetcher();
    const url = site.put('/a', { status, body: 'no' });
    expect(await failure(client.fetch(`${url}?token=secret`))).toEqual({
      kind,
      reason,
      message: `${reason}: 127.0.0.1:${site.port}/a: status ${status}`,
      retryAfterMs: undefined,
    });
  });

  it.each([
    [429, '120', 120_000],
    [503, '7', 7_000],
    [503, '86400', 3_600_000],
    [429, 'Fri, 31 Dec 2999 23:59:59 GMT', 3_600_000],
    [429, 'Sun, 06 Nov 1994 08:49:37 GMT', 0],
    [500, '5', 5_000],
    [429, 'soon', undefined],
  ])('of %i with Retry-After %s', async (status, retryAfter, expected) => {
    await using site = await startSite();
    await using client = fetcher();
    const url = site.put('/a', { status, headers: { 'retry-after': retryAfter } });
    expect((await failure(client.fetch(url))).retryAfterMs).toBe(expected);
  });

  it('that passes is followed by the page', async () => {
    await using site = await startSite();
    await using client = fetcher();
    site.put('/a', { body: 'x' });
    const url = site.failTimes('/a', 2, 500);
    expect((await failure(client.fetch(url))).reason).toBe('server-error');
    expect((await failure(client.fetch(url))).reason).toBe('server-error');
    expect((await client.fetch(url)).bytes.toString()).toBe('x');
  });

  it('of failure with a small page leaves the connection in use', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const missing = site.put('/a', { status: 404, body: 'no' });
    for (let i = 0; i < 10; i++) await failure(client.fetch(missing));
    expect(site.connections).toBeLessThanOrEqual(2);
  });

  it.each<Behaviour>(['endless-missing', 'hang-missing'])(
    'of failure with a page that is not all there (%s) closes the connection',
    async (behaviour) => {
      await using site = await startSite();
      await using client = fetcher();
      expect(await failure(client.fetch(site.behave('/a', behaviour)))).toMatchObject({ reason: 'gone' });
      await site.until(allClosed);
    },
  );
});

describe('a bad answer', () => {
  it.each<[Behaviour, string, string]>([
    ['empty', 'rejected', 'not-an-image'],
    ['no-content', 'rejected', 'not-an-image'],
    ['reset', 'retryable', 'connection'],
    ['close', 'retryable', 'connection'],
    ['reset-in-headers', 'retryable', 'connection'],
    ['reset-midway', 'retryable', 'connection'],
    ['reset-in-chunk', 'retryable', 'connection'],
    ['lying-length', 'retryable', 'connection'],
    ['cut-chunks', 'retryable', 'connection'],
    ['two-lengths', 'retryable', 'connection'],
    ['upgrade', 'retryable', 'connection'],
    ['garbage', 'retryable', 'server-error'],
  ])('that is %s is %s as %s', async (behaviour, kind, reason) => {
    expect(await failureOf(behaviour)).toMatchObject({ kind, reason });
  });

  it('from a site that resets every connection is a connection failure', async () => {
    await using site = await startSite({ mute: 'reset' });
    await using client = fetcher();
    expect(await failure(client.fetch(site.url))).toMatchObject({ kind: 'retryable', reason: 'connection' });
    expect(site.connections).toBe(1);
  });

  it.each<Behaviour>(['html', 'html-as-jpeg'])(
    'that is %s is handed on, whatever type it says: what is an image is decided from the bytes',
    async (behaviour) => {
      await using site = await startSite();
      await using client = fetcher();
      const { bytes } = await client.fetch(site.behave('/a.jpg', behaviour));
      expect(bytes.toString('latin1', 0, 15)).toBe('<!doctype html>');
    },
  );

  it('that is longer than it says is cut where it said, and its connection is not used again', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const url = site.behave('/a', 'lying-short');
    expect((await client.fetch(url)).bytes.toString()).toBe('01234');
    expect((await client.fetch(url)).bytes.toString()).toBe('01234');
    expect(site.connections).toBe(2);
  });

  it.each(['gzip', 'deflate', 'br'])('that is damaged %s is the mistake of the server', async (encoding) => {
    await using site = await startSite();
    await using client = fetcher();
    const url = site.put('/a', { body: 'not compressed at all', headers: { 'content-encoding': encoding } });
    expect(await failure(client.fetch(url))).toMatchObject({ kind: 'retryable', reason: 'server-error' });
  });

  it('in an encoding we do not know is unsupported', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const url = site.put('/a', { body: 'x', headers: { 'content-encoding': 'zstd' } });
    expect(await failure(client.fetch(url))).toMatchObject({ kind: 'rejected', reason: 'unsupported' });
  });

  it('from a port where nobody listens is a connection failure', async () => {
    const site = await startSite();
    const { url } = site;
    await site.close();
    await using client = fetcher({ connectionsPerOrigin: 2 });
    const fetched = Array.from({ length: 10 }, () => failure(client.fetch(url)));
    for (const one of await Promise.all(fetched))
      expect(one).toMatchObject({ kind: 'retryable', reason: 'connection' });
  });

  it('from DNS is a dns failure', async () => {
    const rejecting = fetcher({ lookup: () => Promise.reject(Object.assign(new Error('no'), { code: 'ENOTFOUND' })) });
    const empty = fetcher({ lookup: async () => [] });
    await using _both = {
      [Symbol.asyncDispose]: async () => void (await Promise.all([rejecting.close(), empty.close()])),
    };
    expect(await failure(rejecting.fetch('http://site.test/?token=secret'))).toMatchObject({
      kind: 'retryable',
      reason: 'dns',
      message: 'dns: site.test: ENOTFOUND',
    });
    expect((await failure(empty.fetch('http://site.test/'))).reason).toBe('dns');
  });

  it('to a URL that is none is an argument error', async () => {
    await using client = fetcher();
    await expect(client.fetch('ftp://example.com/')).rejects.toBeInstanceOf(ArgumentError);
  });
});

describe('a connection that was kept', () => {
  const oneConnection = () => fetcher({ connectionsPerOrigin: 1, lookup: async () => [LOOPBACK], ca: SITE_TEST.cert });
  const optionsOf = (scheme: string) => (scheme === 'https' ? { tls: SITE_TEST } : {});

  it.each<[string, Behaviour]>([
    ['http', 'reset-kept'],
    ['http', 'close-kept'],
    ['https', 'close-kept'],
  ])('over %s and is ended under the next request costs nothing: %s', async (scheme, how) => {
    await using site = await startSite(optionsOf(scheme));
    await using client = oneConnection();
    site.behave('/a', how);
    for (let n = 0; n < 3; n++) {
      const { bytes } = await client.fetch(`${scheme}://site.test:${site.port}/a`);
      expect(bytes.toString()).toBe('0123456789');
    }
    expect(site.connections).toBe(3);
    expect(site.countOf('/a')).toBe(5);
  });

  it.each<[string, Behaviour]>([
    ['http', 'reset'],
    ['http', 'close'],
    ['http', 'reset-in-headers'],
    ['https', 'close'],
  ])('over %s is the one reason to ask a site again that ends every request: %s', async (scheme, how) => {
    await using site = await startSite(optionsOf(scheme));
    await using client = oneConnection();
    const at = (path: string) => client.fetch(`${scheme}://site.test:${site.port}${path}`);
    site.put('/a', { body: 'x' });
    site.behave('/b', how);
    expect(await failure(at('/b'))).toMatchObject({ kind: 'retryable', reason: 'connection' });
    expect(site.countOf('/b')).toBe(1);
    await at('/a');
    expect(await failure(at('/b'))).toMatchObject({ kind: 'retryable', reason: 'connection' });
    expect(site.countOf('/b')).toBe(3);
  });

  it('and broke within an answer is a failure', async () => {
    await using site = await startSite();
    await using client = oneConnection();
    await client.fetch(site.put('/a', { body: 'x' }));
    const failed = await failure(client.fetch(site.behave('/b', 'reset-midway')));
    expect(failed).toMatchObject({ kind: 'retryable', reason: 'connection' });
    expect(site.countOf('/b')).toBe(1);
  });
});
