/** Nothing of ours is reached through a URL from outside. "Not reached" is what the listener counted. */
import type { LookupAddress } from 'node:dns';
import { describe, expect, it } from 'vitest';
import { parseRules } from '../../src/address-rules.js';
import { AddressPolicy } from '../../src/crawl/address.js';
import type { Lookup } from '../../src/crawl/connect.js';
import { Fetcher, type FetchOptions } from '../../src/crawl/fetch.js';
import { ArgumentError, RejectedError } from '../../src/errors.js';
import { type Site, startSite } from '../support/site.js';
import { SITE_TEST } from './certificate.js';

/** The default policy, but with the port of the test's listener open to all: only the address rule is between us. */
function fetcher(site: Site, options: Partial<FetchOptions> = {}): Fetcher {
  const policy = new AddressPolicy({ ports: [80, 443, site.port] });
  return new Fetcher({ maxBytes: 1_000, timeoutMs: 20_000, userAgent: 'bot/1', policy, ...options });
}

const loopback: LookupAddress = { address: '127.0.0.1', family: 4 };
const outside: LookupAddress = { address: '93.184.216.34', family: 4 };

async function expectBlocked(fetched: Promise<unknown>, detail = /./): Promise<void> {
  const error = await fetched.catch((reason) => reason);
  expect(error).toBeInstanceOf(RejectedError);
  expect(error).toMatchObject({ reason: 'blocked-address', detail: expect.stringMatching(detail) });
}

describe('a URL of this machine', () => {
  it.each([
    '127.0.0.1',
    '127.1',
    '127.0.1',
    '2130706433',
    '0x7f000001',
    '0x7F.0.0.1',
    '0177.0.0.1',
    '017700000001',
    '127.0.0.1.',
    '%31%32%37.0.0.1',
    '１２７.0.0.1',
    '①②⑦.⓪.⓪.①',
    '127。0。0。1',
    '0',
    '0.0.0.0',
    '127.255.0.1',
    'LOCALHOST',
    'localhost.',
    'ℒocalhost',
    'a.localhost',
    '[::1]',
    '[0:0:0:0:0:0:0:1]',
    '[::]',
    '[::ffff:127.0.0.1]',
    '[::ffff:7f00:1]',
    '[::127.0.0.1]',
    '[64:ff9b::127.0.0.1]',
    '[2002:7f00:1::]',
    'metadata.google.internal',
    '169.254.169.254',
    '[fd00:ec2::254]',
  ])('spelled %s is refused and nobody connects', async (host) => {
    await using v4 = await startSite();
    await using v6 = await startSite({ host: '::', port: 0 });
    for (const site of [v4, v6]) {
      await using client = fetcher(site);
      await expectBlocked(client.fetch(`http://${host}:${site.port}/`));
      await expectBlocked(client.fetch(`https://${host}:${site.port}/`));
    }
    expect([v4.connections, v6.connections]).toEqual([0, 0]);
  });

  it.each(['[::1%25lo]', '[fe80::1%lo]', 'user@127.0.0.1', 'example.com@127.0.0.1', '127.0.0.1.1', '0x7f.0.0.0.1'])(
    'spelled %s is no URL for us',
    async (host) => {
      await using site = await startSite();
      await using client = fetcher(site);
      await expect(client.fetch(`http://${host}:${site.port}/`)).rejects.toBeInstanceOf(ArgumentError);
      expect(site.connections).toBe(0);
    },
  );

  it('is refused by its port alone', async () => {
    await using site = await startSite();
    await using client = fetcher(site, { policy: new AddressPolicy(), lookup: async () => [outside] });
    await expectBlocked(client.fetch(`http://site.test:${site.port}/`), /port \d+ is not open/);
  });
});

