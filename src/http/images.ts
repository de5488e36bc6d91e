/** Read what is known of an image, and its bytes. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { App } from '../app.js';
import { viewImage } from '../cache/image-view.js';
import type { CrawlContent } from '../kinds/crawl.js';
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
    const { content } = await recorded(request, app, access);
    return sendObject(reply, app, content.rawKey, content.mimeType ?? 'application/octet-stream');
  });

  serve(server, operations.thumbnail, async (request, reply) => {
    const { content } = await recorded(request, app, access);
    if (!content.thumbnailKey) throw notFound();
    return sendObject(reply, app, content.thumbnailKey, 'image/jpeg');
  });
}

function pathOf(request: FastifyRequest, access: AccessRules): { tenantId: string; contentHash: string } {
  const allowed = access.viewer(request);
  const path = imagePath.safeParse(request.params);
  if (!path.success || !allowed.mayUse(path.data.tenantId)) throw notFound();
  return path.data;
}

async function recorded(request: FastifyRequest, app: App, access: AccessRules): Promise<{ content: CrawlContent }> {
  const { tenantId, contentHash } = pathOf(request, access);
  const content = await app.records.content(tenantId, contentHash);
  if (!content) throw notFound();
  return { content };
}

async function sendObject(reply: FastifyReply, app: App, key: string, type: string): Promise<Buffer> {
  const bytes = await app.objects.get(key);
  if (!bytes) throw new HttpProblem(503, 'the object of this image is missing from the store');
  reply
    .type(type)
    .header('x-content-type-options', 'nosniff')
    // A browser that is logged in to the page would show it inside of any other.
    .header('cross-origin-resource-policy', 'same-origin')
    .header('content-security-policy', "default-src 'none'; sandbox")
    .header('cache-control', 'private, max-age=31536000, immutable');
  return bytes;
}
