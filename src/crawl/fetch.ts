/**
 * One bounded, SSRF-safe GET. Every hop goes through `canonicalUrl` and the policy, every socket through
 * `PinnedConnector`, every body through `readBody`; one deadline spans it all.
 */
import { isIP } from 'node:net';
import { Agent, type Dispatcher } from 'undici';
import { ArgumentError, RejectedError, RetryableError } from '../errors.js';
import { canonicalUrl } from '../kinds/url.js';
import type { AddressPolicy } from './address.js';
import { discard, readBody } from './body.js';
import { PinnedConnector, portOf } from './connect.js';
import { Deadline, orAborted } from './deadline.js';
import { connectionFailure, statusFailure } from './failure.js';
import { createLookup, type Lookup } from './names.js';
import { forbidsIndexing } from './robots.js';
import { isPrivateName } from './special.js';

export interface FetchOptions {
  /** Largest body in bytes, after decompression. */
  maxBytes: number;
  /** Milliseconds for everything: names, connections, redirects, body. */
  timeoutMs: number;
  /** Sent as it is. */
  userAgent: string;
  policy: AddressPolicy;
  /** Milliseconds for one connection, its name and TLS included; 10,000. */
  connectTimeoutMs?: number;
  /** Milliseconds without a byte of the headers, then of the body; 10,000. Kept to about a second. */
  idleTimeoutMs?: number;
  /** Connections per origin at most; 16. A backstop: politeness is decided before a job gets here. */
  connectionsPerOrigin?: number;
  /** Resolves names, instead of what `names.ts` does. */
  lookup?: Lookup;
  /** PEM of the certificate authorities to trust instead of Node's own. */
  ca?: string;
}

/** To be called at the end of a request, with the error it ended in. */
export type Leave = (error?: unknown) => Promise<void>;

export interface RequestOptions {
  readonly signal?: AbortSignal | undefined;
  /** Asked before every request, redirects included. */
  readonly admit?: ((url: string) => Promise<Leave>) | undefined;
  /**
   * The URLs asked so far, canonical, the last of them to be asked now; grows with every redirect. Whoever keeps it can go
   * on where `admit` has put it off.
   */
  readonly trail?: string[] | undefined;
  /** Our product token: a response that says it is not to be indexed by it is refused. */
  readonly crawler?: string | undefined;
  /** Instead of the fetcher's own. */
  readonly maxBytes?: number | undefined;
}

/** What an origin calls a version of its bytes (RFC 9110 section 8.8). */
export interface Validators {
  readonly etag: string | null;
  readonly lastModified: string | null;
}

type Followed = RequestOptions & {
  readonly trail: string[];
  readonly signal: AbortSignal;
  readonly validators: Validators | null;
};

type Conditions = Readonly<Record<string, string>>;

export interface Fetched {
  /** Decompressed, never empty. */
  bytes: Buffer;
  /** The canonical URL of the last hop. */
  finalUrl: string;
  etag: string | null;
  lastModified: string | null;
}

/** Headers, interim responses and chunk sizes of everything that comes over one connection. */
const WIRE_SLACK_BYTES = 8 * 1024 * 1024;

const MAX_REDIRECTS = 5;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const SUCCESSES = new Set([200, 201, 202, 203, 204, 205]);

export class Fetcher implements AsyncDisposable {
  readonly #options: FetchOptions;
  readonly #connector: PinnedConnector;
  readonly #agent: Agent;

