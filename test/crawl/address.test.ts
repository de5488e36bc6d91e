import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import { describe, expect, it } from 'vitest';
import { parseRules } from '../../src/address-rules.js';
import { AddressPolicy } from '../../src/crawl/address.js';
import { RejectedError } from '../../src/errors.js';
import { permits } from './support.js';

const closed = new AddressPolicy();

/** A policy of the two variables' texts. */
function policy(allow: string, deny = ''): AddressPolicy {
  return new AddressPolicy({ allow: parseRules(allow), deny: parseRules(deny) });
}

describe('the default', () => {
  it.each(['1.1.1.1', '93.184.216.34', '223.255.255.255', '2606:4700::1111', '2a00:1450:4001:80b::200e'])(
    'permits %s',
    (address) => {
      expect(permits(closed, 'example.com', 80, address)).toBe(true);
      expect(permits(closed, 'example.com', 443, address)).toBe(true);
    },
  );

  // Range by range in special.test.ts.
  it('refuses whatever ipaddr.js, which keeps its own list, does not call unicast', () => {
    const bytes = fc.oneof(
      fc.uint8Array({ minLength: 4, maxLength: 4 }),
      fc.uint8Array({ minLength: 16, maxLength: 16 }),
    );
    fc.assert(
      fc.property(bytes, (octets) => {
        const address = ipaddr.fromByteArray([...octets]);
        if (address.range() === 'unicast') return;
        expect(permits(closed, 'example.com', 80, address.toString()), address.toString()).toBe(false);
      }),
      { numRuns: 5_000 },
    );
  });

  it.each(['', 'example.com', '127.1', '0x7f000001', '2130706433', 'fe80::1%eth0', '1.2.3.4/32', ' 1.1.1.1'])(
    'refuses %j, which is no plain address',
    (address) => {
      expect(permits(closed, 'example.com', 80, address)).toBe(false);
    },
  );

  it.each([0, 22, 25, 3000, 6379, 8080, 65_535])('refuses port %i', (port) => {
    expect(permits(closed, 'example.com', port)).toBe(false);
    expect(permits(closed, 'example.com', port, '93.184.216.34')).toBe(false);
  });

  it('gives the class and a detail without the resolved address', () => {
    expect(() => closed.check('example.com', 80, '10.1.2.3')).toThrow(
      new RejectedError('blocked-address', 'example.com: the address is not public; FETCH_ALLOW may name it'),
    );
    expect(() => closed.check('example.com', 80, '93.184.216.34')).not.toThrow();
  });
});

describe('an allowed entry', () => {
  it('passes the address rule, on the ports of the web where it names none', () => {
    const lan = policy('10.0.0.0/8');
    expect(permits(lan, 'nas.example', 80, '10.1.2.3')).toBe(true);
    expect(permits(lan, 'nas.example', 443, '10.1.2.3')).toBe(true);
    expect(permits(lan, 'nas.example', 8080, '10.1.2.3')).toBe(false);
    expect(permits(lan, 'nas.example', 80, '11.1.2.3')).toBe(true);
    expect(permits(lan, 'nas.example', 80, '192.168.0.1')).toBe(false);
  });

  it('passes the port rule with a port or a star', () => {
    expect(permits(policy('127.0.0.1/32:8080'), 'localhost', 8080, '127.0.0.1')).toBe(true);
    expect(permits(policy('127.0.0.1/32:8080'), 'localhost', 80, '127.0.0.1')).toBe(false);
    expect(permits(policy('127.0.0.1/32:*'), '127.0.0.1', 6379, '127.0.0.1')).toBe(true);
    expect(permits(policy('127.0.0.1/32:*'), '127.0.0.2', 6379, '127.0.0.2')).toBe(false);
  });

  it('can be a host, whatever it resolves to, and only that host', () => {
    const one = policy('Intranet.Example.:8080');
    expect(permits(one, 'intranet.example', 8080, '10.0.0.1')).toBe(true);
    expect(permits(one, 'www.intranet.example', 8080, '10.0.0.1')).toBe(false);
    expect(permits(policy('localhost'), 'localhost', 80, '127.0.0.1')).toBe(true);
  });

  it('can be an IPv6 network', () => {
    expect(permits(policy('fd00::/8'), 'nas.example', 80, 'fd12::1')).toBe(true);
    expect(permits(policy('[::1]:8080'), '::1', 8080, '::1')).toBe(true);
    expect(permits(policy('[::1]/128:8080'), '::1', 8080, '::1')).toBe(true);
    expect(permits(policy('::/0:*'), 'x.example', 1, '::1')).toBe(true);
    expect(permits(policy('::/0:*'), 'x.example', 1, '127.0.0.1')).toBe(false);
  });

  it('keeps a name open until its address is known', () => {
    expect(permits(policy('127.0.0.1:8080'), 'localhost', 8080)).toBe(true);
    expect(permits(policy('127.0.0.1:8080'), 'localhost', 8081)).toBe(false);
    expect(permits(policy('nas.example:8080'), 'other.example', 8080)).toBe(false);
  });
});

