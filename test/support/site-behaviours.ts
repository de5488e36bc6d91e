/** Every way for a site to misbehave. Each ends by itself when the client closes the socket. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { brotliCompressSync, constants, deflateRawSync, deflateSync, gzipSync } from 'node:zlib';

export type Answer = (request: IncomingMessage, response: ServerResponse) => void;

const MiB = 1024 * 1024;
const HTML = '<!doctype html><title>Not found</title><p>The picture you look for is gone.\n';

// Compressed streams that consist of parts, each whole for itself, can be of any size: see the bombs.
/** A MiB of zeros in 1 KB. gzip members can follow each other (RFC 1952 section 2.2). */
const gzipSpark = once(() => gzipSync(Buffer.alloc(MiB)));
/** The same as blocks that end at a byte and are not the last (RFC 1951 section 3.2.3). */
const deflateSpark = once(() => deflateRawSync(Buffer.alloc(MiB), { finishFlush: constants.Z_FULL_FLUSH }));
/** 64 MiB of zeros in 102 bytes. */
const brotliBomb = once(() =>
  brotliCompressSync(Buffer.alloc(64 * MiB), { params: { [constants.BROTLI_PARAM_QUALITY]: 3 } }),
);

export const BEHAVIOURS = {
  // Silent and slow.

  /** Takes the request and never answers. */
  hang: () => undefined,
  /** Sends half of what it announced, then nothing. */
  'hang-midway': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789');
  },
  /** 404, half of the page it announced, then nothing. */
  'hang-missing': ({ socket }) => {
    raw(socket, 'HTTP/1.1 404 Not Found\r\ncontent-length: 20\r\n\r\n0123456789');
  },
  /** One byte of a header every 5 ms for ever: never idle, never done. */
  'slow-headers': ({ socket }) => drip(raw(socket, 'HTTP/1.1 200 OK\r\nx-slow: ')),
  /** Early hints (RFC 8297) every 5 ms for ever, and never an answer. */
  'slow-hints': ({ socket }) => drip(socket, 'HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n'),
  /** A byte of a chunk's extension (RFC 9112 section 7.1.1) every 5 ms for ever, and never one of the body. */
  'slow-extension': ({ socket }) => drip(raw(socket, 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a=')),
  /** 200, then one byte of a body every 5 ms for ever. */
  'slow-body': (_request, response) => drip(response.writeHead(200, { 'content-type': 'image/jpeg' })),

  // Without end.

  /** 200 and zeros for ever. */
  endless: (_request, response) => pour(response.writeHead(200, { 'content-type': 'image/jpeg' })),
  /** 404 and zeros for ever. */
  'endless-missing': (_request, response) => pour(response.writeHead(404)),
  /** Announces 10 GB and starts to send them. */
  'huge-length': (_request, response) => pour(response.writeHead(200, { 'content-length': '10000000000' })),
  /** Header lines for ever. */
  'endless-headers': ({ socket }) =>
    pour(raw(socket, 'HTTP/1.1 200 OK\r\n'), Buffer.from('x-more: and more\r\n'.repeat(1_000))),
  /** One header line that never ends. */
  'endless-header': ({ socket }) => pour(raw(socket, 'HTTP/1.1 200 OK\r\nx-long: '), Buffer.alloc(65_536, 'x')),
  /** Early hints for ever, and never an answer. */
  'endless-hints': ({ socket }) =>
    pour(socket, Buffer.from('HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n'.repeat(100))),
  /** A byte of body, then trailer lines for ever. */
  'endless-trailers': ({ socket }) =>
    pour(
      raw(socket, 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n.\r\n0\r\n'),
      Buffer.from('x-more: and more\r\n'.repeat(1_000)),
    ),
  /** A chunk whose extension never ends. */
  'endless-extension': ({ socket }) =>
    pour(raw(socket, 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a='), Buffer.alloc(65_536, 'x')),

  // Compressed unasked.

  /** 500 MiB in 500 KB. */
  'gzip-bomb': (_request, response) => encoded(response, 'gzip').end(Buffer.concat(Array(500).fill(gzipSpark()))),
  /** 500 MiB in 500 KB. */
  'deflate-bomb': (_request, response) =>
    encoded(response, 'deflate').end(Buffer.concat([ZLIB_HEADER, ...Array(500).fill(deflateSpark())])),
  /** 64 MiB in 102 bytes. */
  'br-bomb': (_request, response) => encoded(response, 'br').end(brotliBomb()),
  /** Input for ever that gives no output: empty members. */
  'gzip-endless': (_request, response) => pour(encoded(response, 'gzip'), gzipSync('')),
  /** The same of empty stored blocks. */
  'deflate-endless': (_request, response) => {
    encoded(response, 'deflate').write(ZLIB_HEADER);
    pour(response, Buffer.from('000000ffff'.repeat(1_000), 'hex'));
  },
  /** The same of empty metadata blocks (RFC 7932 section 9.2), behind a window size of 16 bits. */
  'br-endless': (_request, response) => {
    encoded(response, 'br').write(Buffer.of(0x0c));
    pour(response, Buffer.alloc(65_536, 0x06));
  },
  /** Ten bytes, whole and compressed; then zeros for ever, which belong to nothing. */
  'gzip-trailing': (_request, response) => trailing(response, 'gzip', gzipSync('0123456789')),
  'deflate-trailing': (_request, response) => trailing(response, 'deflate', deflateSync('0123456789')),
  'br-trailing': (_request, response) => trailing(response, 'br', brotliCompressSync('0123456789')),

  // Broken off.

  /** Takes the request and resets the connection. */
  reset: ({ socket }) => socket.resetAndDestroy(),
  /** Takes the request and closes the connection. */
  close: ({ socket }) => void socket.end(),
  /** Answers the first request of a connection; takes the next one, and resets the connection. */
  'reset-kept': ({ socket }, response) => (isKept(socket) ? socket.resetAndDestroy() : response.end('0123456789')),
  /** The same, and closes it. */
  'close-kept': ({ socket }, response) => (isKept(socket) ? void socket.end() : response.end('0123456789')),
  /** Resets in the middle of a header. */
  'reset-in-headers': ({ socket }) => reset(socket, 'HTTP/1.1 200 OK\r\ncontent-le'),
  /** Sends half of what it announced, then resets. */
  'reset-midway': ({ socket }) => reset(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789'),
  /** Resets in the middle of a chunk. */
  'reset-in-chunk': ({ socket }) => reset(socket, 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n01234'),
  /** A chunked body that is cut off. */
  'cut-chunks': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n').end();
  },

  // Not true.

  /** Announces 1,000 bytes, sends ten and ends. */
  'lying-length': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n0123456789').end();
  },
  /** Announces five bytes and sends ten. */
  'lying-short': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n0123456789');
  },
  /** Announces two lengths. */
  'two-lengths': ({ socket }) => {
    raw(socket, 'HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 10\r\n\r\n0123456789');
  },
  /** Does not speak HTTP. */
  garbage: ({ socket }) => {
    raw(socket, 'SSH-2.0-OpenSSH_9.6\r\n').end();
  },
  /** Changes the protocol unasked. */
  upgrade: ({ socket }) => {
    raw(socket, 'HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
  },
  /** 200 and a page of HTML that says so. */
  html: (_request, response) => response.writeHead(200, { 'content-type': 'text/html' }).end(HTML),
  /** 200 and a page of HTML that says it was a JPEG. */
  'html-as-jpeg': (_request, response) => response.writeHead(200, { 'content-type': 'image/jpeg' }).end(HTML),
  /** 200 and no body. */
  empty: (_request, response) => response.writeHead(200, { 'content-type': 'image/jpeg' }).end(),
  /** 204. */
  'no-content': (_request, response) => response.writeHead(204).end(),

  // In circles.

  /** Goes to `/end`, with a body of zeros for ever. */
  'redirect-pouring': (_request, response) => pour(response.writeHead(302, { location: '/end' })),
  /** Goes to itself. */
  'redirect-self': ({ url }, response) => response.writeHead(302, { location: url }).end(),
  /** Goes to itself with `?again`, and from there back. */
  'redirect-loop': ({ url = '' }, response) => {
    const [path, query] = url.split('?');
    response.writeHead(302, { location: query === undefined ? `${path}?again` : path }).end();
  },
  /** Goes to a new place every time. */
  'redirect-endless': ({ url = '' }, response) => {
    const { pathname, searchParams } = new URL(url, 'http://site');
    response.writeHead(302, { location: `${pathname}?n=${Number(searchParams.get('n')) + 1}` }).end();
  },
} satisfies Record<string, Answer>;

export type Behaviour = keyof typeof BEHAVIOURS;

/** RFC 1950 section 2.2: deflate with a window of 32 KiB. */
const ZLIB_HEADER = Buffer.of(0x78, 0x9c);
const ZEROS = Buffer.alloc(65_536);

/** Writes the same chunk until the other side has gone, as fast as it is taken. */
export function pour(to: ServerResponse | Socket, chunk: Buffer = ZEROS): void {
  const more = () => {
    while (!to.destroyed && to.write(chunk));
  };
  to.on('drain', more);
  more();
}

function drip(to: ServerResponse | Socket, drop = '.'): void {
  const timer = setInterval(() => to.write(drop), 5);
  to.on('close', () => clearInterval(timer));
}

function encoded(response: ServerResponse, encoding: string): ServerResponse {
  return response.writeHead(200, { 'content-type': 'image/jpeg', 'content-encoding': encoding });
}

function trailing(response: ServerResponse, encoding: string, whole: Buffer): void {
  encoded(response, encoding).write(whole);
  pour(response);
}

/** Past Node's own HTTP, for what it would not let us send. */
function raw(socket: Socket, text: string): Socket {
  socket.write(text);
  return socket;
}

const kept = new WeakSet<Socket>();

/** Whether the socket was asked about before. */
function isKept(socket: Socket): boolean {
  const is = kept.has(socket);
  kept.add(socket);
  return is;
}

function reset(socket: Socket, text: string): void {
  socket.write(text, () => socket.resetAndDestroy());
}

function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
