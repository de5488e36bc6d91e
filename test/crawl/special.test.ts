/**
 * Both IANA special-purpose registries, row by row, as they stood in 2025 (those that IANA calls globally reachable too: none
 * of them is a web site), multicast, and the addresses that clouds answer metadata on. Each row is tried on the policy and,
 * as an answer of DNS, on a Fetcher.
 */
import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import { describe, expect, it } from 'vitest';
import { AddressPolicy } from '../../src/crawl/address.js';
import { startNameServer } from '../support/dns.js';
import { startSite } from '../support/site.js';
import { blocked, fetcher, permits, policyOf } from './support.js';

const PUBLIC = '93.184.216.34';
const closed = new AddressPolicy();
const permitted = (address: string) => permits(closed, 'example.com', 80, address);

type Row = [what: string, range: string, first: string, last: string, before: string | null, after: string | null];

/** The neighbours are the public addresses just outside; `null` where the next address is special as well. */
const ROWS: Row[] = [
  ['this network, RFC 791', '0.0.0.0/8', '0.0.0.0', '0.255.255.255', null, '1.0.0.0'],
  ['this host, RFC 1122', '0.0.0.0/32', '0.0.0.0', '0.0.0.0', null, null],
  ['private, RFC 1918', '10.0.0.0/8', '10.0.0.0', '10.255.255.255', '9.255.255.255', '11.0.0.0'],
  ['shared, RFC 6598', '100.64.0.0/10', '100.64.0.0', '100.127.255.255', '100.63.255.255', '100.128.0.0'],
  ['loopback, RFC 1122', '127.0.0.0/8', '127.0.0.0', '127.255.255.255', '126.255.255.255', '128.0.0.0'],
  ['link-local, RFC 3927', '169.254.0.0/16', '169.254.0.0', '169.254.255.255', '169.253.255.255', '169.255.0.0'],
  ['private, RFC 1918', '172.16.0.0/12', '172.16.0.0', '172.31.255.255', '172.15.255.255', '172.32.0.0'],
  ['IETF protocols, RFC 6890', '192.0.0.0/24', '192.0.0.0', '192.0.0.255', '191.255.255.255', '192.0.1.0'],
  ['continuity, RFC 7335', '192.0.0.0/29', '192.0.0.0', '192.0.0.7', '191.255.255.255', null],
  ['dummy, RFC 7600', '192.0.0.8/32', '192.0.0.8', '192.0.0.8', null, null],
  ['PCP anycast, RFC 7723', '192.0.0.9/32', '192.0.0.9', '192.0.0.9', null, null],
  ['TURN anycast, RFC 8155', '192.0.0.10/32', '192.0.0.10', '192.0.0.10', null, null],
  ['NAT64 discovery, RFC 8880', '192.0.0.170/31', '192.0.0.170', '192.0.0.171', null, null],
  ['documentation, RFC 5737', '192.0.2.0/24', '192.0.2.0', '192.0.2.255', '192.0.1.255', '192.0.3.0'],
  ['AS112, RFC 7535', '192.31.196.0/24', '192.31.196.0', '192.31.196.255', '192.31.195.255', '192.31.197.0'],
  ['AMT, RFC 7450', '192.52.193.0/24', '192.52.193.0', '192.52.193.255', '192.52.192.255', '192.52.194.0'],
  ['6to4 relays, RFC 7526', '192.88.99.0/24', '192.88.99.0', '192.88.99.255', '192.88.98.255', '192.88.100.0'],
  ['6a44 relays, RFC 6751', '192.88.99.2/32', '192.88.99.2', '192.88.99.2', null, null],
  ['private, RFC 1918', '192.168.0.0/16', '192.168.0.0', '192.168.255.255', '192.167.255.255', '192.169.0.0'],
  ['AS112, RFC 7534', '192.175.48.0/24', '192.175.48.0', '192.175.48.255', '192.175.47.255', '192.175.49.0'],
  ['benchmarking, RFC 2544', '198.18.0.0/15', '198.18.0.0', '198.19.255.255', '198.17.255.255', '198.20.0.0'],
  ['documentation, RFC 5737', '198.51.100.0/24', '198.51.100.0', '198.51.100.255', '198.51.99.255', '198.51.101.0'],
  ['documentation, RFC 5737', '203.0.113.0/24', '203.0.113.0', '203.0.113.255', '203.0.112.255', '203.0.114.0'],
  ['multicast, RFC 5771', '224.0.0.0/4', '224.0.0.0', '239.255.255.255', '223.255.255.255', null],
  ['reserved, RFC 1112', '240.0.0.0/4', '240.0.0.0', '255.255.255.255', null, null],
  ['broadcast, RFC 8190', '255.255.255.255/32', '255.255.255.255', '255.255.255.255', null, null],
  ['Azure', '168.63.129.16/32', '168.63.129.16', '168.63.129.16', '168.63.129.15', '168.63.129.17'],
  ['most clouds', '169.254.169.254/32', '169.254.169.254', '169.254.169.254', null, null],
  ['Alibaba', '100.100.100.200/32', '100.100.100.200', '100.100.100.200', null, null],
  ['Oracle', '192.0.0.192/32', '192.0.0.192', '192.0.0.192', null, null],

  ['unspecified, RFC 4291', '::/128', '::', '::', null, null],
  ['loopback, RFC 4291', '::1/128', '::1', '::1', null, null],
  ['compatible, RFC 4291', '::/96', '::', '::ffff:ffff', null, null],
  ['mapped, RFC 4291', '::ffff:0:0/96', '::ffff:0:0', '::ffff:ffff:ffff', null, null],
  ['NAT64, RFC 6052', '64:ff9b::/96', '64:ff9b::', '64:ff9b::ffff:ffff', null, null],
  ['local NAT64, RFC 8215', '64:ff9b:1::/48', '64:ff9b:1::', '64:ff9b:1:ffff:ffff:ffff:ffff:ffff', null, null],
  ['discard, RFC 6666', '100::/64', '100::', '100::ffff:ffff:ffff:ffff', null, null],
  ['dummy, RFC 9780', '100:0:0:1::/64', '100:0:0:1::', '100::1:ffff:ffff:ffff:ffff', null, null],
  [
    'IETF protocols, RFC 2928',
    '2001::/23',
    '2001::',
    '2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff',
    '2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    '2001:200::',
  ],
  [
    'Teredo, RFC 4380',
    '2001::/32',
    '2001::',
    '2001:0:ffff:ffff:ffff:ffff:ffff:ffff',
    '2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    null,
  ],
  ['PCP anycast, RFC 7723', '2001:1::1/128', '2001:1::1', '2001:1::1', null, null],
  ['TURN anycast, RFC 8155', '2001:1::2/128', '2001:1::2', '2001:1::2', null, null],
  ['SRP anycast, RFC 9665', '2001:1::3/128', '2001:1::3', '2001:1::3', null, null],
  ['benchmarking, RFC 5180', '2001:2::/48', '2001:2::', '2001:2:0:ffff:ffff:ffff:ffff:ffff', null, null],
  ['AMT, RFC 7450', '2001:3::/32', '2001:3::', '2001:3:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['AS112, RFC 7535', '2001:4:112::/48', '2001:4:112::', '2001:4:112:ffff:ffff:ffff:ffff:ffff', null, null],
  ['ORCHID, RFC 4843', '2001:10::/28', '2001:10::', '2001:1f:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['ORCHIDv2, RFC 7343', '2001:20::/28', '2001:20::', '2001:2f:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['drones, RFC 9374', '2001:30::/28', '2001:30::', '2001:3f:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  [
    'documentation, RFC 3849',
    '2001:db8::/32',
    '2001:db8::',
    '2001:db8:ffff:ffff:ffff:ffff:ffff:ffff',
    '2001:db7:ffff:ffff:ffff:ffff:ffff:ffff',
    '2001:db9::',
  ],
  [
    '6to4, RFC 3056',
    '2002::/16',
    '2002::',
    '2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    '2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    '2003::',
  ],
  [
    'AS112, RFC 7534',
    '2620:4f:8000::/48',
    '2620:4f:8000::',
    '2620:4f:8000:ffff:ffff:ffff:ffff:ffff',
    '2620:4f:7fff:ffff:ffff:ffff:ffff:ffff',
    '2620:4f:8001::',
  ],
  [
    'documentation, RFC 9637',
    '3fff::/20',
    '3fff::',
    '3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff',
    '3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    '3fff:1000::',
  ],
  // What follows, and what stands before 2000::, is nobody's: 2000::/3 alone is assigned to hosts.
  ['below the hosts, RFC 4291', '::/3', '::', '1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', null, '2000::'],
  [
    'above the hosts, RFC 4291',
    '4000::/2',
    '4000::',
    '7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    '3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
    null,
  ],
  ['above the hosts, RFC 4291', '8000::/1', '8000::', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['SRv6, RFC 9602', '5f00::/16', '5f00::', '5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['unique local, RFC 4193', 'fc00::/7', 'fc00::', 'fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['link-local, RFC 4291', 'fe80::/10', 'fe80::', 'febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['site-local, RFC 3879', 'fec0::/10', 'fec0::', 'feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['multicast, RFC 4291', 'ff00::/8', 'ff00::', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', null, null],
  ['AWS', 'fd00:ec2::254/128', 'fd00:ec2::254', 'fd00:ec2::254', null, null],
  ['Google', 'fd20:ce::254/128', 'fd20:ce::254', 'fd20:ce::254', null, null],
];

/** An address as a number, so that the table is checked as well. */
function numberOf(address: string): bigint {
  return ipaddr
    .parse(address)
    .toByteArray()
    .reduce((sum, byte) => sum * 256n + BigInt(byte), 0n);
}

describe.each(ROWS)('%s: %s', (_what, range, first, last, before, after) => {
  it('ends where the table says', () => {
    const [address, bits] = ipaddr.parseCIDR(range);
    const size = 2n ** BigInt((address.kind() === 'ipv4' ? 32 : 128) - bits);
    expect([numberOf(first), numberOf(last)]).toEqual([numberOf(address.toString()), numberOf(first) + size - 1n]);
    if (before !== null) expect(numberOf(before)).toBe(numberOf(first) - 1n);
    if (after !== null) expect(numberOf(after)).toBe(numberOf(last) + 1n);
  });

  it('is refused from the first address to the last, and its neighbours are public', () => {
    expect([permitted(first), permitted(last)]).toEqual([false, false]);
    if (before !== null) expect(permitted(before)).toBe(true);
    if (after !== null) expect(permitted(after)).toBe(true);
  });

  it('is refused where DNS gives it, alone or beside a public address, and where a URL spells it', async () => {
    await using site = await startSite();
    await using names = await startNameServer();
    await using client = fetcher({ lookup: names.lookup, policy: policyOf('', '', [site.port]) });
    for (const address of [first, last]) {
      names.answer('alone.test', [address]);
      names.answer('beside.test', [PUBLIC, address, '2606:4700::1111']);
      for (const host of ['alone.test', 'beside.test', address.includes(':') ? `[${address}]` : address]) {
        expect(await blocked(client.fetch(`http://${host}:${site.port}/`))).toMatch(/the address is not public;/);
      }
    }
    expect(site.connections).toBe(0);
  });
});

describe('an IPv4 address inside an IPv6 address', () => {
  const forms: [string, (octets: readonly number[]) => string][] = [
    ['mapped', (v4) => `::ffff:${v4.join('.')}`],
    ['translated', (v4) => `::ffff:0:${v4.join('.')}`],
    ['compatible', (v4) => `::${v4.join('.')}`],
    ['NAT64', (v4) => `64:ff9b::${v4.join('.')}`],
    ['local NAT64, /48', ([a, b, c, d]) => hex([0, 0x64, 0xff, 0x9b, 0, 1, a, b, 0, c, d, 0, 0, 0, 0, 0])],
    ['local NAT64, /56', ([a, b, c, d]) => hex([0, 0x64, 0xff, 0x9b, 0, 1, 7, a, 0, b, c, d, 0, 0, 0, 0])],
    ['local NAT64, /64', ([a, b, c, d]) => hex([0, 0x64, 0xff, 0x9b, 0, 1, 7, 7, 0, a, b, c, d, 0, 0, 0])],
    ['local NAT64, /96', (v4) => `64:ff9b:1:7:7:7:${v4.join('.')}`],
    ['6to4', ([a, b, c, d]) => hex([0x20, 0x02, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])],
    ['Teredo', (v4) => hex([0x20, 1, 0, 0, 65, 54, 227, 120, 128, 0, 99, 191, ...v4.map((octet) => octet ^ 0xff)])],
  ];
  const anyV4 = fc.tuple(fc.nat(255), fc.nat(255), fc.nat(255), fc.nat(255));

  it.each(forms)('(%s) is refused by default, public or not', (_form, embed) => {
    const property = fc.property(anyV4, (v4) => {
      expect(permitted(embed(v4))).toBe(false);
    });
    fc.assert(property);
  });

  it.each(forms)('(%s) is denied with its network where all of IPv6 is allowed', (_form, embed) => {
    const property = fc.property(anyV4, fc.integer({ min: 8, max: 32 }), (v4, bits) => {
      expect(permits(policyOf('::/0'), 'example.com', 80, embed(v4))).toBe(true);
      expect(permits(policyOf('::/0', `${v4.join('.')}/${bits}`), 'example.com', 80, embed(v4))).toBe(false);
    });
    fc.assert(property);
  });

  it.each(forms)('(%s) is not let in by its network being allowed', (_form, embed) => {
    expect(permits(policyOf('127.0.0.0/8:*'), 'example.com', 80, embed([127, 0, 0, 1]))).toBe(false);
  });
});

function hex(bytes: readonly (number | undefined)[]): string {
  return ipaddr.fromByteArray(bytes.map((byte) => byte ?? 0)).toString();
}

describe('a name', () => {
  it.each([
    'localhost',
    'a.localhost',
    'host.localdomain',
    'printer.local',
    'router.home.arpa',
    'metadata.google.internal',
    'instance-data.ec2.internal',
    'facebookwkhpilnemxj7asaniu7vnjjbiltxjqhye3mhbshg7kx5tfyd.onion',
    'anything.alt',
    'metadata.goog',
    'metadata.platformequinix.com',
    'metadata.packet.net',
    'metadata.tencentyun.com',
    'api.metadata.cloud.ibm.com',
    'metadata',
    'instance-data',
    'redis',
  ])('%s is refused, resolved or not', (host) => {
    expect(permits(closed, host, 80)).toBe(false);
    expect(permits(closed, host, 80, PUBLIC)).toBe(false);
  });

  it.each(['localhost.example', 'my-local.example', 'example.localx', 'internal.example', 'goog.example'])(
    '%s only looks like one of ours',
    (host) => {
      expect(permits(closed, host, 80, PUBLIC)).toBe(true);
    },
  );
});
