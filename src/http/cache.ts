/** What the cache knows and holds, and forgetting a tenant. */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { App } from '../app.js';
import { explain } from '../cache/explain.js';
import type { AccessRules } from './access.js';
import { notFound, parsed } from './problem.js';

const explainQuery = z.object({ url: z.string() });

export function cacheRoutes(server: FastifyInstance, app: App, access: AccessRules): void {
  server.get('/v1/tenants/:tenantId/explain', async (request) => {
    const tenant = access.tenant(request, tenantOf(request));
    const { url } = parsed(explainQuery, request.query);
    return explain(app.connection.hybrid, tenant, url, app.config.fetch.revalidateAfterMs);
  });

  server.delete('/v1/tenants/:tenantId/cache', async (request) => {
    const tenant = access.tenant(request, tenantOf(request));
    return { invalidated: await app.cache.invalidateTenantCache(tenant) };
  });

  server.get('/v1/cache/stats', async (request) => {
    // Figures of all tenants together.
    if (!access.of(request).all) throw notFound();
    return app.cache.getCacheStats();
  });
}

/** What is no tenant's name is nobody's: `access.tenant` answers as if it were absent. */
function tenantOf({ params }: FastifyRequest): string {
  return (params as { tenantId: string }).tenantId;
}
