/** The demo's web site: photographs with real faces, copies of them, and files that no crawler should trust. */
import { readFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { dirname, join } from 'node:path';
import sharp from 'sharp';

export interface DemoSite extends AsyncDisposable {
  readonly port: number;
  /** Every URL worth crawling, the bad ones included. */
  readonly urls: string[];
  /** Requests for images so far. */
  readonly requests: () => number;
}

interface Page {
  readonly body: Buffer;
  readonly type?: string;
  readonly status?: number;
  readonly location?: string;
}

const PHOTOGRAPHS = 6;
const ROBOTS = 'User-agent: *\nDisallow: /private/\n';

export async function startDemoSite(): Promise<DemoSite> {
  const pages = await makePages();
  let requests = 0;
  const server = createServer((request, response) => {
    if (request.url === '/robots.txt') return void response.end(ROBOTS);
    requests += 1;
    const page = pages.get(request.url ?? '/');
    if (!page) return void response.writeHead(404).end();
    const headers: Record<string, string> = { 'content-type': page.type ?? 'image/jpeg' };
    if (page.location) headers.location = page.location;
    response.writeHead(page.status ?? 200, headers).end(page.body);
  });
  const port = await listening(server);
  return {
    port,
    urls: [...pages.keys(), '/missing.jpg'].map((path) => `http://127.0.0.1:${port}${path}`),
    requests: () => requests,
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}

async function makePages(): Promise<Map<string, Page>> {
  const pages = new Map<string, Page>();
  for (let n = 1; n <= PHOTOGRAPHS; n++) {
    const photograph = await readPhotograph(n);
    pages.set(`/photo-${n}.jpg`, { body: photograph });
    pages.set(`/photo-${n}-again.jpg`, { body: photograph });
    pages.set(`/photo-${n}-recompressed.jpg`, { body: await sharp(photograph).jpeg({ quality: 60 }).toBuffer() });
    pages.set(`/photo-${n}-small.webp`, {
      body: await sharp(photograph).resize({ width: 960 }).webp().toBuffer(),
      type: 'image/webp',
    });
  }
  const first = await readPhotograph(1);
  const meadow = { create: { width: 640, height: 480, channels: 3, background: '#7a9' } } as const;
  pages.set('/no-face.png', { body: await sharp(meadow).png().toBuffer(), type: 'image/png' });
  pages.set('/page.jpg', { body: Buffer.from('<!doctype html><p>not an image'), type: 'image/jpeg' });
  pages.set('/empty.jpg', { body: Buffer.alloc(0) });
  pages.set('/truncated.jpg', { body: first.subarray(0, first.length / 3) });
  pages.set('/drawing.svg', { body: Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>'), type: 'image/svg+xml' });
  pages.set('/removed.jpg', { body: Buffer.alloc(0), status: 410 });
  pages.set('/members.jpg', { body: Buffer.alloc(0), status: 403 });
  pages.set('/private/portrait.jpg', { body: first });
  pages.set('/inside.jpg', { body: Buffer.alloc(0), status: 302, location: 'http://169.254.169.254/latest/meta-data' });
  return pages;
}

/** One of six photographs, 1,920 pixels wide, with three to five people; they come with the face models' package. */
export function readPhotograph(n: number): Promise<Buffer> {
  const folder = dirname(createRequire(import.meta.url).resolve('@vladmandic/face-api/package.json'));
  return readFile(join(folder, 'demo', `sample${n}.jpg`));
}

function listening(server: Server): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
  });
}
