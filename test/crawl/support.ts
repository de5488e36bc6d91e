/** A Fetcher for tests, and what became of what it was asked. */
import type { LookupAddress } from 'node:dns';
import { parseRules } from '../../src/address-rules.js';
import { AddressPolicy } from '../../src/crawl/address.js';
import { Fetcher, type FetchOptions } from '../../src/crawl/fetch.js';
import type { Lookup } from '../../src/crawl/names.js';
import { RejectedError, RetryableError } from '../../src/errors.js';
import { type Behaviour, type Site, startSite } from '../support/site.js';

export const MiB = 1024 * 1024;
export const LOOPBACK: LookupAddress = { address: '127.0.0.1', family: 4 };

/** The policy of FETCH_ALLOW and FETCH_DENY; `ports` instead of those of the web. */
export function policyOf(allow: string, deny = '', ports?: readonly number[]): AddressPolicy {
  return new AddressPolicy({ allow: parseRules(allow), deny: parseRules(deny), ...(ports ? { ports } : {}) });
}

/** Whether a request may go there, as far as is known; see `check`. */
export function permits(policy: AddressPolicy, host: string, port: number, address?: string): boolean {
  try {
    policy.check(host, port, address);
    return true;
  } catch (error) {
    if (error instanceof RejectedError) return false;
    throw error;
  }
}

const local = policyOf('127.0.0.1/32:*, [::1]:*');

/** Fetches from this machine, up to a MiB in 20 seconds. */
export function fetcher(options: Partial<FetchOptions> = {}): Fetcher {
  return new Fetcher({ maxBytes: MiB, timeoutMs: 20_000, userAgent: 'bot/1 (+mailto:a@b)', policy: local, ...options });
}

/** The error a fetch ends in, as its class, reason and detail. */
export async function failure(fetched: Promise<unknown>) {
  const error = await fetched.then(
    () => new Error('it was fetched'),
    (reason) => reason,
  );
  if (!(error instanceof RejectedError || error instanceof RetryableError)) throw error;
  const kind = error instanceof RejectedError ? 'rejected' : 'retryable';
  const retryAfterMs = error instanceof RetryableError ? error.retryAfterMs : undefined;
  return { kind, reason: error.reason, message: error.message, retryAfterMs };
}

/** What a fetch of a site that misbehaves in one way ends in, without the port. */
export async function failureOf(behaviour: Behaviour, options: Partial<FetchOptions> = {}) {
  await using site = await startSite();
  await using client = fetcher(options);
  const failed = await failure(client.fetch(site.behave('/a', behaviour)));
  return { ...failed, message: failed.message.replace(`:${site.port}`, '') };
}

/** What a fetch ends in that may not go where it would lead. */
export async function blocked(fetched: Promise<unknown>): Promise<string> {
  const { kind, reason, message } = await failure(fetched);
  if (kind !== 'rejected' || reason !== 'blocked-address') throw new Error(`it ended otherwise: ${message}`);
  return message;
}

/** A resolver that tells when it is asked and answers when told to. */
export function heldLookup() {
  let tell = () => {};
  let answer: (addresses: LookupAddress[]) => void = () => {};
  const asked = new Promise<void>((resolve) => {
    tell = resolve;
  });
  const answered = new Promise<LookupAddress[]>((resolve) => {
    answer = resolve;
  });
  const lookup: Lookup = () => {
    tell();
    return answered;
  };
  return { lookup, asked, answer: (addresses: LookupAddress[]) => answer(addresses) };
}

export const allClosed = (site: Site) => site.openConnections === 0;
