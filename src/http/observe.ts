/** What operators look at: metrics, health and the queue dashboard. */
import { createBullBoard } from '@bull-board/api';
import { BullMQAdapter } from '@bull-board/api/bullMQAdapter';
import { FastifyAdapter } from '@bull-board/fastify';
import type { FastifyInstance } from 'fastify';
import { Gauge } from 'prom-client';
import { type App, readiness } from '../app.js';
import { QUEUE_NAMES } from '../queues/contract.js';
import type { AccessRules } from './access.js';
import { operations, serve } from './api.js';

/** Open to whoever reaches the port: no tenant's data is in them. */
export function healthRoutes(server: FastifyInstance, app: App): void {
  // Alive means that this process answers; an outage elsewhere must not have the whole fleet restarted.
  serve(server, operations.health, async () => ({ status: 'ok' as const }));

  serve(server, operations.ready, async (_request, reply) => {
    const { ready, degraded } = await readiness(app);
    if (!ready) reply.code(503);
    return { status: ready ? ('ready' as const) : ('unavailable' as const), degraded };
  });

  serve(server, operations.metrics, async (_request, reply) => {
    const { registry } = app.metrics;
    reply.type(registry.contentType);
    return registry.metrics();
  });
}

/**
 * Gauges that are read from the queues' store at each scrape. Only processes that serve the API have them, so that N
 * scraped processes do not count N times. A store that is away leaves its gauges out.
 */
export function storeGauges({ metrics, queues, connection }: App): void {
  const registers = [metrics.registry];
  new Gauge({
    name: 'hybrid_cache_replay_pending',
    help: "Writes that wait for PostgreSQL, in the queue's Redis.",
    registers,
    async collect() {
      const pending = await connection.journal?.pending().catch(() => null);
      if (typeof pending === 'number') this.set(pending);
      else if (connection.journal) this.remove();
    },
  });
  new Gauge({
    name: 'bullmq_job_count',
    help: 'Jobs by queue and state.',
    labelNames: ['queue', 'state'],
    registers,
    async collect() {
      const nothing: Record<string, number> = {};
      const found = await Promise.all(QUEUE_NAMES.map((queue) => queues.counts(queue).catch(() => nothing)));
      this.reset(); // after the wait, or scrapes that overlap would empty each other's answers
      QUEUE_NAMES.forEach((queue, i) => {
        for (const [state, count] of Object.entries(found[i] ?? nothing)) this.set({ queue, state }, count);
      });
    },
  });
  new Gauge({
    name: 'queue_oldest_waiting_seconds',
    help: 'How long the longest waiting job has waited.',
    labelNames: ['queue'],
    registers,
    async collect() {
      const found = await Promise.all(QUEUE_NAMES.map((queue) => queues.oldestWaitingSeconds(queue).catch(() => null)));
      this.reset();
      QUEUE_NAMES.forEach((queue, i) => {
        const seconds = found[i] ?? null;
        if (seconds !== null) this.set({ queue }, seconds);
      });
    },
  });
}

export async function dashboard(server: FastifyInstance, app: App, access: AccessRules): Promise<void> {
  const adapter = new FastifyAdapter();
  adapter.setBasePath('/dashboard');
  createBullBoard({ queues: app.queues.all.map((queue) => new BullMQAdapter(queue)), serverAdapter: adapter });
  await server.register(async (scope) => {
    scope.addHook('onRequest', (request, reply) => access.dashboard(request, reply));
    // In a frame of another origin its buttons could be laid under somebody's clicks.
    scope.addHook('onSend', async (_request, reply) => void reply.header('x-frame-options', 'SAMEORIGIN'));
    await scope.register(adapter.registerPlugin(), { prefix: '/dashboard' });
  });
}
