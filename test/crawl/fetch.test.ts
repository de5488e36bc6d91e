import type { LookupAddress } from 'node:dns';
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { parseRules } from '../../src/address-rules.js';
import { AddressPolicy } from '../../src/crawl/address.js';
import type { Lookup } from '../../src/crawl/connect.js';
import { Fetcher, type FetchOptions } from '../../src/crawl/fetch.js';
import { ArgumentError, RejectedError, RetryableError } from '../../src/errors.js';
import { type Behaviour, type Site, startSite } from '../support/site.js';

const local = new AddressPolicy({ allow: parseRules('127.0.0.1/32:*, [::1]:*') });
const MiB = 1024 * 1024;

function fetcher(options: Partial<FetchOptions> = {}): Fetcher {
  return new Fetcher({ maxBytes: MiB, timeoutMs: 20_000, userAgent: 'bot/1 (+mailto:a@b)', policy: local, ...options });
}

/** The error a fetch ends in, as its class, reason and detail. */
async function failure(fetched: Promise<unknown>) {
  const error = await fetched.then(
    () => new Error('it was fetched'),
    (reason) => reason,
  );
  if (!(error instanceof RejectedError || error instanceof RetryableError)) throw error;
  const kind = error instanceof RejectedError ? 'rejected' : 'retryable';
  const retryAfterMs = error instanceof RetryableError ? error.retryAfterMs : undefined;
  return { kind, reason: error.reason, message: error.message, retryAfterMs };
}

/** What a fetch of a site that misbehaves in one way ends in. */
async function failureOf(behaviour: Behaviour, options: Partial<FetchOptions> = {}) {
  await using site = await startSite();
  await using client = fetcher(options);
  return await failure(client.fetch(site.behave('/a', behaviour)));
}

/** A resolver that tells when it is asked and answers when told to. */
function heldLookup() {
  let tell = () => {};
  let answer: (addresses: LookupAddress[]) => void = () => {};
  const asked = new Promise<void>((resolve) => {
    tell = resolve;
  });
  const answered = new Promise<LookupAddress[]>((resolve) => {
    answer = resolve;
  });
  const lookup: Lookup = () => {
    tell();
    return answered;
  };
  return { lookup, asked, answer: (addresses: LookupAddress[]) => answer(addresses) };
}

const allClosed = (site: Site) => site.openConnections === 0;

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
      contentType: 'image/jpeg',
      etag: '"1"',
      lastModified: 'Sun, 06 Nov 1994 08:49:37 GMT',
      status: 200,
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
    const got = await client.fetch(site.put('/a', { body: 'x', headers: { 'content-type': [] } }));
    expect(got).toMatchObject({ contentType: null, etag: null, lastModified: null });
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
    expect((await client.fetch(`${site.url}/a`)).status).toBe(200);
    expect((await client.fetch(`http://site.test:${site.port}/a`)).status).toBe(200);
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
    expect((await client.fetch(`http://site.test:${site.port}/a`)).status).toBe(200);
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

  it('is asked directly, whatever proxy the environment names', async () => {
    await using proxy = await startSite();
    await using site = await startSite();
    const url = site.put('/a', { body: 'x' });
    const names = ['HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'];
    const before = names.map((name) => process.env[name]);
    try {
      for (const name of names) process.env[name] = proxy.url;
      await using client = fetcher();
      await client.fetch(url);
    } finally {
      names.forEach((name, i) => {
        if (before[i] === undefined) delete process.env[name];
        else process.env[name] = before[i];
      });
    }
    expect([site.connections, proxy.connections]).toEqual([1, 0]);
  });
});

