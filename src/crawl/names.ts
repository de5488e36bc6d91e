/**
 * What a name resolves to. Names of the open web are asked for over sockets of our own (c-ares): the system's resolver
 * blocks a thread of libuv's pool for as long as a name's servers keep silent, and Node gives it two of the four, so that two
 * such names would hold up all others. What only this machine or its network knows goes to the system all the same.
 */
import type { LookupAddress } from 'node:dns';
import { lookup, Resolver, TIMEOUT } from 'node:dns/promises';
import { Deadline } from './deadline.js';

/** All addresses of a name. Rejects or gives none where there are none. */
export type Lookup = (host: string) => Promise<readonly LookupAddress[]>;

export interface NamesOptions {
  /** Whether the system is to be asked: it reads the hosts file, and completes names by the search list. */
  isLocal(host: string): boolean;
  /** Milliseconds for a name of the open web; what one family has by then counts. */
  timeoutMs: number;
  /** Name servers, each `address` or `address:port`; those of the system. */
  servers?: readonly string[] | undefined;
}

/** A question is repeated once after this many milliseconds, and given up after twice as many more. */
const REPEAT_AFTER_MS = 1_500;

/** Whoever asks while the name is being looked up waits for the same answer; who comes later asks anew. */
export function createLookup({ isLocal, timeoutMs, servers }: NamesOptions): Lookup {
  const underWay = new Map<string, Promise<readonly LookupAddress[]>>();
  return (host) => {
    const shared = underWay.get(host);
    if (shared) return shared;
    const asked = isLocal(host) ? lookup(host, { all: true }) : askServers(host, timeoutMs, servers);
    const over = () => underWay.delete(host);
    asked.then(over, over);
    underWay.set(host, asked);
    return asked;
  };
}

/** A resolver for each name: it reads what resolv.conf says now, asks from a port of its own, and can be cancelled alone. */
async function askServers(host: string, timeoutMs: number, servers?: readonly string[]): Promise<LookupAddress[]> {
  const resolver = new Resolver({ timeout: REPEAT_AFTER_MS, tries: 2 });
  if (servers) resolver.setServers(servers);
  const deadline = new Deadline(timeoutMs, () => new Error('no answer in time'));
  deadline.signal.addEventListener('abort', () => resolver.cancel());
  try {
    return await bothFamilies(resolver, host);
  } catch (error) {
    const { signal } = deadline;
    throw signal.aborted ? Object.assign(signal.reason, { cause: error, code: TIMEOUT }) : error;
  } finally {
    deadline.clear();
  }
}

/** IPv4 first, asked for at once; what one family has counts, whatever becomes of the other. */
export async function bothFamilies(resolver: Resolver, host: string): Promise<LookupAddress[]> {
  const [v4, v6] = await Promise.allSettled([resolver.resolve4(host), resolver.resolve6(host)]);
  if (v4.status === 'rejected' && v6.status === 'rejected') throw v4.reason;
  const found = (one: PromiseSettledResult<string[]>) => (one.status === 'fulfilled' ? one.value : []);
  return [
    ...found(v4).map((address) => ({ address, family: 4 })),
    ...found(v6).map((address) => ({ address, family: 6 })),
  ];
}
