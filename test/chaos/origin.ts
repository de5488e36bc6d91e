/** The web of a run: hosts, images that follow from their numbers, what is no image, and a log of every request. */
import { once } from 'node:events';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import sharp from 'sharp';
import type { RejectReason } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { randomOf } from './random.js';

/** Bytes that the workers of a run die of; see `app.ts`. */
export const POISON = Buffer.from('an image that kills who processes it');

export interface OriginRequest {
  readonly url: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
}

/** What a URL serves in the end: bytes with this SHA-256, or what is refused for good. */
export type Served = { readonly hash: string } | { readonly refusal: RejectReason };

export interface OriginOptions {
  /** Milliseconds that every answer takes. Default 5. */
  readonly latencyMs?: number | undefined;
  /** Ports of 127.0.0.1, each a host of its own to the workers. Default 1. */
  readonly hosts?: number | undefined;
  /** Whether there are robots rules, which close `/closed/`. Default false. */
  readonly robots?: boolean | undefined;
}

const ROBOTS = 'User-agent: *\nDisallow: /closed/\n';
const REFUSALS: Readonly<Record<number, RejectReason>> = { 403: 'forbidden', 404: 'gone', 410: 'gone' };
/** Copies come soon after one another, if at all. */
const IMAGES_KEPT = 5_000;

/**
 * Serves `/<anything>/c<number>.png`: an image that is the same for the same number, and another for another. With
 * `?poison` it carries `POISON`; below `/flaky/` the first request of each URL is answered with 500, below `/hanging/`
 * its answer never ends; `/words/…` is no image, and `/status/<code>/…` answers with that code.
 */
export class Origin implements AsyncDisposable {
  readonly requests: OriginRequest[] = [];
  /** How often a robots.txt was asked for, which is not among the requests. */
  robotsRequests = 0;
  readonly #images = new Map<string, Promise<Buffer>>();
  readonly #hashes = new Map<string, string>();
  readonly #seen = new Set<string>();
  readonly #servers: Server[] = [];
  readonly #bases: string[] = [];

  private constructor(private readonly options: OriginOptions) {}

  static async start(options: OriginOptions = {}): Promise<Origin> {
    const origin = new Origin(options);
    for (let i = 0; i < (options.hosts ?? 1); i++) await origin.#listen();
    return origin;
  }

  /** The URL with this number that serves this content; further numbers of one content are further URLs of it. */
  imageUrl(content: number, copy = 0, { poison = false } = {}): string {
    return this.#at(content + copy, `/${copy}/c${content}.png${poison ? '?poison' : ''}`);
  }

  /** An image whose first request fails. */
  flakyUrl(content: number): string {
    return this.#at(content, `/flaky/c${content}.png`);
  }

  /** An image whose first answer never ends. */
  hangingUrl(content: number): string {
    return this.#at(content, `/hanging/c${content}.png`);
  }

  /** An image that robots rules close, where there are any. */
  closedUrl(content: number): string {
    return this.#at(content, `/closed/c${content}.png`);
  }

  wordsUrl(number: number): string {
    return this.#at(number, `/words/${number}.png`);
  }

  statusUrl(status: number, number: number): string {
    return this.#at(number, `/status/${status}/${number}`);
  }

  /** What a crawl of the URL comes to; `null` where this is not the site that serves it. */
  async served(url: string): Promise<Served | null> {
    const base = this.#bases.find((one) => url.startsWith(`${one}/`));
    if (!base) return null;
    const path = url.slice(base.length);
    if (this.options.robots && path.startsWith('/closed/')) return { refusal: 'robots' };
    if (path.startsWith('/words/')) return { refusal: 'not-an-image' };
    const image = imageOf(path);
    if (image) return { hash: await this.#hash(image.number, image.poison) };
    const refusal = REFUSALS[statusOf(path) ?? 404];
    return refusal ? { refusal } : null;
  }

  /** Whether the first request of the URL is in vain. */
  failsFirst(url: string): boolean {
    return /^\/(flaky|hanging)\//.test(new URL(url).pathname);
  }

  /** How often each URL was asked for. */
  counts(): Map<string, number> {
    const counts = new Map<string, number>();
    for (const { url } of this.requests) counts.set(url, (counts.get(url) ?? 0) + 1);
    return counts;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) {
      server.closeAllConnections();
      server.close();
    }
  }

