/** However bad a site is: bytes, time and redirects are bounded, and its socket is closed when we are done with it. */
import { describe, expect, it } from 'vitest';
import type { FetchOptions } from '../../src/crawl/fetch.js';
import { startDeafPort } from '../support/deaf.js';
import { startNameServer } from '../support/dns.js';
import { type Behaviour, startSite } from '../support/site.js';
import { allClosed, failure, fetcher, heldLookup, LOOPBACK, MiB, policyOf } from './support.js';

/** What a fetch ends in; its socket is closed by then, and the client is still there to keep it. */
async function endOf(behaviour: Behaviour, options: Partial<FetchOptions> = {}) {
  await using site = await startSite();
  await using client = fetcher(options);
  const { kind, message } = await failure(client.fetch(`${site.behave('/a', behaviour)}?token=secret`));
  await site.until(allClosed);
  return { kind, message: message.replace(`:${site.port}`, ''), bytesSent: site.bytesSent };
}

describe('the size', () => {
  it('may be exactly the limit', async () => {
    await using site = await startSite();
    await using client = fetcher();
    expect((await client.fetch(site.put('/a', { body: Buffer.alloc(MiB) }))).bytes.length).toBe(MiB);
  });

  it.each<Behaviour>([
    'endless',
    'huge-length',
    'gzip-bomb',
    'deflate-bomb',
    'gzip-endless',
    'deflate-endless',
    'br-endless',
  ])('of a body that is %s ends it, and closes its socket', async (behaviour) => {
    const { kind, message, bytesSent } = await endOf(behaviour);
    expect([kind, message]).toEqual(['rejected', `too-large: more than ${MiB} bytes`]);
    // What the kernel buffers between the two took, not what an endless site has to give.
    expect(bytesSent).toBeLessThan(32 * MiB);
  });

  it('of a body in br is that of what it holds', async () => {
    await using site = await startSite();
    await using client = fetcher();
    expect((await failure(client.fetch(site.behave('/a', 'br-bomb')))).message).toBe(
      `too-large: more than ${MiB} bytes`,
    );
  });

  it('that is announced is refused before the first byte', async () => {
    await using site = await startSite();
    await using client = fetcher({ maxBytes: 4 });
    const fetched = client.fetch(site.put('/a', { body: '12345' }));
    expect(await failure(fetched)).toMatchObject({ kind: 'rejected', reason: 'too-large' });
  });

  it('of a chunked body is counted as it comes', async () => {
    await using site = await startSite();
    await using client = fetcher({ maxBytes: 4 });
    const url = site.put('/a', { body: '12345', headers: { 'transfer-encoding': 'chunked' } });
    expect(await failure(client.fetch(url))).toMatchObject({ kind: 'rejected', reason: 'too-large' });
  });

  it.each<Behaviour>(['endless-headers', 'endless-header', 'endless-trailers'])(
    'of what is %s ends it, and closes its socket',
    async (behaviour) => {
      const { kind, message, bytesSent } = await endOf(behaviour);
      expect([kind, message]).toEqual(['retryable', 'server-error: 127.0.0.1/a: UND_ERR_HEADERS_OVERFLOW']);
      expect(bytesSent).toBeLessThan(32 * MiB);
    },
  );

  it.each<Behaviour>(['gzip-trailing', 'deflate-trailing', 'br-trailing'])(
    'of a compressed body (%s) ends where its stream does, and what follows is not waited for',
    async (behaviour) => {
      await using site = await startSite();
      await using client = fetcher();
      expect((await client.fetch(site.behave('/a', behaviour))).bytes.toString()).toBe('0123456789');
      await site.until(allClosed);
    },
  );
});

