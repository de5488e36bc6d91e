/** Settings that are valid, and still not what an operator should run with. */
import ipaddr from 'ipaddr.js';
import { type AddressRule, parseAddress, within } from '../address-rules.js';
import type { Config } from '../config.js';
import { type Finding, ok, problem, warning } from './check.js';

/** Shorter ones can be guessed. */
const TOKEN_LENGTH = 16;
/** Where clouds answer with a machine's credentials: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html */
const METADATA = ['169.254.169.254', 'fd00:ec2::254'].flatMap((text) => parseAddress(text) ?? []);
/** An allowed network that leaves more bits open holds more than the 256 addresses of one rack. */
const OPEN_BITS = 8;

export function settingFindings({ http, fetch }: Config): Finding[] {
  return [tokensFinding(http), allowFinding(fetch.allow), contactFinding(fetch)];
}

function tokensFinding({ host, tokens }: Config['http']): Finding {
  const name = 'API_TOKENS';
  // HOST is a loopback address then, or the configuration would not stand.
  if (tokens.length === 0) return ok(name, `none: only this machine is answered, at ${host}`);
  const short = tokens.filter(({ token }) => token.length < TOKEN_LENGTH).length;
  if (short > 0) {
    return warning(name, `${short} of ${tokens.length} can be guessed: use ${TOKEN_LENGTH} random characters or more`);
  }
  return ok(name, `${tokens.length} set`);
}

function allowFinding(allow: readonly AddressRule[]): Finding {
  const name = 'FETCH_ALLOW';
  if (allow.length === 0) return ok(name, 'empty: private addresses are refused');
  const networks = allow.flatMap((rule) => ('network' in rule ? [rule.network] : []));
  if (networks.some((network) => METADATA.some((address) => within(address, network)))) {
    return problem(
      name,
      "lets workers fetch the credentials of a cloud's machine (169.254.169.254): name the hosts that are meant",
    );
  }
  const wide = networks.filter(([address, bits]) => widthOf(address) - bits > OPEN_BITS);
  if (wide.length > 0) {
    const names = wide.map(([address, bits]) => `${address}/${bits}`).join(', ');
    return warning(name, `${names} opens many machines to whoever may enqueue: name the hosts that are meant`);
  }
  return ok(name, `${allow.length} ${allow.length === 1 ? 'entry' : 'entries'}, of single hosts or small networks`);
}

function widthOf(address: ipaddr.IPv4 | ipaddr.IPv6): number {
  return address instanceof ipaddr.IPv4 ? 32 : 128;
}

function contactFinding({ userAgent }: Config['fetch']): Finding {
  const name = 'USER_AGENT_CONTACT';
  if (userAgent.includes('(+')) return ok(name, `sites are told ${userAgent}`);
  return warning(
    name,
    'is empty: set a page or mail address, so that owners of sites can tell you before they block you',
  );
}
