/**
 * A web site on loopback that can be good or bad: it serves what it is given, misbehaves on request, and counts at the
 * listener what reached it. Real sockets, nothing mocked.
 */
import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { type AddressInfo, createServer as createTcpServer, type Server, type Socket } from 'node:net';
import { gzipSync } from 'node:zlib';

export interface Page {
  body?: Uint8Array | string;
  /** `Content-Type`; `image/jpeg`. */
  type?: string;
  /** 200. */
  status?: number;
  headers?: Record<string, string | string[]>;
}

export interface SiteRequest {
  method: string;
  /** Path and query as they came. */
  path: string;
  headers: IncomingHttpHeaders;
  /** Milliseconds of the clock. */
  at: number;
}

export interface SiteOptions {
  /** The address to listen on; 127.0.0.1. */
  host?: string;
  /** Port; one that is free. */
  port?: number;
  /** PEM; makes it an https site. */
  tls?: { key: string; cert: string };
  /** Accepts connections and never says a word, so that every handshake hangs. */
  silent?: boolean;
  /** Server names that clients asked for in TLS end up here. */
  onServerName?: (name: string) => void;
}

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

/** A MiB of zeros in 1 KB. Members can follow each other (RFC 1952 section 2.2), which makes a bomb of any size. */
const SPARK = gzipSync(Buffer.alloc(1024 * 1024));

/** Every way to misbehave. Each ends by itself when the client closes the socket. */
const BEHAVIOURS = {
  /** 200 and zeros for ever. */
  endless: (_request, response) => pour(response.writeHead(200, { 'content-type': 'image/jpeg' })),
  /** 404 and zeros for ever. */
  'endless-missing': (_request, response) => pour(response.writeHead(404)),
  /** 404, half of the page it announced, then nothing. */
  'hang-missing': ({ socket }) => {
    raw(socket, 'HTTP/1.1 404 Not Found\r\ncontent-length: 20\r\n\r\n0123456789');
  },
  /** Header lines for ever. */
  'endless-headers': ({ socket }) =>
    pour(raw(socket, 'HTTP/1.1 200 OK\r\n'), Buffer.from('x-more: and more\r\n'.repeat(1_000))),
  /** 200, then one byte every 5 ms for ever: never idle, never done. */
  'slow-loris': (_request, response) => {
    response.writeHead(200, { 'content-type': 'image/jpeg' });
    const drip = setInterval(() => response.write('.'), 5);
    response.on('close', () => clearInterval(drip));
  },
  /** Takes the request and resets the connection. */
  reset: ({ socket }) => socket.resetAndDestroy(),
  /** Sends half of what it announced, then resets. */
  'reset-midway': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789', () => socket.resetAndDestroy());
  },
  /** Takes the request and never answers. */
  hang: () => undefined,
  /** Sends half of what it announced, then nothing. */
  'hang-midway': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789');
  },
  /** Announces 1,000 bytes, sends ten and ends. */
  'lying-length': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n0123456789').end();
  },
  /** Announces five bytes and sends ten. */
  'lying-short': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n0123456789');
  },
  /** Announces 10 GB and starts to send them. */
  'huge-length': (_request, response) => pour(response.writeHead(200, { 'content-length': '10000000000' })),
  /** Does not speak HTTP. */
  garbage: ({ socket }) => {
    raw(socket, 'SSH-2.0-OpenSSH_9.6\r\n').end();
  },
  /** A chunked body that is cut off. */
  'cut-chunks': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n').end();
  },
  /** Compresses unasked: 500 MiB in 500 KB. */
  'gzip-bomb': (_request, response) => {
    const bomb = Buffer.concat(Array<Buffer>(500).fill(SPARK));
    response.writeHead(200, { 'content-type': 'image/jpeg', 'content-encoding': 'gzip' }).end(bomb);
  },
  /** Compressed input without end that gives no output: empty gzip members, one after the other. */
  'gzip-endless': (_request, response) =>
    pour(response.writeHead(200, { 'content-encoding': 'gzip' }), gzipSync(Buffer.alloc(0))),
  /** Goes to itself with `?again`, and from there back. */
  'redirect-loop': (request, response) => {
    const [path, query] = (request.url ?? '').split('?');
    response.writeHead(302, { location: query === undefined ? `${path}?again` : path }).end();
  },
  /** Goes to a new place every time. */
  'redirect-endless': (request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? '', 'http://site');
    response.writeHead(302, { location: `${pathname}?n=${Number(searchParams.get('n')) + 1}` }).end();
  },
  /** 200 and no body. */
  empty: (_request, response) => response.writeHead(200, { 'content-type': 'image/jpeg' }).end(),
  /** 204. */
  'no-content': (_request, response) => response.writeHead(204).end(),
} satisfies Record<string, Answer>;

