/** robots.txt of every sort (RFC 9309). All that can be read as rules close the whole site, unless the name says else. */
import type { ServerResponse } from 'node:http';
import { gzipSync } from 'node:zlib';
import { type Answer, BEHAVIOURS, pour } from './site-behaviours.js';

/** What `crawl-delay` asks for, in seconds. */
export const CRAWL_DELAY_S = 2;
/** Where `redirect` goes to. */
export const ROBOTS_ELSEWHERE = '/robots-elsewhere.txt';
/** Closed by `large` in its first line, and by a line that begins behind the first 500 KiB. */
export const LARGE_CLOSES = { early: '/early', late: '/late' } as const;

const CLOSED = 'User-agent: *\nDisallow: /\n';

export const ROBOTS = {
  allow: text('User-agent: *\nAllow: /\n'),
  disallow: text(CLOSED),
  /** 200 and nothing: everything is open. */
  empty: text(''),
  'crawl-delay': text(`User-agent: *\nCrawl-delay: ${CRAWL_DELAY_S}\nDisallow:\n`),
  /** Rules behind a byte order mark, their lines ended by CR LF. */
  'byte-order-mark': text(`\uFEFF${CLOSED.replaceAll('\n', '\r\n')}`),
  /** Compressed, whether asked for or not. */
  gzip: (_request, response) => plain(response, { 'content-encoding': 'gzip' }).end(gzipSync(CLOSED)),
  /** A page for people with status 200, as sites answer that know no 404. */
  html: (_request, response) =>
    response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><title>Welcome</title>\n'),
  /** Bytes that are no text. */
  binary: (_request, response) => plain(response).end(Buffer.from([0, 255, 254, 137, 80, 78, 71, 10, 0, 13, 10, 26])),
  missing: status(404),
  gone: status(410),
  unauthorized: status(401),
  forbidden: status(403),
  throttled: status(429, { 'retry-after': '7' }),
  error: status(500),
  unavailable: status(503),
  /** To the same host; what stands there is up to the test. */
  redirect: status(302, { location: ROBOTS_ELSEWHERE }),
  'redirect-loop': BEHAVIOURS['redirect-loop'],
  /** 600 KiB: rules, comments for the most part, rules. RFC 9309 section 2.5 lets a crawler stop after 500 KiB. */
  large: text(large()),
  /** Rules, then comments for ever. */
  endless: (_request, response) => {
    plain(response).write(CLOSED);
    pour(response, Buffer.from('# and so on\n'.repeat(5_000)));
  },
  slow: BEHAVIOURS['slow-body'],
  hang: BEHAVIOURS.hang,
  reset: BEHAVIOURS.reset,
} satisfies Record<string, Answer>;

export type RobotsSort = keyof typeof ROBOTS;

function plain(response: ServerResponse, headers: Record<string, string> = {}): ServerResponse {
  return response.writeHead(200, { 'content-type': 'text/plain; charset=utf-8', ...headers });
}

function text(body: string): Answer {
  return (_request, response) => plain(response).end(body);
}

function status(code: number, headers: Record<string, string> = {}): Answer {
  return (_request, response) => response.writeHead(code, headers).end();
}

function large(): string {
  const kib = `${'# nothing to see here '.padEnd(63, '.')}\n`.repeat(16);
  return `User-agent: *\nDisallow: ${LARGE_CLOSES.early}\n${kib.repeat(600)}Disallow: ${LARGE_CLOSES.late}\n`;
}
