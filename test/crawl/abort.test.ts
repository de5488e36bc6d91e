/** An abort or a close, wherever the fetch is by then: the site sees its socket go. */
import { describe, expect, it } from 'vitest';
import { type Behaviour, startSite } from '../support/site.js';
import { allClosed, failure, fetcher, heldLookup, LOOPBACK } from './support.js';

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

  it.each<Behaviour>(['endless', 'slow-body', 'hang-midway', 'endless-extension', 'gzip-endless', 'deflate-endless'])(
    'in the body of a site that is %s closes its socket',
    async (behaviour) => {
      await using site = await startSite();
      await using client = fetcher({ maxBytes: Number.MAX_SAFE_INTEGER });
      const stop = new AbortController();
      const fetched = client.fetch(site.behave('/a', behaviour), { signal: stop.signal }).catch((error) => error);
      await site.until(() => site.countOf('/a') === 1);
      // Answered later than the first began to be.
      await client.fetch(site.put('/b', { body: 'x', headers: { connection: 'close' } }));
      stop.abort(stopped);
      expect(await fetched).toBe(stopped);
      await site.until(allClosed);
    },
  );

  it('at the second hop of a redirect closes its socket', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const stop = new AbortController();
    site.behave('/b', 'hang');
    const url = site.put('/a', { status: 302, headers: { location: '/b', connection: 'close' } });
    const fetched = client.fetch(url, { signal: stop.signal }).catch((error) => error);
    await site.until(() => site.countOf('/b') === 1);
    stop.abort(stopped);
    expect(await fetched).toBe(stopped);
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
    expect((await queued).bytes.toString()).toBe('x');
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

describe('a permit', () => {
  it('that never comes is waited for no longer than for everything else', async () => {
    await using site = await startSite();
    await using client = fetcher({ timeoutMs: 100 });
    const fetched = client.fetch(`${site.url}/a?token=secret`, { admit: () => new Promise(() => undefined) });
    expect((await failure(fetched)).message).toMatch(/^timeout: [^ ]+\/a: not finished after 100 ms$/);
    expect(site.connections).toBe(0);
  });

  it('that comes when nobody waits for it any more is given back', async () => {
    await using site = await startSite();
    await using client = fetcher();
    const stop = new AbortController();
    let grant: (leave: () => Promise<void>) => void = () => undefined;
    const permit = new Promise<() => Promise<void>>((resolve) => {
      grant = resolve;
    });
    const fetched = client.fetch(site.url, { signal: stop.signal, admit: () => permit });
    stop.abort(new Error('the worker stops'));
    await expect(fetched).rejects.toThrow('the worker stops');
    const givenBack = new Promise<void>((resolve) => grant(async () => resolve()));
    await givenBack;
    expect(site.connections).toBe(0);
  });
});
