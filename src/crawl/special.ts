/**
 * Which addresses and names are not the public web. A closed default: what is not listed as global unicast is special,
 * so that a range assigned tomorrow is refused until somebody reads about it.
 */
import ipaddr from 'ipaddr.js';
import { type Address, type Network, within } from '../address-rules.js';

/**
 * IANA IPv4 Special-Purpose Address Registry, those that it calls globally reachable included; multicast; and what clouds
 * answer metadata on.
 */
const SPECIAL_V4 = networks([
  '0.0.0.0/8', // this network, RFC 791
  '10.0.0.0/8', // private, RFC 1918
  '100.64.0.0/10', // shared (CGNAT), RFC 6598; Alibaba's metadata at 100.100.100.200
  '127.0.0.0/8', // loopback, RFC 1122
  '168.63.129.16/32', // Azure's WireServer: a public address that every Azure VM reaches its host at
  '169.254.0.0/16', // link-local, RFC 3927; metadata of most clouds at 169.254.169.254
  '172.16.0.0/12', // private, RFC 1918
  '192.0.0.0/24', // IETF protocol assignments, RFC 6890; Oracle's metadata at 192.0.0.192
  '192.0.2.0/24', // documentation, RFC 5737
  '192.31.196.0/24', // AS112, RFC 7535
  '192.52.193.0/24', // AMT, RFC 7450
  '192.88.99.0/24', // 6to4 relay anycast, RFC 7526
  '192.168.0.0/16', // private, RFC 1918
  '192.175.48.0/24', // AS112, RFC 7534
  '198.18.0.0/15', // benchmarking, RFC 2544
  '198.51.100.0/24', // documentation, RFC 5737
  '203.0.113.0/24', // documentation, RFC 5737
  '224.0.0.0/4', // multicast, RFC 5771
  '240.0.0.0/4', // reserved and broadcast, RFC 1112, RFC 8190
]);

/** The only IPv6 space that holds public hosts (RFC 4291); loopback, mapped, NAT64, ULA, link-local lie outside. */
const GLOBAL_V6 = networks(['2000::/3']);

/** What the IANA IPv6 Special-Purpose Address Registry takes out of it. */
const SPECIAL_V6 = networks([
  '2001::/23', // IETF protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID
  '2001:db8::/32', // documentation, RFC 3849
  '2002::/16', // 6to4, RFC 3056: carries any IPv4 address
  '2620:4f:8000::/48', // AS112, RFC 7534
  '3fff::/20', // documentation, RFC 9637
]);

/** Where an IPv6 form carries an IPv4 address: the network, the bytes it stands in, and the mask it is stored under. */
const CARRIERS: readonly { network: Network; at: readonly number[]; mask: number }[] = [
  { network: ipaddr.parseCIDR('::ffff:0:0/96'), at: [12, 13, 14, 15], mask: 0 }, // mapped, RFC 4291
  { network: ipaddr.parseCIDR('::ffff:0:0:0/96'), at: [12, 13, 14, 15], mask: 0 }, // translated, RFC 2765
  { network: ipaddr.parseCIDR('::/96'), at: [12, 13, 14, 15], mask: 0 }, // compatible, RFC 4291
  { network: ipaddr.parseCIDR('64:ff9b::/96'), at: [12, 13, 14, 15], mask: 0 }, // NAT64, RFC 6052
  // Local NAT64, RFC 8215, with every length of prefix that RFC 6052 section 2.2 knows; byte 8 is never part of it.
  { network: ipaddr.parseCIDR('64:ff9b:1::/48'), at: [6, 7, 9, 10], mask: 0 },
  { network: ipaddr.parseCIDR('64:ff9b:1::/48'), at: [7, 9, 10, 11], mask: 0 },
  { network: ipaddr.parseCIDR('64:ff9b:1::/48'), at: [9, 10, 11, 12], mask: 0 },
  { network: ipaddr.parseCIDR('64:ff9b:1::/48'), at: [12, 13, 14, 15], mask: 0 },
  { network: ipaddr.parseCIDR('2002::/16'), at: [2, 3, 4, 5], mask: 0 }, // 6to4, RFC 3056
  { network: ipaddr.parseCIDR('2001::/32'), at: [12, 13, 14, 15], mask: 0xff }, // Teredo's client, RFC 4380
];

/** Names that are never the public web: RFC 6761, RFC 6762, RFC 8375, RFC 7686, RFC 9476, ICANN's `.internal`. */
const PRIVATE_SUFFIXES = ['localhost', 'localdomain', 'local', 'internal', 'home.arpa', 'onion', 'alt'];

/** Metadata services by the names that do not end in one of the above. */
const METADATA_NAMES = new Set([
  'metadata.goog',
  'metadata.platformequinix.com',
  'metadata.packet.net',
  'metadata.tencentyun.com',
  'api.metadata.cloud.ibm.com',
]);

/** Whether the address is a public host of the Internet. */
export function isPublicAddress(address: Address): boolean {
  if (address.kind() === 'ipv4') return !inAny(address, SPECIAL_V4);
  return inAny(address, GLOBAL_V6) && !inAny(address, SPECIAL_V6);
}

/**
 * Whether the host, lower-case and without a trailing dot, is a name of this machine, this network or a cloud's metadata.
 * A name without a dot is one that the resolver completes (`metadata`, `redis`); the public web has none (RFC 7085).
 */
export function isPrivateName(host: string): boolean {
  if (!/[.:]/.test(host)) return true;
  return METADATA_NAMES.has(host) || PRIVATE_SUFFIXES.some((suffix) => host === suffix || host.endsWith(`.${suffix}`));
}

/** Every IPv4 address that a mapped, translated or tunnelled IPv6 address may stand for; usually none. */
export function carriedAddresses(address: Address): Address[] {
  const bytes = address.toByteArray();
  return CARRIERS.filter(({ network }) => within(address, network)).map(({ at, mask }) =>
    ipaddr.fromByteArray(at.map((index) => (bytes[index] ?? 0) ^ mask)),
  );
}

function inAny(address: Address, list: readonly Network[]): boolean {
  return list.some((network) => within(address, network));
}

function networks(list: readonly string[]): Network[] {
  return list.map((text) => ipaddr.parseCIDR(text));
}
