/** Read what is known of an image, and its bytes. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { App } from '../app.js';
import { type Answer, known } from '../cache/answer.js';
import { viewImage } from '../cache/image-view.js';
import { lookup } from '../cache/tier.js';
import { type CrawlContent, crawlContents } from '../kinds/crawl.js';
import { sha256 } from '../kinds/identity.js';
import type { AccessRules } from './access.js';
import { operations, serve } from './api.js';
import { HttpProblem, notFound } from './problem.js';
import { imagePath } from './schemas.js';

export function imageRoutes(server: FastifyInstance, app: App, access: AccessRules): void {
  serve(server, operations.image, async (request) => {
    const { tenantId, contentHash } = pathOf(request, access);
    const view = await viewImage(app.connection, tenantId, contentHash, app.models.embedding);
    if (!view) throw notFound();
    return view;
  });

  serve(server, operations.raw, async (request, reply) => {
    const { contentHash, content } = await recorded(request, app, access);
    const { rawKey: key, mimeType } = content;
    const sound = (bytes: Buffer) => sha256(bytes) === contentHash;
    const object = { key, etag: `"${contentHash}"`, type: mimeType ?? 'application/octet-stream', sound };
    return sendObject(request, reply, app, object);
  });

  serve(server, operations.thumbnail, async (request, reply) => {
    const { contentHash, content } = await recorded(request, app, access);
    const { thumbnailKey: key, storedAt } = content;
    if (!key) throw notFound();
    // Another release may draw it otherwise: whoever stores the image anew names it anew.
    const object = { key, etag: `"thumbnail-${contentHash}-${storedAt}"`, type: 'image/jpeg', sound: () => true };
    return sendObject(request, reply, app, object);
  });
}

function pathOf(request: FastifyRequest, access: AccessRules): { tenantId: string; contentHash: string } {
  const allowed = access.viewer(request);
  const path = imagePath.safeParse(request.params);
  if (!path.success || !allowed.mayUse(path.data.tenantId)) throw notFound();
  return path.data;
}

async function recorded(
  request: FastifyRequest,
  app: App,
  access: AccessRules,
): Promise<{ contentHash: string; content: CrawlContent }> {
  const { tenantId, contentHash } = pathOf(request, access);
  const looked = [lookup(tenantId, crawlContents, contentHash)];
  const [found] = await app.connection.hybrid.readMany(looked, { counted: false });
  const content = known(found as Answer<CrawlContent>);
  if (!content) throw notFound();
  return { contentHash, content };
}

interface SentObject {
  readonly key: string;
  readonly etag: string;
  readonly type: string;
  /** Whether they are the bytes that were stored, as far as can be told. */
  sound(bytes: Buffer): boolean;
}

/** The token was seen and the record found; only then is a browser told that what it has is still good. */
async function sendObject(
  request: FastifyRequest,
  reply: FastifyReply,
  app: App,
  { key, etag, type, sound }: SentObject,
): Promise<Buffer | FastifyReply> {
  if (names(request.headers['if-none-match'], etag)) return reply.code(304).headers(headersOf(etag)).send();
  const bytes = await app.objects.get(key).catch((err: unknown) => {
    app.log.error({ err, requestId: request.id }, 'request failed: the object store did not answer');
    throw new HttpProblem(503, 'the object store did not answer: try again soon');
  });
  if (!bytes)
    throw new HttpProblem(503, 'the object of this image is missing from the store: crawl its URL again with `force`');
  if (!sound(bytes))
    throw new HttpProblem(503, 'the object of this image is damaged in the store: crawl its URL again with `force`');
  reply.type(type).headers(headersOf(etag));
  return bytes;
}

function headersOf(etag: string): Record<string, string> {
  return {
    etag,
    // Kept, but asked for each time: an image may be forgotten, and another person may sit down at the browser.
    'cache-control': 'private, no-cache',
    vary: 'authorization',
    // A browser that is logged in to the page would show it inside of any other.
    'cross-origin-resource-policy': 'same-origin',
    'content-security-policy': "default-src 'none'; sandbox",
  };
}

/** By the weak comparison of RFC 9110, 13.1.2: a proxy that packs an answer makes its tag a weak one. */
function names(ifNoneMatch: string | undefined, etag: string): boolean {
  if (ifNoneMatch === undefined) return false;
  return ifNoneMatch.trim() === '*' || [...ifNoneMatch.matchAll(/"[^"]*"/g)].some(([tag]) => tag === etag);
}