export type Behaviour = keyof typeof BEHAVIOURS;

export class Site implements AsyncDisposable {
  /** Requests in the order they came. */
  readonly requests: SiteRequest[] = [];
  /** Connections accepted so far; 0 means that nobody ever reached the listener. */
  connections = 0;
  /** Bytes handed to sockets that are closed by now; what the kernel still held is counted. */
  bytesSent = 0;
  readonly #answers = new Map<string, Answer>();
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;
  readonly #scheme: 'http' | 'https';
  readonly #waits = new Set<() => void>();

  constructor({ tls, silent, onServerName }: SiteOptions = {}) {
    this.#scheme = tls ? 'https' : 'http';
    const answer = (request: IncomingMessage, response: ServerResponse) => this.#answer(request, response);
    const sni = (name: string, done: (error: null) => void) => {
      onServerName?.(name);
      done(null);
    };
    // Read, though never answered: a socket that nobody reads does not notice that the client has gone.
    if (silent) this.#server = createTcpServer((socket) => socket.resume());
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
  get url(): string {
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

  /** Serves a page under `path` (its query ignored) and gives its URL. */
  put(path: string, { body = '', type = 'image/jpeg', status = 200, headers = {} }: Page): string {
    return this.#set(path, (_request, response) => {
      response.writeHead(status, { 'content-type': type, ...headers }).end(body);
    });
  }

  behave(path: string, behaviour: Behaviour): string {
    return this.#set(path, BEHAVIOURS[behaviour]);
  }

  /** Sends whoever asks for `path` to `to`, given as it shall stand in `Location`. */
  redirect(path: string, to: string, status = 302): string {
    return this.#set(path, (_request, response) => {
      response.writeHead(status, { location: to }).end();
    });
  }

  /** Answers the next `times` requests for `path` with `status`, then as before. */
  failTimes(path: string, times: number, status: number, headers: Record<string, string> = {}): string {
    const before = this.#answers.get(path);
    let left = times;
    return this.#set(path, (request, response) => {
      if (left > 0) {
        left -= 1;
        response.writeHead(status, headers).end();
      } else (before ?? notFound)(request, response);
    });
  }

  /** How often `path` was asked for, whatever the query. */
  countOf(path: string): number {
    return this.requests.filter((request) => request.path.split('?')[0] === path).length;
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

  #set(path: string, answer: Answer): string {
    this.#answers.set(path, answer);
    return this.url + path;
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
    this.requests.push({ method, path: url, headers, at: Date.now() });
    this.#changed();
    (this.#answers.get(url.split('?')[0] ?? '') ?? notFound)(request, response);
  }

  #changed(): void {
    for (const wake of this.#waits) wake();
    this.#waits.clear();
  }
}

/** A site that listens. Hold it with `await using`: its sockets are closed then, whoever still uses them. */
export function startSite(options: SiteOptions = {}): Promise<Site> {
  return new Site(options).listen(options);
}

function notFound(_request: IncomingMessage, response: ServerResponse): void {
  response.writeHead(404).end();
}

/** Past Node's own HTTP, for what it would not let us send. */
function raw(socket: Socket, text: string, sent?: () => void): Socket {
  socket.write(text, sent);
  return socket;
}

const ZEROS = Buffer.alloc(65_536);

/** Writes the same chunk until the other side has gone, as fast as it is taken. */
function pour(to: ServerResponse | Socket, chunk: Buffer = ZEROS): void {
  const more = () => {
    while (!to.destroyed && to.write(chunk));
  };
  to.on('drain', more);
  more();
}
