/** What a site serves: pages that are given, and ways to misbehave, by path. One set for all of its host names or for one. */
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import { type Answer, BEHAVIOURS, type Behaviour } from './site-behaviours.js';
import { ROBOTS, type RobotsSort } from './site-robots.js';

export interface Page {
  body?: Uint8Array | string;
  /** `Content-Type`; `image/jpeg`. */
  type?: string;
  /** 200. */
  status?: number;
  /** With `etag` or `last-modified` among them, a conditional request that still holds is answered with 304. */
  headers?: Record<string, string | string[]>;
  /** Gives the whole page again, whatever the request's conditions. */
  forgetful?: boolean;
}

export interface SiteRequest {
  method: string;
  /** Path and query as they came. */
  path: string;
  /** The name or address in `Host`, without the port. */
  host: string;
  headers: IncomingHttpHeaders;
  /** When it came: milliseconds since the epoch, by a clock that never jumps. */
  at: number;
  /** When its answer was handed over whole, or its socket closed; not there while it is in flight. */
  endedAt?: number;
}

/** A page that keeps whoever asks for it waiting. */
export interface Held {
  url: string;
  /** Answers all who wait, and from now on at once. */
  release(): void;
}

/** A status that says "not now", with `Retry-After` in seconds, as an HTTP-date, or not at all. */
export function throttled(status: 429 | 503, retryAfter?: number | Date): Page {
  const value = retryAfter instanceof Date ? retryAfter.toUTCString() : retryAfter?.toString();
  return { status, headers: value === undefined ? {} : { 'retry-after': value } };
}

export abstract class Pages {
  readonly #answers: Map<string, Answer>;
  readonly #host: string;

  /** @param host the only host name that these pages are for; '' for all that have none of their own */
  constructor(answers: Map<string, Answer>, host = '') {
    this.#answers = answers;
    this.#host = host;
  }

  /** Scheme, host and port, without a slash at the end. */
  abstract get url(): string;

  /** Serves a page, or what a function makes of the request, under `path` (its query ignored) and gives its URL. */
  put(path: string, page: Page | ((request: IncomingMessage) => Page)): string {
    return this.#set(path, (request, response) => {
      serve(typeof page === 'function' ? page(request) : page, request, response);
    });
  }

  behave(path: string, behaviour: Behaviour): string {
    return this.#set(path, BEHAVIOURS[behaviour]);
  }

  /** `/robots.txt` of a sort; one with a text of its own is a page like every other. */
  robots(sort: RobotsSort): string {
    return this.#set('/robots.txt', ROBOTS[sort]);
  }

  /** Sends whoever asks for `path` to `to`, given as it shall stand in `Location`. */
  redirect(path: string, to: string, status = 302): string {
    return this.put(path, { status, headers: { location: to } });
  }

  /** `hops` redirects, one behind the other, from `path` to `to`. */
  chain(path: string, hops: number, to: string): string {
    const places = Array.from({ length: hops }, (_, n) => (n === 0 ? path : `${path}-${n}`));
    places.forEach((place, n) => {
      this.redirect(place, places[n + 1] ?? to);
    });
    return this.url + path;
  }

  /** Answers the next `times` requests for `path` with a status or a page, then as before. */
  failTimes(path: string, times: number, failure: number | Page): string {
    const before = this.#answers.get(this.#host + path) ?? notFound;
    const page = typeof failure === 'number' ? { status: failure } : failure;
    let left = times;
    return this.#set(path, (request, response) => {
      if (left === 0) return before(request, response);
      left -= 1;
      serve(page, request, response);
    });
  }

  /** A page that is served only once it is released: whoever asks before is in flight until then. */
  hold(path: string, page: Page): Held {
    const waiting: (() => void)[] = [];
    let open = false;
    const url = this.#set(path, (request, response) => {
      const answer = () => serve(page, request, response);
      if (open) answer();
      else waiting.push(answer);
    });
    const release = () => {
      open = true;
      for (const answer of waiting.splice(0)) answer();
    };
    return { url, release };
  }

  #set(path: string, answer: Answer): string {
    this.#answers.set(this.#host + path, answer);
    return this.url + path;
  }
}

export function notFound(_request: IncomingMessage, response: ServerResponse): void {
  response.writeHead(404).end();
}

function serve(page: Page, request: IncomingMessage, response: ServerResponse): void {
  const { body = '', type = 'image/jpeg', status = 200, headers = {}, forgetful = false } = page;
  if (status === 200 && !forgetful && isUnchanged(request, headers)) return void response.writeHead(304, headers).end();
  response.writeHead(status, { 'content-type': type, ...headers }).end(body);
}

/** RFC 9110 section 13.2.2: where both conditions are there, the entity tag alone decides. */
function isUnchanged(request: IncomingMessage, headers: Record<string, string | string[]>): boolean {
  const { 'if-none-match': tags, 'if-modified-since': since } = request.headers;
  const { etag, 'last-modified': modified } = headers;
  if (tags !== undefined)
    return typeof etag === 'string' && (tags.trim() === '*' || opaque(tags).includes(opaque(etag)[0]));
  return since !== undefined && typeof modified === 'string' && Date.parse(modified) <= Date.parse(since);
}

/** The tags of a list, weak and strong alike (weak comparison, RFC 9110 section 8.8.3.2). */
function opaque(tags: string): (string | undefined)[] {
  return tags.match(/"[^"]*"/g) ?? [];
}
