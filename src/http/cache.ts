/** What the cache knows and holds, and forgetting a tenant. */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { App } from '../app.js';
import { explain } from '../cache/explain.js';
import { allowedGap } from '../crawl/robots.js';
import type { AccessRules } from './access.js';
import { operations, serve } from './api.js';
import { notFound, parsed } from './problem.js';
import { explainQuery } from './schemas.js';

export function cacheRoutes(server: FastifyInstance, app: App, access: AccessRules): void {
  serve(server, operations.explain, async (request) => {
    const tenant = access.tenant(request, tenantOf(request));
    const { url } = parsed(explainQuery, request.query);
    const { crawler, revalidateAfterMs } = app.config.fetch;
    return explain(app.connection.hybrid, tenant, url, revalidateAfterMs, { crawler, allowedGap });
  });

  serve(server, operations.invalidate, async (request) => {
    const tenant = access.tenant(request, tenantOf(request));
    return { invalidated: await app.cache.invalidateTenantCache(tenant) };
  });

  serve(server, operations.statistics, async (request) => {
    // Figures of all tenants together.
    if (!access.of(request).all) throw notFound();
    return app.cache.getCacheStats();
  });
}

/** What is no tenant's name is nobody's: `access.tenant` answers as if it were absent. */
function tenantOf({ params }: FastifyRequest): string {
  return (params as { tenantId: string }).tenantId;
}