describe('the time', () => {
  it.each<Behaviour>(['slow-body', 'slow-headers', 'endless-hints', 'endless-extension', 'hang', 'hang-midway'])(
    'of a site that is %s is up with the total deadline',
    async (behaviour) => {
      const { kind, message } = await endOf(behaviour, { timeoutMs: 100 });
      expect([kind, message]).toEqual(['retryable', 'timeout: 127.0.0.1/a: not finished after 100 ms']);
    },
  );

  it('of all redirects is one', async () => {
    await using site = await startSite();
    await using client = fetcher({ timeoutMs: 100 });
    const url = site.put('/a', { status: 302, headers: { location: '/b', connection: 'close' } });
    site.behave('/b', 'hang');
    expect((await failure(client.fetch(url))).message).toMatch(/^timeout: .*\/a: not finished after 100 ms$/);
    expect(site.countOf('/b')).toBe(1);
    await site.until(allClosed);
  });

  // A byte every 5 ms does not help: headers are waited for as a whole.
  it.each<Behaviour>(['hang', 'slow-headers'])('for the headers of a site that is %s is bounded', async (behaviour) => {
    const { kind, message } = await endOf(behaviour, { idleTimeoutMs: 50 });
    expect([kind, message]).toEqual(['retryable', 'timeout: 127.0.0.1/a: UND_ERR_HEADERS_TIMEOUT']);
  });

  // Neither does what is no byte of the body.
  it.each<Behaviour>(['hang-midway', 'endless-extension'])(
    'without a byte of the body of a site that is %s is bounded',
    async (behaviour) => {
      const { kind, message } = await endOf(behaviour, { idleTimeoutMs: 50 });
      expect([kind, message]).toEqual(['retryable', 'timeout: 127.0.0.1/a: UND_ERR_BODY_TIMEOUT']);
    },
  );

  it('for a name is bounded', async () => {
    await using site = await startSite();
    await using names = await startNameServer();
    names.fail('site.test', 'silence');
    await using client = fetcher({ connectTimeoutMs: 50, lookup: names.lookup });
    expect((await failure(client.fetch(`http://site.test:${site.port}/`))).message).toBe(
      'timeout: site.test: no connection after 50 ms',
    );
    expect([names.countOf('site.test'), site.connections]).toEqual([1, 0]);
  });

  it('for a TCP handshake is bounded', async () => {
    await using deaf = await startDeafPort();
    await using client = fetcher({ connectTimeoutMs: 50 });
    expect((await failure(client.fetch(`http://127.0.0.1:${deaf.port}/`))).message).toBe(
      'timeout: 127.0.0.1: no connection after 50 ms',
    );
  });

  it('for a TLS handshake is bounded', async () => {
    await using site = await startSite({ mute: 'silent' });
    await using client = fetcher({ connectTimeoutMs: 50 });
    expect((await failure(client.fetch(`https://127.0.0.1:${site.port}/`))).message).toBe(
      'timeout: 127.0.0.1: no connection after 50 ms',
    );
    expect(site.connections).toBe(1);
    await site.until(allClosed);
  });

  it('for an address that keeps silent does not use up that of the next', async () => {
    await using deaf = await startDeafPort();
    await using site = await startSite({ host: '127.0.0.2', port: deaf.port });
    await using names = await startNameServer();
    names.answer('site.test', ['127.0.0.1', '127.0.0.2']);
    await using client = fetcher({ lookup: names.lookup, policy: policyOf('127.0.0.0/8:*') });
    site.put('/a', { body: 'x' });
    expect((await client.fetch(`http://site.test:${site.port}/a`)).status).toBe(200);
    expect(site.connections).toBe(1);
  });
});

describe('an abort', () => {
  const stopped = new Error('the worker stops');

  it.each<Behaviour>([
    'hang',
    'slow-headers',
    'endless-hints',
    'endless',
    'slow-body',
    'hang-midway',
    'endless-extension',
  ])('closes the socket of a site that is %s and gives the reason back', async (behaviour) => {
    await using site = await startSite();
    await using client = fetcher({ maxBytes: Number.MAX_SAFE_INTEGER });
    const stop = new AbortController();
    const fetched = client.fetch(site.behave('/a', behaviour), { signal: stop.signal });
    await site.until(() => site.countOf('/a') === 1);
    stop.abort(stopped);
    await expect(fetched).rejects.toBe(stopped);
    await site.until(allClosed);
  });

  it('ends a wait for a name, and no connection is made when the name comes', async () => {
    await using site = await startSite();
    const name = heldLookup();
    await using client = fetcher({ lookup: name.lookup });
    const stop = new AbortController();
    const fetched = client.fetch(`http://site.test:${site.port}/`, { signal: stop.signal });
    await name.asked;
    stop.abort(stopped);
    await expect(fetched).rejects.toBe(stopped);
    name.answer([LOOPBACK]);
    // A connection that had been started before this one would have been accepted before it.
    await client.fetch(site.put('/a', { body: 'x' }));
    expect(site.connections).toBe(1);
  });

  it.each(['abort', 'close'])('closes a connection that is being opened (%s)', async (how) => {
    await using site = await startSite({ mute: 'silent' });
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
