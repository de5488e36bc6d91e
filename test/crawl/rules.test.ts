/** FETCH_ALLOW and FETCH_DENY in every form, by what the listeners saw. `P` stands for the sites' port, `Q` for another. */
import { describe, expect, it } from 'vitest';
import { type NameServer, startNameServer } from '../support/dns.js';
import { type Site, startSite } from '../support/site.js';
import { blocked, fetcher, policyOf } from './support.js';

type Place = 'one' | 'two' | 'six' | 'other';

/** 127.0.0.1, 127.0.0.2 and ::1 on one port, 127.0.0.1 on another, and names for them. */
async function world() {
  const one = await startSite();
  const sites: Record<Place, Site> = {
    one,
    two: await startSite({ host: '127.0.0.2', port: one.port }),
    six: await startSite({ host: '::1', port: one.port }),
    other: await startSite(),
  };
  const names = await startNameServer();
  names.answer('site.test', ['127.0.0.1']);
  names.answer('www.site.test', ['127.0.0.1']);
  names.answer('xn--bcher-kva.test', ['127.0.0.1']);
  names.answer('two.test', ['127.0.0.2']);
  names.answer('six.test', ['::1']);
  names.answer('both.test', ['127.0.0.1', '::1']);
  for (const site of Object.values(sites)) site.put('/', { body: 'x' });
  const withPorts = (text: string) =>
    text.replace(/\bP\b/g, String(one.port)).replace(/\bQ\b/g, String(sites.other.port));
  return {
    names,
    /** Which listeners a fetch of `url` connected to; the port of the web is P where `web` says so. */
    reached: async (rules: { allow?: string; deny?: string; web?: boolean }, url: string) => {
      const { allow = '', deny = '', web = false } = rules;
      const policy = policyOf(withPorts(allow), withPorts(deny), web ? [one.port] : undefined);
      await using client = fetcher({ lookup: names.lookup, policy });
      const before = connections();
      const fetched = client.fetch(withPorts(url));
      const end = await fetched.then(() => 'fetched').catch(() => blocked(fetched));
      const seen = connections().filter(([, count], n) => count !== before[n]?.[1]);
      return seen.length > 0 ? [end, ...seen.map(([place]) => place)] : [];
    },
    [Symbol.asyncDispose]: async () => {
      for (const it of [...Object.values(sites), names] satisfies (Site | NameServer)[]) await it.close();
    },
  };

  function connections(): [string, number][] {
    return Object.entries(sites).map(([place, site]) => [place, site.connections]);
  }
}

const URLS: Record<Place, string> = {
  one: 'http://127.0.0.1:P/',
  two: 'http://127.0.0.2:P/',
  six: 'http://[::1]:P/',
  other: 'http://127.0.0.1:Q/',
};

const ALL: Place[] = ['one', 'two', 'six', 'other'];

/** What is reached of all four places by their addresses. */
async function reachable(rules: { allow?: string; deny?: string; web?: boolean }): Promise<Place[]> {
  await using w = await world();
  const open: Place[] = [];
  for (const place of ALL) {
    const seen = await w.reached(rules, URLS[place]);
    expect(seen).toEqual(seen.length === 0 ? [] : ['fetched', place]);
    if (seen.length > 0) open.push(place);
  }
  return open;
}

