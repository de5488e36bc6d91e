/** What a name resolves to, by a name server whose answers change: nothing is reached but an address that was checked. */
import type { LookupAddress } from 'node:dns';
import { isIP } from 'node:net';
import { describe, expect, it } from 'vitest';
import { createLookup } from '../../src/crawl/names.js';
import { type NameServer, startNameServer } from '../support/dns.js';
import { type Site, startSite } from '../support/site.js';
import { blocked, failure, fetcher, policyOf } from './support.js';

/** A site that may be fetched from, one on the same port that may not, in both families, and a name server. */
async function world() {
  const open = await startSite();
  const secret = await startSite({ host: '127.0.0.2', port: open.port });
  const secret6 = await startSite({ host: '::1', port: open.port });
  const names = await startNameServer();
  for (const site of [open, secret, secret6]) site.put('/a', { body: 'x' });
  return {
    open,
    names,
    at: (host: string, path = '/a') => `http://${host}:${open.port}${path}`,
    client: (options = {}) => fetcher({ lookup: names.lookup, policy: policyOf('127.0.0.1/32:*'), ...options }),
    connections: () => [open, secret, secret6].map((site) => site.connections),
    [Symbol.asyncDispose]: async () => {
      for (const one of [open, secret, secret6, names] satisfies (Site | NameServer)[]) await one.close();
    },
  };
}

const OPEN = '127.0.0.1';
const SECRET = '127.0.0.2';

describe('every address of a name is checked', () => {
  it.each([
    ['a forbidden one', [SECRET]],
    ['a forbidden one behind an allowed one', [OPEN, SECRET]],
    ['a forbidden one before an allowed one', [SECRET, OPEN]],
    ['a forbidden one of the other family', [OPEN, '::1']],
    ['a forbidden one of the other family alone', ['::1']],
    ['an allowed one in its mapped form', ['::ffff:127.0.0.1']],
    ['an allowed one and its mapped form', [OPEN, '::ffff:127.0.0.1']],
    ['a forbidden one behind twenty allowed ones', [...Array(20).fill(OPEN), SECRET]],
    ['any address of this machine', ['0.0.0.0']],
    ['any address of this machine, IPv6', ['::']],
  ])('%s', async (_what, addresses) => {
    await using w = await world();
    w.names.answer('evil.test', addresses);
    await using client = w.client();
    expect(await blocked(client.fetch(`${w.at('evil.test')}?token=secret`))).toBe(
      'blocked-address: evil.test: the address is not public; FETCH_ALLOW may name it',
    );
    expect(w.connections()).toEqual([0, 0, 0]);
  });

  it('what a resolver may give that is no address is one that nobody connects to', async () => {
    await using w = await world();
    for (const address of ['localhost', '127.1', '::1%lo', '0x7f.1', '']) {
      const answer: LookupAddress[] = [{ address, family: 4 }];
      await using client = w.client({ lookup: async () => answer });
      expect(await blocked(client.fetch(w.at('evil.test')))).toMatch(/evil\.test: the address is not usable$/);
    }
    expect(w.connections()).toEqual([0, 0, 0]);
  });

  it('the system knows the names of this machine, and is asked where nobody gives another resolver', async () => {
    await using w = await world();
    await using client = fetcher({ policy: policyOf('10.0.0.0/8:*', '', [w.open.port]) });
    expect(await blocked(client.fetch(w.at('localhost')))).toMatch(
      /localhost: the (name|address) is not public; FETCH_ALLOW may name it$/,
    );
    expect(w.connections()).toEqual([0, 0, 0]);
    await using allowed = fetcher({ policy: policyOf('localhost:*') });
    expect((await allowed.fetch(w.at('localhost'))).bytes.toString()).toBe('x');
  });

  it('a name that is refused anyway is not even asked for', async () => {
    await using w = await world();
    await using client = w.client({ policy: policyOf('site.test:8080') });
    for (const url of [
      'http://metadata.google.internal/',
      'http://site.test:6379/',
      'http://redis/',
      'http://a.onion/',
    ])
      await blocked(client.fetch(url));
    expect(w.names.questions).toEqual([]);
  });
});