describe('a name', () => {
  it.each([
    ['loopback', [loopback]],
    ['a public address and loopback', [outside, loopback]],
    ['loopback and a public address', [loopback, outside]],
    ['mapped loopback', [{ address: '::ffff:127.0.0.1', family: 6 }]],
    ['what is no address', [{ address: 'localhost', family: 4 }]],
  ])('that resolves to %s is refused and nobody connects', async (_what, addresses) => {
    await using site = await startSite();
    await using client = fetcher(site, { lookup: async () => addresses });
    await expectBlocked(
      client.fetch(`http://evil.test:${site.port}/?token=secret`),
      /^evil\.test: the address is not \w+$/,
    );
    expect(site.connections).toBe(0);
  });

  it('of this machine is refused by the real resolver', async () => {
    await using site = await startSite();
    await using client = fetcher(site, {
      policy: new AddressPolicy({ allow: parseRules('10.0.0.0/8:*'), ports: [site.port] }),
    });
    await expectBlocked(client.fetch(`http://localhost:${site.port}/`), /not public/);
    expect(site.connections).toBe(0);
  });

  it('that is refused anyway is not even looked up', async () => {
    await using site = await startSite();
    let asked = 0;
    const lookup: Lookup = async () => {
      asked += 1;
      return [outside];
    };
    await using client = fetcher(site, { lookup });
    await expectBlocked(client.fetch('http://metadata.google.internal/'));
    await expectBlocked(client.fetch('http://site.test:6379/'));
    expect(asked).toBe(0);
  });

  it('that rebinds is asked once and its first answer is what is connected to', async () => {
    await using allowed = await startSite();
    await using forbidden = await startSite({ host: '127.0.0.2', port: allowed.port });
    allowed.put('/a', { body: 'x' });
    const answers = ['127.0.0.1', '127.0.0.2', '127.0.0.2'];
    let asked = 0;
    const lookup: Lookup = async () => [{ address: answers[asked++] ?? '127.0.0.2', family: 4 }];
    await using client = fetcher(allowed, {
      lookup,
      policy: new AddressPolicy({ allow: parseRules('127.0.0.1/32:*') }),
    });
    expect((await client.fetch(`http://rebind.test:${allowed.port}/a`)).status).toBe(200);
    expect(asked).toBe(1);
    expect([allowed.connections, forbidden.connections]).toEqual([1, 0]);
  });

  it('that rebinds before the next connection is refused then', async () => {
    await using site = await startSite();
    site.put('/a', { body: 'x' });
    const answers = ['127.0.0.1', '127.0.0.2'];
    const lookup: Lookup = async () => [{ address: answers.shift() ?? '127.0.0.2', family: 4 }];
    const policy = new AddressPolicy({ allow: parseRules('127.0.0.1/32:*') });
    await using first = fetcher(site, { lookup, policy });
    await first.fetch(`http://rebind.test:${site.port}/a`);
    await using second = fetcher(site, { lookup, policy });
    await expectBlocked(second.fetch(`http://rebind.test:${site.port}/a`));
    expect(site.connections).toBe(1);
  });
});

describe('a redirect', () => {
  it.each(['http://127.0.0.2', 'http://[::1]', 'http://0x7f.2', 'http://evil.test', '//127.0.0.2'])(
    'to %s is refused and nobody connects',
    async (to) => {
      await using open = await startSite();
      await using secret = await startSite({ host: '127.0.0.2', port: open.port });
      await using client = fetcher(open, {
        policy: new AddressPolicy({ allow: parseRules('127.0.0.1/32:*') }),
        lookup: async () => [{ address: '127.0.0.2', family: 4 }],
      });
      await expectBlocked(client.fetch(open.redirect('/a', `${to}:${open.port}/secret`)));
      expect([open.connections, secret.connections]).toEqual([1, 0]);
    },
  );

  it('takes no cookie, referrer or credential along', async () => {
    await using site = await startSite();
    await using client = fetcher(site, { policy: new AddressPolicy({ allow: parseRules('127.0.0.1:*') }) });
    const end = site.put('/b', { body: 'x' });
    const start = site.put('/a', {
      status: 302,
      headers: { location: end, 'set-cookie': 'a=1', 'www-authenticate': 'Basic' },
    });
    await client.fetch(start);
    const names = Object.keys(site.requests.at(-1)?.headers ?? {}).sort();
    expect(names).toEqual(['accept', 'accept-encoding', 'connection', 'host', 'user-agent']);
  });
});

describe('https', () => {
  const lookup: Lookup = async () => [loopback];
  const policy = new AddressPolicy({ allow: parseRules('127.0.0.1:*') });

  it('checks the certificate against the name while it connects to the pinned address', async () => {
    const names: string[] = [];
    await using site = await startSite({ tls: SITE_TEST, onServerName: (name) => names.push(name) });
    await using client = fetcher(site, { lookup, policy, ca: SITE_TEST.cert });
    site.put('/a', { body: 'x' });
    expect((await client.fetch(`https://site.test:${site.port}/a`)).status).toBe(200);
    expect(names).toEqual(['site.test']);
  });

  it.each([
    ['of another name', 'other.test', SITE_TEST.cert],
    ['of an address', '127.0.0.1', SITE_TEST.cert],
    ['that nobody vouches for', 'site.test', undefined],
  ])('refuses a certificate %s', async (_what, host, ca) => {
    await using site = await startSite({ tls: SITE_TEST });
    await using client = fetcher(site, { lookup, policy, ...(ca === undefined ? {} : { ca }) });
    await expect(client.fetch(`https://${host}:${site.port}/a`)).rejects.toMatchObject({ reason: 'connection' });
    expect(site.requests).toEqual([]);
  });

  it('may redirect to http', async () => {
    await using plain = await startSite();
    await using site = await startSite({ tls: SITE_TEST });
    await using client = fetcher(site, { lookup, policy, ca: SITE_TEST.cert });
    const end = plain.put('/b', { body: 'x' });
    site.redirect('/a', end);
    expect((await client.fetch(`https://site.test:${site.port}/a`)).finalUrl).toBe(end);
  });
});
