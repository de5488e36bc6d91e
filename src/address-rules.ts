/**
 * The language of FETCH_ALLOW and FETCH_DENY: host names and networks, each with a port or without. What the rules
 * mean for a request is decided in `crawl/address.ts`.
 */
import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';
import { ArgumentError } from './errors.js';

export type Address = ipaddr.IPv4 | ipaddr.IPv6;
/** An address and the length of its prefix. */
export type Network = [Address, number];

/** A port, every port, or `default`: the web's own ports in an allowed entry, every port in a denied one. */
type RulePort = number | 'any' | 'default';

/** One entry of FETCH_ALLOW or FETCH_DENY. */
export type AddressRule = { readonly port: RulePort } & ({ readonly host: string } | { readonly network: Network });

const ENTRY_FORM = 'a host name or a CIDR, each with an optional :port or :*';
const BRACKETED = /^\[([^\][/]+)(?:\/(\d{1,3}))?\](?:\/(\d{1,3}))?(?::(\*|\d{1,5}))?$/;
const BARE_IPV6 = /^([0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*)$/i;
const PLAIN = /^([^\][/]+?)(?:\/(\d{1,3}))?(?::(\*|\d{1,5}))?$/;

/**
 * Reads a comma-separated list of host names (exact, no wildcards), addresses and CIDRs, each with an optional `:port`
 * or `:*`. An IPv6 network takes a port behind its prefix length or its brackets: `fd00::/8:8080`, `[::1]/128:*`.
 *
 * @param argument the name that the error gives, such as `FETCH_ALLOW`
 * @throws ArgumentError naming every entry that is none of these
 */
export function parseRules(text: string, argument = 'rules'): AddressRule[] {
  const entries = text.split(',').flatMap((entry) => entry.trim() || []);
  const rules = entries.map((entry) => ({ entry, rule: parseRule(entry) }));
  const bad = rules.filter(({ rule }) => rule === null).map(({ entry }) => `"${entry}"`);
  if (bad.length > 0) throw new ArgumentError(argument, `${bad.join(', ')}: not ${ENTRY_FORM}`);
  return rules.flatMap(({ rule }) => rule ?? []);
}

function parseRule(entry: string): AddressRule | null {
  const bracketed = BRACKETED.exec(entry);
  if (bracketed) return toRule(bracketed[1], bracketed[2] ?? bracketed[3], bracketed[4], 'ipv6');
  // Without prefix length and brackets, `::1:80` can only be read as an address.
  if (BARE_IPV6.test(entry)) return toRule(entry, undefined, undefined, 'ipv6');
  const plain = PLAIN.exec(entry);
  return plain ? toRule(plain[1], plain[2], plain[3]) : null;
}

function toRule(subject = '', bits?: string, portText?: string, kind?: 'ipv6'): AddressRule | null {
  const port = portText === undefined ? 'default' : portText === '*' ? 'any' : Number(portText);
  if (typeof port === 'number' && (port < 1 || port > 65_535)) return null;
  const address = parseAddress(subject);
  if (address) {
    const widest = address.kind() === 'ipv4' ? 32 : 128;
    const length = bits === undefined ? widest : Number(bits);
    if (length > widest || (kind ?? address.kind()) !== address.kind()) return null;
    return { network: unmapped(address, length), port };
  }
  const host = bits === undefined && kind === undefined ? hostName(subject) : null;
  return host === null ? null : { host, port };
}

/** `::ffff:10.0.0.0/104` is 10.0.0.0/8, spelled for a socket of the other family: IPv4 is what will be connected to. */
function unmapped(address: Address, length: number): Network {
  const mapped = address instanceof ipaddr.IPv6 && address.isIPv4MappedAddress() && length >= 96;
  return mapped ? [address.toIPv4Address(), length - 96] : [address, length];
}

/** The name as a canonical URL spells it; `null` for no name, or for an odd spelling of an address. */
function hostName(text: string): string | null {
  if (!/^[^\s/:@?#\\%*]+$/.test(text) || !URL.canParse(`http://${text}`)) return null;
  const host = new URL(`http://${text}`).hostname.replace(/\.$/, '');
  return ipaddr.isValid(host) ? null : host;
}

/** The address, or `null` for whatever is not one in its plain spelling; zone ids (`fe80::1%eth0`) are not. */
export function parseAddress(text: string): Address | null {
  return isIP(text) === 0 || text.includes('%') ? null : ipaddr.parse(text);
}

/** Whether the address lies in the network; never across families. */
export function within(address: Address, network: Network): boolean {
  return address.kind() === network[0].kind() && address.match(network);
}