  #at(number: number, path: string): string {
    return `${this.#bases[number % this.#bases.length]}${path}`;
  }

  async #listen(): Promise<void> {
    let base = '';
    const server = createServer((request, response) => this.#answer(base, request.url ?? '/', response));
    this.#servers.push(server);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    this.#bases.push(base);
  }

  async #answer(base: string, path: string, response: ServerResponse): Promise<void> {
    if (path === '/robots.txt') {
      this.robotsRequests += 1;
      response.writeHead(this.options.robots ? 200 : 404).end(this.options.robots ? ROBOTS : '');
      return;
    }
    const url = base + path;
    const isFirst = !this.#seen.has(url);
    this.#seen.add(url);
    this.requests.push({ url, at: Date.now() });
    const { latencyMs = 5 } = this.options;
    if (latencyMs > 0) await pause(latencyMs);
    if (isFirst && path.startsWith('/hanging/')) return drip(response);
    await this.#serve(path, isFirst, response);
  }

  async #serve(path: string, isFirst: boolean, response: ServerResponse): Promise<void> {
    const image = imageOf(path);
    if (path.startsWith('/words/')) response.writeHead(200, { 'content-type': 'text/html' }).end(`<p>${path}</p>`);
    else if (isFirst && path.startsWith('/flaky/')) response.writeHead(500).end();
    else if (!image) response.writeHead(statusOf(path) ?? 404).end();
    else {
      const body = await this.#image(image.number, image.poison);
      response.writeHead(200, { 'content-type': 'image/png', 'content-length': body.length }).end(body);
    }
  }

  async #hash(number: number, poison: boolean): Promise<string> {
    const key = `${number}${poison}`;
    const hash = this.#hashes.get(key) ?? sha256(await this.#image(number, poison));
    this.#hashes.set(key, hash);
    return hash;
  }

  /** A 32 x 32 mosaic of 64 grey fields whose greys are the number's own: another picture for every number. */
  #image(number: number, poison: boolean): Promise<Buffer> {
    const key = `${number}${poison}`;
    let image = this.#images.get(key);
    if (!image) {
      image = drawn(number, poison);
      this.#images.set(key, image);
      if (this.#images.size > IMAGES_KEPT) this.#images.delete(this.#images.keys().next().value as string);
    }
    return image;
  }
}

/** Says a little every second, for ever: nobody can tell that it comes to nothing. */
function drip(response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'image/png' });
  const saying = setInterval(() => response.write(' '), 1_000);
  response.on('close', () => clearInterval(saying));
}

function imageOf(path: string): { number: number; poison: boolean } | null {
  const number = /\/c(\d+)\.png/.exec(path)?.[1];
  return number === undefined ? null : { number: Number(number), poison: path.endsWith('?poison') };
}

function statusOf(path: string): number | null {
  const status = /^\/status\/(\d{3})\//.exec(path)?.[1];
  return status === undefined ? null : Number(status);
}

async function drawn(number: number, poison: boolean): Promise<Buffer> {
  const random = randomOf(number + 1);
  const fields = Array.from({ length: 64 }, () => Math.floor(random() * 256));
  const data = Buffer.alloc(32 * 32);
  for (let i = 0; i < data.length; i++) data[i] = fields[(i >> 7) * 8 + ((i & 31) >> 2)] as number;
  const png = await sharp(data, { raw: { width: 32, height: 32, channels: 1 } })
    .png({ compressionLevel: 1 })
    .toBuffer();
  // Behind the last chunk nobody looks.
  return poison ? Buffer.concat([png, POISON]) : png;
}
