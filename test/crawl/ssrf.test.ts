/** Nothing of ours is reached through a URL from outside. "Not reached" is what the listener counted. */
import { describe, expect, it } from 'vitest';
import { AddressPolicy } from '../../src/crawl/address.js';
import { ArgumentError } from '../../src/errors.js';
import { startSite } from '../support/site.js';
import { SITE_TEST } from './certificate.js';
import { blocked, failure, fetcher, LOOPBACK, policyOf } from './support.js';

/** The default policy, but with the port of the test's listener open to all: only the address rule is between us. */
const openOn = (port: number) => fetcher({ policy: new AddressPolicy({ ports: [80, 443, port] }) });

describe('a URL of this machine', () => {
  it.each([
    '127.0.0.1',
    // Fewer numbers, other bases, in any mixture (WHATWG URL, IPv4 parser).
    '127.1',
    '127.0.1',
    '2130706433',
    '0x7f000001',
    '0x7F.0.0.1',
    '0x7f.0x0.0x0.0x1',
    '0177.0.0.1',
    '0177.0x0.1',
    '00000177.0.0.01',
    '017700000001',
    '127.0.0.1.',
    '0',
    '0x',
    '0.0.0.0',
    '127.255.0.1',
    // Escaped, full-width, circled, with other dots, with what is dropped from names.
    '%31%32%37.0.0.1',
    '127%2e0%2E0.1',
    '１２７.0.0.1',
    '①②⑦.⓪.⓪.①',
    '127。0。0。1',
    '127．0．0．1',
    '127｡0｡0｡1',
    '12\t7.0.\n0.1',
    '127.0.0.1\\@example.com',
    '127.0.0.1#@example.com',
    '127.0.0.1?@example.com',
    'LOCALHOST',
    'localhost.',
    'LocalHost',
    'ℒocalhost',
    'ｌｏｃａｌｈｏｓｔ',
    'local\u00adhost',
    'lo\u200bcalhost',
    'a.localhost',
    '%6c%6f%63alhost',
    // Userinfo that is there and empty is none.
    '@127.0.0.1',
    ':@127.0.0.1',
    // IPv6 in all its forms, and IPv4 inside of it.
    '[::1]',
    '[::0001]',
    '[0:0:0:0:0:0:0:1]',
    '[::0.0.0.1]',
    '[::]',
    '[::ffff:127.0.0.1]',
    '[::FFFF:7F00:0001]',
    '[0:0:0:0:0:ffff:127.0.0.1]',
    '[::ffff:0:127.0.0.1]',
    '[::127.0.0.1]',
    '[64:ff9b::127.0.0.1]',
    '[64:ff9b:1::127.0.0.1]',
    '[2002:7f00:1::]',
    '[2001::80ff:fffe]',
    '[fe80::1]',
    // Metadata.
    'metadata',
    'instance-data',
    'metadata.google.internal',
    'METADATA.google.internal.',
    'metadata.goog',
    '169.254.169.254',
    '2852039166',
    '0xa9fea9fe',
    '[::ffff:169.254.169.254]',
    '168.63.129.16',
    '100.100.100.200',
    '192.0.0.192',
    '[fd00:ec2::254]',
    '[fd20:ce::254]',
  ])('spelled %j is refused and nobody connects', async (host) => {
    await using v4 = await startSite();
    await using v6 = await startSite({ host: '::', port: 0 });
    for (const site of [v4, v6]) {
      await using client = openOn(site.port);
      const [before, ...behind] = host.split(/(?=[\\#?])/);
      const url = `${before}:${site.port}${behind.join('')}/`;
      await blocked(client.fetch(`http://${url}`));
      await blocked(client.fetch(`HTTPS:\\\\${url}`));
    }
    expect([v4.connections, v6.connections]).toEqual([0, 0]);
  });

  it.each([
    'user@127.0.0.1',
    'user:password@127.0.0.1',
    'example.com@127.0.0.1',
    'example.com%40@127.0.0.1',
    '%40@127.0.0.1',
    '127.0.0.1%00.example.com',
    '127.0.0.1 .example.com',
    '127.0.0.1..',
    '.127.0.0.1',
    '127.0.0.1.1',
    '0x7f.0.0.0.1',
    '256.0.0.1',
    '09.0.0.1',
    '4294967296',
    '[::1%25lo]',
    '[::1%lo]',
    '[fe80::1%25eth0]',
    '[::1',
    '::1',
    '[127.0.0.1]',
    '[::ffff:127.0.0.256]',
    '[v1.::1]',
    '',
    '.',
  ])('spelled %j is no URL for us', async (host) => {
    await using site = await startSite();
    await using client = openOn(site.port);
    await expect(client.fetch(`http://${host}:${site.port}/`)).rejects.toBeInstanceOf(ArgumentError);
    expect(site.connections).toBe(0);
  });

  // A label that is no punycode of anything is a name like any other to some versions of Node, and no URL to others.
  it.each(['xn--localhost-', 'xn--127-.0.0.1', 'xn--127001-', 'xn--fiq228c.localhost'])(
    'spelled %j, odd punycode, leads nowhere',
    async (host) => {
      await using site = await startSite();
      await using client = openOn(site.port);
      const error = await client.fetch(`http://${host}:${site.port}/`).catch((reason) => reason);
      if (!(error instanceof ArgumentError)) expect(error).toMatchObject({ reason: 'blocked-address' });
      expect(site.connections).toBe(0);
    },
  );

  it.each(['ftp', 'file', 'ws', 'wss', 'gopher', 'data', 'blob', 'javascript', 'view-source:http', 'http+unix', 'git'])(
    'of the scheme %s is no URL for us, and no place to be sent to',
    async (scheme) => {
      await using site = await startSite();
      await using client = fetcher();
      const url = `${scheme}://127.0.0.1:${site.port}/a`;
      await expect(client.fetch(url)).rejects.toBeInstanceOf(ArgumentError);
      expect(site.connections).toBe(0);
      expect(await failure(client.fetch(site.redirect('/start', url)))).toMatchObject({
        kind: 'rejected',
        message: expect.stringMatching(/^gone: redirect from .* must be /),
      });
      expect(site.countOf('/a')).toBe(0);
    },
  );

  it('is refused by its port alone', async () => {
    await using site = await startSite();
    const lookup = async () => [{ address: '93.184.216.34', family: 4 }];
    await using client = fetcher({ policy: new AddressPolicy(), lookup });
    expect(await blocked(client.fetch(`http://site.test:${site.port}/`))).toMatch(/port \d+ is not open/);
    expect(await blocked(client.fetch(`https://site.test:${site.port}/`))).toMatch(/port \d+ is not open/);
    expect(site.connections).toBe(0);
  });
});

describe('a redirect', () => {
  it('takes no cookie, referrer or credential along', async () => {
    await using site = await startSite();
    await using client = fetcher();
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
  const lookup = async () => [LOOPBACK];
  const policy = policyOf('127.0.0.1:*');

  it('checks the certificate against the name while it connects to the pinned address', async () => {
    const names: string[] = [];
    await using site = await startSite({ tls: SITE_TEST, onServerName: (name) => names.push(name) });
    await using client = fetcher({ lookup, policy, ca: SITE_TEST.cert });
    site.put('/a', { body: 'x' });
    expect((await client.fetch(`https://site.test:${site.port}/a`)).bytes.toString()).toBe('x');
    expect(names).toEqual(['site.test']);
  });

  it.each([
    ['of another name', 'other.test', SITE_TEST.cert],
    ['of an address', '127.0.0.1', SITE_TEST.cert],
    ['that nobody vouches for', 'site.test', undefined],
  ])('refuses a certificate %s', async (_what, host, ca) => {
    await using site = await startSite({ tls: SITE_TEST });
    await using client = fetcher({ lookup, policy, ...(ca === undefined ? {} : { ca }) });
    await expect(client.fetch(`https://${host}:${site.port}/a`)).rejects.toMatchObject({ reason: 'connection' });
    expect(site.requests).toEqual([]);
  });

  it('may redirect to http', async () => {
    await using plain = await startSite();
    await using site = await startSite({ tls: SITE_TEST });
    await using client = fetcher({ lookup, policy, ca: SITE_TEST.cert });
    const end = plain.put('/b', { body: 'x' });
    site.redirect('/a', end);
    expect((await client.fetch(`https://site.test:${site.port}/a`)).finalUrl).toBe(end);
  });
});