describe('FETCH_ALLOW', () => {
  it.each<[string, Place[]]>([
    ['', []],
    ['127.0.0.1', ['one']],
    ['127.0.0.1/32', ['one']],
    ['127.0.0.0/31', ['one']],
    ['127.0.0.0/8', ['one', 'two']],
    ['::1', ['six']],
    ['[::1]', ['six']],
    ['::/127', ['six']],
    ['[::1/128]', ['six']],
    ['[::1]/128', ['six']],
    ['::ffff:127.0.0.1', ['one']],
    [' 127.0.0.2 , [::1] ,', ['two', 'six']],
    ['10.0.0.0/8, fd00::/8', []],
  ])('of %j opens %j, on the ports of the web', async (allow, open) => {
    expect(await reachable({ allow, web: true })).toEqual(open);
    expect(await reachable({ allow })).toEqual([]);
  });

  it.each<[string, Place[]]>([
    ['127.0.0.1:P', ['one']],
    ['127.0.0.1/32:Q', ['other']],
    ['127.0.0.1:*', ['one', 'other']],
    ['127.0.0.0/8:P', ['one', 'two']],
    ['127.0.0.0/8:*', ['one', 'two', 'other']],
    ['[::1]:P', ['six']],
    ['[::1]:Q', []],
    ['::1/128:P', ['six']],
    ['[::1/128]:*', ['six']],
    ['[::1]/128:*', ['six']],
    ['::/0:*', ['six']],
    ['0.0.0.0/0:*', ['one', 'two', 'other']],
    ['[::ffff:127.0.0.1]:*', ['one', 'other']],
    ['::ffff:127.0.0.0/104:P', ['one', 'two']],
    ['127.0.0.1:P,[::1]:P', ['one', 'six']],
  ])('of %j opens %j', async (allow, open) => {
    expect(await reachable({ allow })).toEqual(open);
  });

  it.each<[string, string, Place[]]>([
    ['site.test:P', 'http://site.test:P/', ['one']],
    ['site.test:P', 'http://SITE.test.:P/', ['one']],
    ['SITE.Test.:P', 'http://site.test:P/', ['one']],
    ['site.test:*', 'http://site.test:Q/', ['other']],
    ['site.test:P', 'http://site.test:Q/', []],
    ['site.test', 'http://site.test:P/', []],
    ['site.test:P', 'http://www.site.test:P/', []],
    ['site.test:P', 'http://127.0.0.1:P/', []],
    ['bücher.test:P', 'http://xn--bcher-kva.test:P/', ['one']],
    ['xn--bcher-kva.test:P', 'http://BÜCHER.test:P/', ['one']],
    ['six.test:P', 'http://six.test:P/', ['six']],
    // The network of one family does not speak for the other.
    ['127.0.0.1:P', 'http://both.test:P/', []],
    ['127.0.0.0/8:*', 'http://two.test:P/', ['two']],
    ['127.0.0.0/8:*', 'http://six.test:P/', []],
  ])('of %j makes of %s %j', async (allow, url, open) => {
    await using w = await world();
    expect(await w.reached({ allow }, url)).toEqual(open.length === 0 ? [] : ['fetched', ...open]);
  });

  it('of a name opens all of its addresses, and of both networks too', async () => {
    await using w = await world();
    for (const allow of ['both.test:*', '127.0.0.1:*, [::1]:*']) {
      const [status, place] = await w.reached({ allow }, 'http://both.test:P/');
      expect(status).toBe('fetched');
      expect(['one', 'six']).toContain(place);
    }
  });

  it('of a web port opens it for the web alone', async () => {
    await using w = await world();
    expect(await w.reached({ allow: 'site.test', web: true }, 'http://site.test:P/')).toEqual(['fetched', 'one']);
    expect(await w.reached({ allow: 'site.test', web: true }, 'http://site.test:Q/')).toEqual([]);
  });
});

describe('FETCH_DENY', () => {
  const allow = '127.0.0.0/8:*, [::1]:*, site.test:*, both.test:*';

  it.each<[string, Place[]]>([
    ['', ALL],
    ['127.0.0.2', ['one', 'six', 'other']],
    ['127.0.0.1', ['two', 'six']],
    ['127.0.0.1:*', ['two', 'six']],
    ['127.0.0.1:P', ['two', 'six', 'other']],
    ['127.0.0.0/31', ['two', 'six']],
    ['127.0.0.0/8', ['six']],
    ['127.0.0.0/8:Q', ['one', 'two', 'six']],
    ['::1', ['one', 'two', 'other']],
    ['[::1]:P', ['one', 'two', 'other']],
    ['[::1]:Q', ALL],
    ['[::/64]:*', ['one', 'two', 'other']],
    ['::/0', ['one', 'two', 'other']],
    ['0.0.0.0/0,::/0', []],
    ['::ffff:127.0.0.1', ['two', 'six']],
    ['::ffff:127.0.0.0/104', ['six']],
  ])('of %j leaves %j', async (deny, open) => {
    expect(await reachable({ allow, deny })).toEqual(open);
  });

  it.each<[string, string, Place[]]>([
    ['site.test', 'http://site.test:P/', []],
    ['site.test', 'http://Site.TEST.:Q/', []],
    ['site.test:Q', 'http://site.test:P/', ['one']],
    ['site.test:Q', 'http://site.test:Q/', []],
    // A name is that name alone: its address and those below it have to be denied for themselves.
    ['site.test', 'http://www.site.test:P/', ['one']],
    ['site.test', 'http://127.0.0.1:P/', ['one']],
    ['BÜCHER.test.', 'http://xn--bcher-kva.test:P/', []],
    // One address of a name is enough.
    ['::1', 'http://both.test:P/', []],
    ['127.0.0.1:P', 'http://both.test:P/', []],
  ])('of %j makes of %s %j', async (deny, url, open) => {
    await using w = await world();
    expect(await w.reached({ allow, deny }, url)).toEqual(open.length === 0 ? [] : ['fetched', ...open]);
  });

  it('of a name is decided before it is looked up', async () => {
    await using w = await world();
    expect(await w.reached({ allow, deny: 'site.test' }, 'http://site.test:P/')).toEqual([]);
    expect(w.names.questions).toEqual([]);
  });
});