describe('a denied entry', () => {
  it('wins over an allowed one', () => {
    const both = policy('10.0.0.0/8:*, evil.example:*', '10.6.0.0/16, evil.example');
    expect(permits(both, 'nas.example', 80, '10.5.0.1')).toBe(true);
    expect(permits(both, 'nas.example', 80, '10.6.0.1')).toBe(false);
    expect(permits(both, 'evil.example', 80)).toBe(false);
  });

  it('closes every port, or the one it names', () => {
    expect(permits(policy('x.example:*', 'x.example'), 'x.example', 8080, '10.0.0.1')).toBe(false);
    expect(permits(policy('', '93.184.216.0/24:80'), 'x.example', 80, '93.184.216.34')).toBe(false);
    expect(permits(policy('', '93.184.216.0/24:80'), 'x.example', 443, '93.184.216.34')).toBe(true);
  });
});

describe('parseRules', () => {
  it('reads hosts, addresses and networks, with and without ports', () => {
    const read = (text: string) =>
      parseRules(text).map((rule) => [
        'host' in rule ? rule.host : `${rule.network[0].toString()}/${rule.network[1]}`,
        rule.port,
      ]);
    expect(read('')).toEqual([]);
    expect(read(' a.example , B.example:* ,')).toEqual([
      ['a.example', 'default'],
      ['b.example', 'any'],
    ]);
    expect(read('10.0.0.0/8:81,127.0.0.1,bücher.example:8080')).toEqual([
      ['10.0.0.0/8', 81],
      ['127.0.0.1/32', 'default'],
      ['xn--bcher-kva.example', 8080],
    ]);
    expect(read('::1,fd00::/8:*,[::1]:80,[fd00::]/8,[fd00::/8]:82,::1:80')).toEqual([
      ['::1/128', 'default'],
      ['fd00::/8', 'any'],
      ['::1/128', 80],
      ['fd00::/8', 'default'],
      ['fd00::/8', 82],
      ['::1:80/128', 'default'],
    ]);
    // Mapped, as sockets of both families spell IPv4.
    expect(read('::ffff:127.0.0.1,[::ffff:a00:0/104]:82,::ffff:0:0/96:*,::ffff:0:0/95')).toEqual([
      ['127.0.0.1/32', 'default'],
      ['10.0.0.0/8', 82],
      ['0.0.0.0/0', 'any'],
      ['::ffff:0:0/95', 'default'],
    ]);
  });

  it.each([
    '10.0.0.0/33',
    '10.0.0/8',
    '010.0.0.0/8',
    '0x7f.1',
    '2130706433',
    'fd00::/129',
    '[127.0.0.1]',
    '[::1',
    'fe80::1%eth0',
    'a.example:0',
    'a.example:65536',
    'a.example:http',
    'a.example/8',
    '*.example',
    'http://a.example',
    'me@a.example',
    'a b',
    ':80',
    '*',
  ])('names the entry %s, which is none', (entry) => {
    expect(() => parseRules(`good.example,${entry}`, 'FETCH_ALLOW')).toThrow(
      `FETCH_ALLOW: "${entry}": not a host name`,
    );
  });

  it('names every bad entry at once', () => {
    expect(() => parseRules('a b,ok.example,10.0.0.0/99')).toThrow('rules: "a b", "10.0.0.0/99": not');
  });
});