describe('a name that rebinds', () => {
  it('is asked once for each family, and the first answer is what is connected to', async () => {
    await using w = await world();
    w.names.answer('rebind.test', [OPEN], [SECRET, '::1']);
    await using client = w.client();
    expect((await client.fetch(w.at('rebind.test'))).bytes.toString()).toBe('x');
    expect(w.names.questions).toEqual([
      { name: 'rebind.test', type: 'A' },
      { name: 'rebind.test', type: 'AAAA' },
    ]);
    expect(w.connections()).toEqual([1, 0, 0]);
  });

  it.each([[[SECRET]], [['::1']], [[OPEN, SECRET]]])('to %j is refused with the next connection', async (then) => {
    await using w = await world();
    w.open.put('/a', { body: 'x', headers: { connection: 'close' } });
    w.names.answer('rebind.test', [OPEN], then);
    await using client = w.client();
    await client.fetch(w.at('rebind.test'));
    await w.open.until((site) => site.openConnections === 0);
    await blocked(client.fetch(w.at('rebind.test')));
    expect(w.connections()).toEqual([1, 0, 0]);
  });

  it('between two hops of a redirect is refused at the second', async () => {
    await using w = await world();
    w.open.put('/start', { status: 302, headers: { location: '/a', connection: 'close' } });
    w.names.answer('rebind.test', [OPEN], [SECRET]);
    await using client = w.client();
    await blocked(client.fetch(w.at('rebind.test', '/start')));
    expect(w.connections()).toEqual([1, 0, 0]);
    expect(w.open.countOf('/a')).toBe(0);
  });

  it('between connections that are opened at once is refused with each of them', async () => {
    await using w = await world();
    const held = w.open.hold('/held', { body: 'x' });
    w.names.answer('rebind.test', [OPEN], [SECRET], [OPEN], [SECRET, '::1'], [OPEN], ['::1'], [SECRET]);
    await using client = w.client({ connectionsPerOrigin: 8 });
    const fetched = Array.from({ length: 8 }, () => client.fetch(w.at('rebind.test', '/held')));
    for (const one of fetched) one.catch(() => undefined);
    await w.open.until((site) => site.inFlight('rebind.test').now === 3);
    held.release();
    const ends = await Promise.allSettled(fetched);
    const refused = ends.filter((end) => end.status === 'rejected').map((end) => end.reason.reason);
    expect(refused).toEqual(Array(5).fill('blocked-address'));
    expect(w.connections()).toEqual([3, 0, 0]);
  });
});

describe('a redirect', () => {
  it.each([
    ['a name of a forbidden address', 'http://evil.test'],
    ['a name with one forbidden address', 'http://mixed.test'],
    ['a forbidden address', 'http://127.0.0.2'],
    ['a forbidden address of the other family', 'http://[::1]'],
    ['an odd spelling of a forbidden address', 'http://0x7f.2'],
    ['a forbidden address without a scheme', '//127.0.0.2'],
  ])('to %s is refused, at the first hop or the last', async (_what, to) => {
    await using w = await world();
    w.names.answer('good.test', [OPEN]);
    w.names.answer('evil.test', [SECRET]);
    w.names.answer('mixed.test', [OPEN, '::1']);
    await using client = w.client();
    w.open.chain('/one', 1, `${to}:${w.open.port}/a`);
    w.open.chain('/five', 5, `${to}:${w.open.port}/a`);
    await blocked(client.fetch(w.at('good.test', '/one')));
    await blocked(client.fetch(w.at('good.test', '/five')));
    expect(w.connections().slice(1)).toEqual([0, 0]);
    expect(w.open.requests.map(({ path }) => path)).toEqual([
      '/one',
      '/five',
      ...[1, 2, 3, 4].map((n) => `/five-${n}`),
    ]);
  });

  it('over several names is followed, each of them looked up', async () => {
    await using w = await world();
    for (const name of ['a.test', 'b.test', 'c.test']) w.names.answer(name, [OPEN]);
    w.open.named('a.test').redirect('/', w.at('b.test', '/'));
    w.open.named('b.test').redirect('/', w.at('c.test', '/'));
    const end = w.open.named('c.test').put('/', { body: 'c' });
    await using client = w.client();
    expect((await client.fetch(w.at('a.test', '/'))).finalUrl).toBe(end);
    expect(w.open.requests.map(({ host }) => host)).toEqual(['a.test', 'b.test', 'c.test']);
    expect(['a.test', 'b.test', 'c.test'].map((name) => w.names.countOf(name))).toEqual([1, 1, 1]);
  });
});

