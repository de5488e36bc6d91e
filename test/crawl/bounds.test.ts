/** However bad a site is: bytes, time and redirects are bounded, and its socket is closed when we are done with it. */
import { describe, expect, it } from 'vitest';
import type { FetchOptions } from '../../src/crawl/fetch.js';
import { startDeafPort } from '../support/deaf.js';
import { startNameServer } from '../support/dns.js';
import { type Behaviour, startSite } from '../support/site.js';
import { allClosed, failure, fetcher, MiB, policyOf } from './support.js';

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

  it.each<Behaviour>(['endless-hints', 'endless-extension'])(
    'of what is around the body (%s) ends it',
    async (behaviour) => {
      await using site = await startSite();
      await using client = fetcher();
      expect(await failure(client.fetch(site.behave('/a', behaviour)))).toMatchObject({ reason: 'too-large' });
      await site.until(allClosed);
      expect(site.bytesSent).toBeLessThan(64 * MiB);
    },
  );

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

describe('a redirect with a body without end', () => {
  it('is followed, and its socket is closed', async () => {
    await using site = await startSite();
    await using client = fetcher();
    site.put('/end', { body: 'x', headers: { connection: 'close' } });
    expect((await client.fetch(site.behave('/a', 'redirect-pouring'))).finalUrl).toBe(`${site.url}/end`);
    await site.until(allClosed);
    expect(site.bytesSent).toBeLessThan(32 * MiB);
  });
});

describe('the time', () => {
  it.each<Behaviour>(['slow-body', 'slow-headers', 'slow-hints', 'slow-extension', 'hang', 'hang-midway'])(
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
    await site.until(allClosed);
  });

  // A byte every 5 ms does not help: headers are waited for as a whole.
  it.each<Behaviour>(['hang', 'slow-headers'])('for the headers of a site that is %s is bounded', async (behaviour) => {
    const { kind, message } = await endOf(behaviour, { idleTimeoutMs: 50 });
    expect([kind, message]).toEqual(['retryable', 'timeout: 127.0.0.1/a: UND_ERR_HEADERS_TIMEOUT']);
  });

  // Neither does what is no byte of the body.
  it.each<Behaviour>(['hang-midway', 'slow-extension'])(
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
    expect((await client.fetch(`http://site.test:${site.port}/a`)).bytes.toString()).toBe('x');
    expect(site.connections).toBe(1);
  });
});