describe('the bounds', () => {
  it('take a body of exactly the limit', async () => {
    await using site = await startSite();
    await using client = fetcher();
    expect((await client.fetch(site.put('/a', { body: Buffer.alloc(MiB) }))).bytes.length).toBe(MiB);
  });

  it.each<Behaviour>(['endless', 'huge-length', 'gzip-bomb', 'gzip-endless'])(
    'end a body that is %s, and close its socket',
    async (behaviour) => {
      await using site = await startSite();
      await using client = fetcher();
      expect(await failure(client.fetch(site.behave('/a', behaviour)))).toMatchObject({
        kind: 'rejected',
        reason: 'too-large',
        message: `too-large: more than ${MiB} bytes`,
      });
      await site.until(allClosed);
      // What the kernel buffers between the two took, not what an endless site has to give.
      expect(site.bytesSent).toBeLessThan(32 * MiB);
    },
  );

  it('refuse an announced length before the first byte', async () => {
    await using site = await startSite();
    await using client = fetcher({ maxBytes: 4 });
    const fetched = client.fetch(site.put('/a', { body: '12345' }));
    expect(await failure(fetched)).toMatchObject({ kind: 'rejected', reason: 'too-large' });
  });

  it('count what a chunked body brings', async () => {
    await using site = await startSite();
    await using client = fetcher({ maxBytes: 4 });
    const url = site.put('/a', { body: '12345', headers: { 'transfer-encoding': 'chunked' } });
    expect(await failure(client.fetch(url))).toMatchObject({ kind: 'rejected', reason: 'too-large' });
  });

  it('end a site that drips, by the total deadline', async () => {
    await using site = await startSite();
    await using client = fetcher({ timeoutMs: 100 });
    const url = site.behave('/a', 'slow-loris');
    expect(await failure(client.fetch(`${url}?token=secret`))).toMatchObject({
      kind: 'retryable',
      reason: 'timeout',
      message: `timeout: 127.0.0.1:${site.port}/a: not finished after 100 ms`,
    });
    await site.until(allClosed);
  });

  it('span all redirects with one deadline', async () => {
    await using site = await startSite();
    await using client = fetcher({ timeoutMs: 100 });
    const url = site.put('/a', { status: 302, headers: { location: '/b', connection: 'close' } });
    site.behave('/b', 'hang');
    expect(await failure(client.fetch(url))).toMatchObject({ reason: 'timeout' });
    await site.until(allClosed);
  });

  it.each<Behaviour>(['hang', 'hang-midway'])(
    'end a site that falls silent (%s), by the idle deadline',
    async (how) => {
      await using site = await startSite();
      await using client = fetcher({ idleTimeoutMs: 50 });
      const fetched = client.fetch(site.behave('/a', how));
      expect(await failure(fetched)).toMatchObject({ kind: 'retryable', reason: 'timeout' });
      await site.until(allClosed);
    },
  );

  it('end a name that is never resolved, and a handshake that never ends', async () => {
    await using silent = await startSite({ silent: true });
    await using deaf = fetcher({ connectTimeoutMs: 50, lookup: () => new Promise(() => undefined) });
    expect(await failure(deaf.fetch(`http://site.test:${silent.port}/`))).toMatchObject({
      reason: 'timeout',
      message: 'timeout: site.test: no connection after 50 ms',
    });
    expect(silent.connections).toBe(0);
    await using client = fetcher({ connectTimeoutMs: 50 });
    expect(await failure(client.fetch(`https://127.0.0.1:${silent.port}/`))).toMatchObject({
      reason: 'timeout',
      message: 'timeout: 127.0.0.1: no connection after 50 ms',
    });
    await silent.until(allClosed);
  });

  it('end headers without end', async () => {
    expect(await failureOf('endless-headers')).toMatchObject({ kind: 'retryable', reason: 'server-error' });
  });
});

describe('an abort', () => {
  const stopped = new Error('the worker stops');

  it.each<Behaviour>(['hang', 'endless', 'slow-loris', 'hang-midway'])(
    'closes the socket of a site that is %s and gives the reason back',
    async (behaviour) => {
      await using site = await startSite();
      await using client = fetcher({ maxBytes: Number.MAX_SAFE_INTEGER });
      const stop = new AbortController();
      const fetched = client.fetch(site.behave('/a', behaviour), { signal: stop.signal });
      await site.until(() => site.countOf('/a') === 1);
      stop.abort(stopped);
      await expect(fetched).rejects.toBe(stopped);
      await site.until(allClosed);
    },
  );

  it('ends a wait for a name, and no connection is made when the name comes', async () => {
    await using site = await startSite();
    const name = heldLookup();
    await using client = fetcher({ lookup: name.lookup });
    const stop = new AbortController();
    const fetched = client.fetch(`http://site.test:${site.port}/`, { signal: stop.signal });
    await name.asked;
    stop.abort(stopped);
    await expect(fetched).rejects.toBe(stopped);
    name.answer([{ address: '127.0.0.1', family: 4 }]);
    // A connection that had been started before this one would have been accepted before it.
    await client.fetch(site.put('/a', { body: 'x' }));
    expect(site.connections).toBe(1);
  });

  it.each(['abort', 'close'])('closes a connection that is being opened (%s)', async (how) => {
    await using site = await startSite({ silent: true });
    await using client = fetcher();
    const stop = new AbortController();
    const fetched = client.fetch(`https://127.0.0.1:${site.port}/`, { signal: stop.signal }).catch((error) => error);
    await site.until(() => site.connections === 1);
    if (how === 'abort') stop.abort(stopped);
    else await client.close();
    if (how === 'abort') expect(await fetched).toBe(stopped);
    else expect(await fetched).toMatchObject({ name: 'RetryableError', reason: 'connection' });
    await site.until(allClosed);
  });

  it('that came before costs nothing', async () => {
    await using site = await startSite();
    await using client = fetcher();
    await expect(client.fetch(site.url, { signal: AbortSignal.abort(stopped) })).rejects.toBe(stopped);
    expect(site.connections).toBe(0);
  });

  it('leaves other requests to the same site alone', async () => {
    await using site = await startSite();
    await using client = fetcher({ connectionsPerOrigin: 1 });
    const stop = new AbortController();
    const first = client.fetch(site.behave('/hang', 'hang'), { signal: stop.signal });
    await site.until(() => site.countOf('/hang') === 1);
    const queued = client.fetch(site.put('/a', { body: 'x' }));
    stop.abort(stopped);
    await expect(first).rejects.toBe(stopped);
    expect((await queued).status).toBe(200);
  });

  it('takes its listener away from a signal that lives on', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const { signal } = new AbortController();
    const counts = { add: 0, remove: 0 };
    const { addEventListener, removeEventListener } = signal;
    signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
      counts.add += 1;
      addEventListener.apply(signal, args);
    };
    signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
      counts.remove += 1;
      removeEventListener.apply(signal, args);
    };
    await client.fetch(site.put('/a', { body: 'x' }), { signal });
    expect(counts).toEqual({ add: 1, remove: 1 });
  });
});