  /** Opens nothing yet. */
  constructor(options: FetchOptions) {
    this.#options = options;
    const timeoutMs = Math.min(options.connectTimeoutMs ?? 10_000, options.timeoutMs);
    const isLocal = (host: string) => isPrivateName(host) || options.policy.names(host);
    this.#connector = new PinnedConnector({
      policy: options.policy,
      // Half of the time for the connection, so that a name that does not resolve is told from a host that does not answer.
      lookup: options.lookup ?? createLookup({ isLocal, timeoutMs: timeoutMs / 2 }),
      timeoutMs,
      ca: options.ca,
      maxWireBytes: 2 * options.maxBytes + WIRE_SLACK_BYTES,
    });
    // A plain Agent knows no proxy; undici reads the environment's only in EnvHttpProxyAgent.
    this.#agent = new Agent({
      connect: this.#connector.connect,
      connections: options.connectionsPerOrigin ?? 16,
      pipelining: 1,
      keepAliveTimeout: 4_000,
      keepAliveMaxTimeout: 4_000,
      headersTimeout: options.idleTimeoutMs ?? 10_000,
      bodyTimeout: options.idleTimeoutMs ?? 10_000,
    });
  }

  /**
   * Fetches `url`, following redirects. No detail of an error holds a query.
   *
   * @throws ArgumentError for a URL that `canonicalUrl` refuses
   * @throws RejectedError for a lasting fact about the URL: `blocked-address` `gone` `forbidden` `too-large` `robots`
   * `unsupported` (content encoding) `not-an-image` (empty)
   * @throws RetryableError for what may pass: `timeout` `dns` `connection` `server-error` `throttled`
   * @throws what `admit` throws
   * @throws the signal's reason, once it is aborted; the socket is closed then
   */
  async fetch(url: string, options: RequestOptions = {}): Promise<Fetched> {
    return (await this.#fetch(url, options, null)) as Fetched;
  }

  /**
   * As `fetch`; `null` where the origin says that the bytes are still the same (RFC 9110 section 15.4.5).
   *
   * @param validators those of `url` itself: no URL that it redirects to is told them
   */
  async fetchUnless(validators: Validators, url: string, options: RequestOptions = {}): Promise<Fetched | null> {
    return this.#fetch(url, options, validators);
  }

  /** Ends whatever is under way, at once; it rejects as `connection`. */
  async close(): Promise<void> {
    // Rejects what waits for a connection too, and with the last one gone the connector gives up its sockets.
    await this.#agent.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #fetch(url: string, options: RequestOptions, validators: Validators | null): Promise<Fetched | null> {
    const { trail = [] } = options;
    if (trail.length === 0) trail.push(canonicalUrl(url));
    const { timeoutMs } = this.#options;
    const place = placeOf(trail[0] as string);
    const late = () => new RetryableError('timeout', `${place}: not finished after ${timeoutMs} ms`);
    const deadline = new Deadline(timeoutMs, late, options.signal);
    try {
      return await this.#follow({ ...options, trail, validators, signal: deadline.signal });
    } catch (error) {
      throw deadline.signal.aborted ? deadline.signal.reason : error;
    } finally {
      deadline.clear();
    }
  }

  async #follow(request: Followed): Promise<Fetched | null> {
    const { trail, admit } = request;
    for (;;) {
      const url = trail.at(-1) as string;
      // What no answer could make good costs no permit, no question for robots.txt, and no DNS query.
      this.#check(new URL(url));
      const leave = admit && (await admitted(admit(url), request.signal));
      const got = await this.#hop(url, request).catch(async (error) => {
        const failure = connectionFailure(error, placeOf(url));
        await leave?.(failure);
        throw failure;
      });
      await leave?.();
      if (typeof got !== 'string') return got;
      if (trail.includes(got)) throw new RejectedError('gone', `redirect loop at ${placeOf(got)}`);
      trail.push(got);
      if (trail.length > MAX_REDIRECTS + 1) {
        throw new RejectedError('gone', `more than ${MAX_REDIRECTS} redirects at ${placeOf(got)}`);
      }
    }
  }

  #check(url: URL): void {
    const host = url.hostname.replace(/^\[|\]$/g, '');
    this.#options.policy.check(host, portOf(url), isIP(host) === 0 ? undefined : host);
  }

  /** The body, or where the response sends us instead. */
  async #hop(url: string, request: Followed): Promise<Fetched | string | null> {
    const conditions = conditionsOf(request);
    const response = await this.#request(new URL(url), conditions, request.signal);
    const { statusCode: status, body } = response;
    const location = header(response, 'location');
    if (REDIRECTS.has(status) && location !== null) {
      discard(body);
      return redirectTarget(location, url);
    }
    if (status === 304 && Object.keys(conditions).length > 0) {
      discard(body);
      return null;
    }
    if (!SUCCESSES.has(status)) {
      discard(body);
      throw statusFailure(status, placeOf(url), header(response, 'retry-after'));
    }
    if (request.crawler && forbidsIndexing(headers(response, 'x-robots-tag'), request.crawler)) {
      discard(body);
      throw new RejectedError('robots', `${placeOf(url)}: X-Robots-Tag`);
    }
    return this.#read(response, url, request.maxBytes);
  }

  /** Over a connection that was kept, or another where the peer has closed that one: each of them is tried once. */
  async #request(url: URL, conditions: Conditions, signal: AbortSignal): Promise<Dispatcher.ResponseData> {
    for (;;) {
      try {
        return await this.#send(url, conditions, signal);
      } catch (error) {
        if (!this.#connector.isOfKept(error)) throw error;
      }
    }
  }

  async #send(url: URL, conditions: Conditions, signal: AbortSignal): Promise<Dispatcher.ResponseData> {
    signal.throwIfAborted();
    const leave = this.#connector.enter(url.origin);
    const sent = this.#agent.request({
      origin: url.origin,
      // Not `pathname + search`: that would drop an empty query, and ask for another URL.
      path: url.href.slice(url.origin.length),
      method: 'GET',
      headers: {
        'user-agent': this.#options.userAgent,
        accept: 'image/*,*/*;q=0.8',
        'accept-encoding': 'identity',
        ...conditions,
      },
      signal,
    });
    // Until a connection is there, undici looks at no signal.
    return orAborted(signal, sent).finally(leave);
  }

  async #read(response: Dispatcher.ResponseData, finalUrl: string, most?: number): Promise<Fetched> {
    const bytes = await readBody(response.body, {
      maxBytes: most ?? this.#options.maxBytes,
      length: header(response, 'content-length'),
      encoding: header(response, 'content-encoding'),
    });
    if (bytes.length === 0) throw new RejectedError('not-an-image', 'empty body');
    return {
      bytes,
      finalUrl,
      etag: header(response, 'etag'),
      lastModified: header(response, 'last-modified'),
    };
  }
}