describe('a name server that keeps silent', () => {
  /** Asks the world's name server as the product asks those of the system. */
  const asking = (names: NameServer, timeoutMs: number) =>
    createLookup({ isLocal: (host) => host === 'localhost', timeoutMs, servers: [names.address] });

  it('about many names holds up no other name, nor one of this machine', async () => {
    await using w = await world();
    const silent = Array.from({ length: 20 }, (_, n) => `silent-${n}.test`);
    for (const name of silent) w.names.fail(name, 'silence');
    w.names.answer('site.test', [OPEN]);
    await using client = w.client({ lookup: asking(w.names, 60_000) });
    const fetched = silent.map((name) => failure(client.fetch(w.at(name))));
    let ended = 0;
    for (const one of fetched) one.then(() => ended++);
    for (const name of ['site.test', 'localhost']) expect((await client.fetch(w.at(name))).bytes.toString()).toBe('x');
    expect(ended).toBe(0);
    await client.close();
    await Promise.all(fetched);
  });

  it('is a name that does not resolve, and no host that does not answer', async () => {
    await using w = await world();
    w.names.fail('site.test', 'silence');
    await using client = w.client({ lookup: asking(w.names, 50) });
    expect(await failure(client.fetch(w.at('site.test')))).toMatchObject({
      kind: 'retryable',
      message: 'dns: site.test: ETIMEOUT',
    });
    expect(w.connections()).toEqual([0, 0, 0]);
  });

  it.each([
    ['A', '::1'],
    ['AAAA', OPEN],
  ] as const)('about the %s of a name leaves it what the other family has', async (type, address) => {
    await using w = await world();
    w.names.answer('site.test', [OPEN, '::1']);
    w.names.silence('site.test', type);
    expect(await asking(w.names, 2_000)('site.test')).toEqual([{ address, family: isIP(address) }]);
  });

  it('is asked once by all who want a name at once, and anew by the next', async () => {
    await using w = await world();
    w.names.answer('site.test', [OPEN], [SECRET]);
    const lookup = asking(w.names, 20_000);
    const addresses = async () => (await lookup('site.test')).map(({ address }) => address);
    expect(await Promise.all([addresses(), addresses(), addresses()])).toEqual([[OPEN], [OPEN], [OPEN]]);
    expect(w.names.countOf('site.test')).toBe(1);
    expect(await addresses()).toEqual([SECRET]);
  });
});

describe('a name that does not resolve', () => {
  it.each([
    ['servfail', 'ESERVFAIL'],
    ['nxdomain', 'ENOTFOUND'],
    ['refused', 'EREFUSED'],
  ] as const)('(%s) may do so later', async (how, code) => {
    await using w = await world();
    w.names.fail('site.test', how);
    await using client = w.client();
    expect(await failure(client.fetch(`${w.at('site.test')}?token=secret`))).toMatchObject({
      kind: 'retryable',
      reason: 'dns',
      message: `dns: site.test: ${code}`,
    });
  });

  it('because it has no address may do so later', async () => {
    await using w = await world();
    w.names.answer('site.test', []);
    await using client = w.client();
    expect((await failure(client.fetch(w.at('site.test')))).message).toBe('dns: site.test: ENODATA');
    await using other = w.client({ lookup: async () => [] });
    expect((await failure(other.fetch(w.at('site.test')))).message).toBe('dns: site.test: no address');
  });

  it('does, once it resolves', async () => {
    await using w = await world();
    w.names.answer('site.test', [], [OPEN]);
    await using client = w.client();
    await failure(client.fetch(w.at('site.test')));
    expect((await client.fetch(w.at('site.test'))).bytes.toString()).toBe('x');
  });
});
