/**
 * A web site on loopback that can be good or bad: it serves what it is given (`site-pages.ts`), misbehaves on request
 * (`site-behaviours.ts`, `site-robots.ts`), and counts at the listener what reached it. Real sockets, nothing mocked.
 * Names of its own come from `dns.ts`.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { type AddressInfo, createServer as createTcpServer, type Server, type Socket } from 'node:net';
import type { Answer } from './site-behaviours.js';
import { notFound, Pages, type SiteRequest } from './site-pages.js';

export type { Behaviour } from './site-behaviours.js';
export { type Page, type Pages, type SiteRequest, throttled } from './site-pages.js';
export { CRAWL_DELAY_S, LARGE_CLOSES, ROBOTS_ELSEWHERE, type RobotsSort } from './site-robots.js';

export interface SiteOptions {
  /** The address to listen on; 127.0.0.1. */
  host?: string;
  /** Port; one that is free. */
  port?: number;
  /** PEM; makes it an https site. */
  tls?: { key: string; cert: string };
  /** Does to every connection, and never says a word: `silent` keeps it, so that handshakes hang; `reset` resets it. */
  mute?: 'silent' | 'reset';
  /** Server names that clients asked for in TLS end up here. */
  onServerName?: (name: string) => void;
}

export class Site extends Pages implements AsyncDisposable {
  /** Requests in the order they came. */
  readonly requests: SiteRequest[] = [];
  /** Connections accepted so far; 0 means that nobody ever reached the listener. */
  connections = 0;
  /** Bytes handed to sockets that are closed by now; what the kernel still held is counted. */
  bytesSent = 0;
  readonly #answers: Map<string, Answer>;
  readonly #load = new Map<string, { now: number; highest: number }>();
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;
  readonly #scheme: 'http' | 'https';
  readonly #waits = new Set<() => void>();

  constructor({ tls, mute, onServerName }: SiteOptions = {}) {
    const answers = new Map<string, Answer>();
    super(answers);
    this.#answers = answers;
    this.#scheme = tls ? 'https' : 'http';
    const answer = (request: IncomingMessage, response: ServerResponse) => this.#answer(request, response);
    const sni = (name: string, done: (error: null) => void) => {
      onServerName?.(name);
      done(null);
    };
    // Read, though never answered: a socket that nobody reads does not notice that the client has gone.
    if (mute === 'silent') this.#server = createTcpServer((socket) => socket.resume());
    else if (mute === 'reset') this.#server = createTcpServer((socket) => socket.resetAndDestroy());
    else if (tls) this.#server = createTlsServer({ ...tls, SNICallback: sni }, answer);
    else this.#server = createServer(answer);
    this.#server.on('connection', (socket: Socket) => this.#accept(socket));
    // A client that walks out of a handshake is none of the site's business.
    this.#server.on('tlsClientError', () => undefined);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** The site's address without a slash at the end, such as `http://127.0.0.1:4711`. */
  override get url(): string {
    const { address, family, port } = this.#server.address() as AddressInfo;
    return `${this.#scheme}://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
  }

  /** Sockets that are open now. */
  get openConnections(): number {
    return this.#sockets.size;
  }

  async listen({ host = '127.0.0.1', port = 0 }: SiteOptions = {}): Promise<this> {
    this.#server.listen(port, host);
    await once(this.#server, 'listening');
    return this;
  }

  /**
   * The pages of one host name alone, which go before those for all. The name is the `Host` of a request; that it leads
   * here is up to the client's `lookup`.
   */
  named(host: string): Pages {
    return new NamedHost(this, this.#answers, host);
  }

  /** Requests for a host name, in the order they came. */
  requestsFor(host: string): SiteRequest[] {
    return this.requests.filter((request) => request.host === host);
  }

  /** How often `path` was asked for, whatever the host and the query. */
  countOf(path: string): number {
    return this.requests.filter((request) => request.path.split('?')[0] === path).length;
  }

  /**
   * Requests that are being answered now, and the most there ever were at a time; of one host name or of all. A client
   * that gives up is noticed when its socket closes here, a moment after it turned to something else.
   */
  inFlight(host = ''): { now: number; highest: number } {
    return { ...(this.#load.get(host) ?? { now: 0, highest: 0 }) };
  }

  /** Resolves once `condition` holds; looked at whenever a connection or a request comes or goes. */
  async until(condition: (site: this) => boolean): Promise<void> {
    while (!condition(this)) await new Promise<void>((resolve) => this.#waits.add(resolve));
  }

  async close(): Promise<void> {
    if (!this.#server.listening) return;
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #accept(socket: Socket): void {
    this.connections += 1;
    this.#sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.bytesSent += socket.bytesWritten;
      this.#sockets.delete(socket);
      this.#changed();
    });
    this.#changed();
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const { method = '', url = '', headers } = request;
    const path = url.split('?')[0] ?? '';
    const host = (headers.host ?? '').replace(/:\d+$/, '');
    const logged: SiteRequest = { method, path: url, host, headers, at: now() };
    this.requests.push(logged);
    this.#count(host, 1);
    response.on('close', () => {
      logged.endedAt = now();
      this.#count(host, -1);
    });
    (this.#answers.get(host + path) ?? this.#answers.get(path) ?? notFound)(request, response);
  }

  #count(host: string, change: 1 | -1): void {
    for (const key of ['', host]) {
      const load = this.#load.get(key) ?? { now: 0, highest: 0 };
      load.now += change;
      load.highest = Math.max(load.highest, load.now);
      this.#load.set(key, load);
    }
    this.#changed();
  }

  #changed(): void {
    for (const wake of this.#waits) wake();
    this.#waits.clear();
  }
}

class NamedHost extends Pages {
  readonly #site: Site;
  readonly #host: string;

  constructor(site: Site, answers: Map<string, Answer>, host: string) {
    super(answers, host);
    this.#site = site;
    this.#host = host;
  }

  override get url(): string {
    const { protocol, port } = new URL(this.#site.url);
    return `${protocol}//${this.#host}:${port}`;
  }
}

/** A site that listens. Hold it with `await using`: its sockets are closed then, whoever still uses them. */
export function startSite(options: SiteOptions = {}): Promise<Site> {
  return new Site(options).listen(options);
}

/** The wall clock at start and a clock that never jumps since then. */
function now(): number {
  return performance.timeOrigin + performance.now();
}
