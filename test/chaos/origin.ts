/** The web of a run: any number of hosts, images that follow from their numbers, and a log of every request. */
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import sharp from 'sharp';

/** Bytes that the workers of a run die of; see `app.ts`. */
export const POISON = Buffer.from('an image that kills who processes it');

export interface OriginRequest {
  /** Path with query, as in the URL. */
  readonly path: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
}

/**
 * Serves `/<anything>/c<number>.png`: an image that is the same for the same number, and another for another. With
 * `?poison` it carries `POISON`; `/status/<code>/…` answers with that code.
 */
export class Origin implements AsyncDisposable {
  readonly requests: OriginRequest[] = [];
  readonly #images = new Map<string, Promise<Buffer>>();
  readonly #server: Server;
  #url = '';

  private constructor(
    /** Milliseconds that every answer takes. */
    private readonly latencyMs: number,
  ) {
    this.#server = createServer(async (request, response) => {
      const path = request.url ?? '/';
      this.requests.push({ path, at: Date.now() });
      if (this.latencyMs > 0) await pause(this.latencyMs);
      const status = /^\/status\/(\d{3})\//.exec(path)?.[1];
      const number = /\/c(\d+)\.png/.exec(path)?.[1];
      if (status || number === undefined) {
        response.writeHead(Number(status ?? 404)).end();
        return;
      }
      const body = await this.#image(Number(number), path.endsWith('?poison'));
      response.writeHead(200, { 'content-type': 'image/png', 'content-length': body.length }).end(body);
    });
  }

  static async start({ latencyMs = 5 }: { latencyMs?: number } = {}): Promise<Origin> {
    const origin = new Origin(latencyMs);
    origin.#server.listen(0, '127.0.0.1');
    await once(origin.#server, 'listening');
    origin.#url = `http://127.0.0.1:${(origin.#server.address() as AddressInfo).port}`;
    return origin;
  }

  get port(): number {
    return Number(new URL(this.#url).port);
  }

  /** The URL with this number that serves this content; further numbers of one content are further URLs of it. */
  imageUrl(content: number, copy = 0, { poison = false } = {}): string {
    return `${this.#url}/${copy}/c${content}.png${poison ? '?poison' : ''}`;
  }

  statusUrl(status: number, number: number): string {
    return `${this.#url}/status/${status}/${number}`;
  }

  /** How often each URL was asked for. */
  counts(): Map<string, number> {
    const counts = new Map<string, number>();
    for (const { path } of this.requests) counts.set(this.#url + path, (counts.get(this.#url + path) ?? 0) + 1);
    return counts;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  /** A 32 x 32 mosaic of 64 grey fields whose greys are the number's own: another picture for every number. */
  #image(number: number, poison: boolean): Promise<Buffer> {
    const key = `${number}${poison}`;
    let image = this.#images.get(key);
    if (!image) {
      image = drawn(number, poison);
      this.#images.set(key, image);
      // Copies come soon after one another, if at all.
      if (this.#images.size > 5_000) this.#images.delete(this.#images.keys().next().value as string);
    }
    return image;
  }
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

/** Numbers from 0 to 1 that follow from a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