describe('closing', () => {
  it('ends what is under way and closes every socket', async () => {
    await using site = await startSite();
    const client = fetcher();
    const fetched = failure(client.fetch(site.behave('/a', 'hang')));
    await site.until(() => site.countOf('/a') === 1);
    await client.close();
    expect(await fetched).toMatchObject({ kind: 'retryable', reason: 'connection' });
    await site.until(allClosed);
    expect(await failure(client.fetch(site.url))).toMatchObject({ kind: 'retryable', reason: 'connection' });
    await client.close();
  });

  it('ends a wait for a name', async () => {
    const name = heldLookup();
    const client = fetcher({ lookup: name.lookup });
    const fetched = failure(client.fetch('http://site.test/'));
    await name.asked;
    await client.close();
    expect(await fetched).toMatchObject({ kind: 'retryable', reason: 'connection' });
  });
});

describe('a redirect', () => {
  it.each([301, 302, 303, 307, 308])('with %i is followed, relative or not', async (status) => {
    await using site = await startSite();
    await using client = fetcher();
    const end = site.put('/c', { body: 'x' });
    site.redirect('/deep/b', `${end}#part`, status);
    expect(await client.fetch(site.redirect('/a', 'deep/b', status))).toMatchObject({ finalUrl: end, status: 200 });
  });

  it('is followed five times and not more', async () => {
    await using site = await startSite();
    await using client = fetcher();
    site.put('/5', { body: 'x' });
    for (const n of [0, 1, 2, 3, 4]) site.redirect(`/${n}`, `/${n + 1}`);
    expect((await client.fetch(`${site.url}/0`)).finalUrl).toBe(`${site.url}/5`);
    const once = site.redirect('/more', '/0');
    expect(await failure(client.fetch(once))).toMatchObject({ kind: 'rejected', reason: 'gone' });
    expect(site.countOf('/5')).toBe(1);
  });

  it('that loops or never ends is gone', async () => {
    expect(await failureOf('redirect-loop')).toMatchObject({
      reason: 'gone',
      message: expect.stringMatching(/^gone: redirect loop at 127\.0\.0\.1:\d+\/a$/),
    });
    expect(await failureOf('redirect-endless')).toMatchObject({
      reason: 'gone',
      message: expect.stringMatching(/^gone: redirect loop: more than 5 redirects at 127\.0\.0\.1:\d+\/a$/),
    });
  });

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
  ])('to %s is refused', async (to) => {
    await using site = await startSite();
    await using client = fetcher();
    const { kind, reason, message } = await failure(client.fetch(site.redirect('/a', to)));
    expect({ kind, reason }).toEqual({ kind: 'rejected', reason: 'blocked-address' });
    expect(message).not.toContain('secret');
  });

  it('without a place to go is gone', async () => {
    await using site = await startSite();
    await using client = fetcher();
    expect(await failure(client.fetch(site.put('/a', { status: 302 })))).toMatchObject({ reason: 'gone' });
    expect(await failure(client.fetch(site.put('/b', { status: 304 })))).toMatchObject({ reason: 'gone' });
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
    expect((await client.fetch(url)).status).toBe(200);
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
    ['reset-midway', 'retryable', 'connection'],
    ['lying-length', 'retryable', 'connection'],
    ['cut-chunks', 'retryable', 'connection'],
    ['garbage', 'retryable', 'server-error'],
  ])('that is %s is %s as %s', async (behaviour, kind, reason) => {
    expect(await failureOf(behaviour)).toMatchObject({ kind, reason });
  });

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
