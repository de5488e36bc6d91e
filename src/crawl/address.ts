/**
 * Where a request may go: the rules of FETCH_ALLOW and FETCH_DENY over a closed default. It judges what it is told;
 * that the address it judged is the one connected to is the business of `connect.ts`.
 */
import { type Address, type AddressRule, parseAddress, within } from '../address-rules.js';
import { RejectedError } from '../errors.js';
import { carriedAddresses, isPrivateName, isPublicAddress } from './special.js';

export interface AddressPolicyOptions {
  allow?: readonly AddressRule[];
  deny?: readonly AddressRule[];
  /** Ports open on every public address; 80 and 443. */
  ports?: readonly number[];
}

/** Decides for a host, a port and an address. Denied beats allowed, allowed beats the default. */
export class AddressPolicy {
  readonly #allow: readonly AddressRule[];
  readonly #deny: readonly AddressRule[];
  readonly #ports: readonly number[];

  constructor({ allow = [], deny = [], ports = [80, 443] }: AddressPolicyOptions = {}) {
    this.#allow = allow;
    this.#deny = deny;
    this.#ports = ports;
  }

  /**
   * Lets a request that may go there pass. Without `address` (the name is not resolved yet): one that some address could
   * permit. What is not an address is never permitted.
   *
   * @param host as a canonical URL spells it, IPv6 without brackets
   * @throws RejectedError `blocked-address`; it names no resolved address: what our own DNS answers is not for tenants
   */
  check(host: string, port: number, address?: string): void {
    const refusal = this.#refusal(host, port, address);
    if (refusal !== null) throw new RejectedError('blocked-address', `${host}: ${refusal}`);
  }

  /** Whether FETCH_ALLOW has an entry for this very name. */
  names(host: string): boolean {
    return this.#allow.some((rule) => 'host' in rule && rule.host === host);
  }

  #refusal(host: string, port: number, addressText?: string): string | null {
    const address = addressText === undefined ? undefined : parseAddress(addressText);
    if (address === null) return 'the address is not usable';
    if (this.#deny.some((rule) => isDenied(rule, host, port, address))) return 'denied by FETCH_DENY';
    if (this.#allow.some((rule) => this.#isAllowed(rule, host, port, address))) return null;
    if (isPrivateName(host)) return 'the name is not public; FETCH_ALLOW may name it';
    if (address && !isPublicAddress(address)) return 'the address is not public; FETCH_ALLOW may name it';
    return this.#ports.includes(port) ? null : `port ${port} is not open; FETCH_ALLOW may name it`;
  }

  #isAllowed(rule: AddressRule, host: string, port: number, address: Address | undefined): boolean {
    const portFits = rule.port === 'default' ? this.#ports.includes(port) : rule.port === 'any' || rule.port === port;
    if (!portFits) return false;
    if ('host' in rule) return rule.host === host;
    // Not resolved yet: it may turn out to lie in this network. A carried IPv4 address does not count as allowed.
    return address === undefined || within(address, rule.network);
  }
}

function isDenied(rule: AddressRule, host: string, port: number, address: Address | undefined): boolean {
  if (typeof rule.port === 'number' && rule.port !== port) return false;
  if ('host' in rule) return rule.host === host;
  if (address === undefined) return false;
  return [address, ...carriedAddresses(address)].some((one) => within(one, rule.network));
}