/** Validators are those of the first URL: where it leads to, the same date or tag may stand for other bytes. */
function conditionsOf({ trail, validators }: Followed): Conditions {
  if (trail.length > 1) return {};
  return {
    ...(validators?.etag ? { 'if-none-match': validators.etag } : {}),
    ...(validators?.lastModified ? { 'if-modified-since': validators.lastModified } : {}),
  };
}

function headers(response: Dispatcher.ResponseData, name: string): string[] {
  return [response.headers[name] ?? []].flat();
}

/** The first of that name: whoever sends two contradicts himself. */
function header(response: Dispatcher.ResponseData, name: string): string | null {
  return headers(response, name)[0] ?? null;
}

function redirectTarget(location: string, base: string): string {
  // undici reads headers as latin1; servers that do not escape their Location send UTF-8.
  const target = Buffer.from(location, 'latin1').toString('utf8');
  try {
    return canonicalUrl(URL.canParse(target, base) ? new URL(target, base).href : target);
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    // As where a redirect has no Location: nothing is to be had under this URL.
    throw new RejectedError('gone', `redirect from ${placeOf(base)}: ${error.message}`);
  }
}

/** A permit that comes when nobody waits for it any more is given back. */
async function admitted(permit: Promise<Leave>, signal: AbortSignal): Promise<Leave> {
  try {
    return await orAborted(signal, permit);
  } catch (error) {
    permit.then(
      (leave) => leave(),
      () => undefined,
    );
    throw error;
  }
}

/** Host and path, the part of a URL that may be shown: a query can be a signature. */
function placeOf(url: string): string {
  const { host, pathname } = new URL(url);
  return `${host}${pathname}`.slice(0, 200);
}
