/** What operators look at: metrics, health and the queue dashboard. */
import { createBullBoard } from '@bull-board/api';
import { BullMQAdapter } from '@bull-board/api/bullMQAdapter';
import { FastifyAdapter } from '@bull-board/fastify';
import type { FastifyInstance } from 'fastify';
import { Gauge } from 'prom-client';
import { type App, readiness } from '../app.js';
import type { TierName } from '../errors.js';
import type { TierErrorReason, TierOperation } from '../events.js';
import { within } from '../lifecycle.js';
import type { Metrics, RunResult } from '../metrics.js';
import { QUEUE_NAMES, type QueueName } from '../queues/contract.js';
import type { RedisFacts } from '../redis-info.js';
import type { AccessRules } from './access.js';
import { operations, serve } from './api.js';
import { HttpProblem, sendProblem } from './problem.js';
import { Shared } from './shared.js';

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
  beginAtZero(app);
}

const TIER_WORK: readonly TierOperation[] = ['read', 'write', 'query', 'claim'];

/** What an alert waits for: of a counter that begins at 1, Prometheus sees no increase. */
function beginAtZero({ metrics, connection }: App): void {
  for (const queue of QUEUE_NAMES) {
    for (const result of ['failed', 'stalled'] satisfies RunResult[]) metrics.jobAttempts.inc({ queue, result }, 0);
  }
  const tierError = (tier: TierName, operation: TierOperation, reason: TierErrorReason) =>
    metrics.tierErrors.inc({ tier, operation, reason }, 0);
  for (const tier of ['postgres', ...(connection.tiers.redis ? ['redis' as const] : [])] satisfies TierName[]) {
    tierError(tier, 'read', 'corrupt');
    for (const operation of TIER_WORK) tierError(tier, operation, 'wrong');
    if (tier === 'redis') tierError(tier, 'write', 'full');
  }
}

/**
 * Gauges that are read from the stores at each scrape. Only processes that serve the API have them, so that N scraped
 * processes do not count N times. A store that is away leaves its gauges out.
 */
export function storeGauges(app: App): void {
  const { metrics, connection } = app;
  const { journal } = connection;
  new Gauge({
    name: 'hybrid_cache_replay_pending',
    help: "Writes that wait for PostgreSQL, in the queue's Redis.",
    registers: [metrics.registry],
    async collect() {
      const pending = await answered(journal?.pending());
      if (pending !== null) this.set(pending);
      else if (journal) this.remove();
    },
  });
  queueGauges(app);
  redisGauges(app);
}

/** The gauges of a scrape share an answer. */
const ONE_SCRAPE_MS = 100;

function queueGauges({ metrics, queues }: App): void {
  const shared = new Shared();
  const counts = (queue: QueueName) => shared.get(queue, ONE_SCRAPE_MS, () => queues.counts(queue));
  labelledGauge(metrics, 'bullmq_job_count', 'Jobs by queue and state.', ['queue', 'state'], async () => {
    const found = await ofEach(QUEUE_NAMES, counts);
    return found.flatMap(([queue, counts]) =>
      Object.entries(counts).map(([state, value]) => ({ labels: { queue, state }, value })),
    );
  });
  const waited = 'How long the longest waiting job has waited since it came, times in which it was put off among them.';
  labelledGauge(metrics, 'queue_oldest_waiting_seconds', waited, ['queue'], async () => {
    const found = await ofEach(QUEUE_NAMES, (queue) => queues.oldestWaitingSeconds(queue, counts(queue)));
    return found.map(([queue, value]) => ({ labels: { queue }, value }));
  });
}

const REDIS_SERVERS = ['cache', 'queue'] as const;
function redisGauges({ metrics, connection: { tiers, journal } }: App): void {
  const factsOf = {
    // One that is known to be away is not waited for.
    cache: () => (tiers.redis?.guard.isUp ? tiers.redis.tier.facts() : undefined),
    queue: () => journal?.facts(),
  };
  const shared = new Shared();
  const facts = () => shared.get('facts', ONE_SCRAPE_MS, () => ofEach(REDIS_SERVERS, (server) => factsOf[server]()));
  const read = (valueOf: (facts: RedisFacts) => number) => async () =>
    (await facts())
      .map(([server, of]) => ({ labels: { server }, value: valueOf(of) }))
      .filter(({ value }) => Number.isFinite(value));
  const used = 'Memory that a Redis uses; the cache and the queue may share one.';
  labelledGauge(
    metrics,
    'hybrid_cache_redis_memory_bytes',
    used,
    ['server'],
    read((of) => of.usedMemory),
  );
  const limit = 'Its maxmemory, or the memory of its machine where none is set.';
  labelledGauge(
    metrics,
    'hybrid_cache_redis_memory_limit_bytes',
    limit,
    ['server'],
    read((of) => of.memoryLimit),
  );
  const evicts =
    'Whether it may evict keys, 1 or 0: whether its maxmemory-policy is not noeviction. A queue loses jobs by that.';
  labelledGauge(
    metrics,
    'hybrid_cache_redis_may_evict',
    evicts,
    ['server'],
    read((of) => (of.policy === 'noeviction' ? 0 : 1)),
  );
}

interface Series<L extends string> {
  readonly labels: Record<L, string>;
  readonly value: number;
}

function labelledGauge<L extends string>(
  { registry }: Metrics,
  name: string,
  help: string,
  labelNames: L[],
  read: () => Promise<Series<L>[]>,
): void {
  new Gauge<L>({
    ...{ name, help, labelNames, registers: [registry] },
    async collect() {
      const found = await read();
      this.reset(); // after the wait, or scrapes that overlap would empty each other's answers
      for (const { labels, value } of found) this.set(labels, value);
    },
  });
}

const STORE_MS = 2_000;

/** `null` where a store is away, is not configured, or does not answer in time. */
async function answered<T>(work: Promise<T> | undefined): Promise<T | null> {
  return work ? within(STORE_MS, work, null).catch(() => null) : null;
}

/** Leaves out those that did not answer. */
async function ofEach<K, T>(keys: readonly K[], ask: (key: K) => Promise<T> | undefined): Promise<[K, T][]> {
  const found = await Promise.all(keys.map((key) => answered(ask(key))));
  return keys.flatMap((key, i): [K, T][] => {
    const answer = found[i] ?? null;
    return answer === null ? [] : [[key, answer]];
  });
}

const DASHBOARD_HEADERS = {
  // bull-board asks a font service for its fonts: it would learn who looks at the queues, and where it cannot be reached
  // the page would wait for it. In a frame of another origin its buttons could be laid under somebody's clicks.
  'content-security-policy': [
    "default-src 'self'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data:",
    "base-uri 'self'",
    "form-action 'self'",
    "frame-ancestors 'self'",
  ].join('; '),
  'x-frame-options': 'SAMEORIGIN',
  'referrer-policy': 'no-referrer',
};

/** bull-board waits for ever for a queue whose store is frozen. */
const DASHBOARD_MS = 5_000;
const LATE = Symbol('late');
const QUEUES_SILENT = 'the queues do not answer: try again in a few seconds';

export async function dashboard(server: FastifyInstance, app: App, access: AccessRules): Promise<void> {
  const adapter = new FastifyAdapter();
  adapter.setBasePath('/dashboard');
  createBullBoard({ queues: app.queues.all.map((queue) => new BullMQAdapter(queue)), serverAdapter: adapter });
  await server.register(async (scope) => {
    scope.addHook('onRequest', (request, reply) => access.dashboard(request, reply));
    scope.addHook('onSend', async (_request, reply) => void reply.headers(DASHBOARD_HEADERS));
    scope.addHook('onRoute', (route) => {
      const { handler } = route;
      if (!route.url.startsWith('/dashboard/api/')) return;
      route.handler = async function (request, reply) {
        const work = Promise.resolve(handler.call(this, request, reply));
        const answer = await within(DASHBOARD_MS, work, LATE);
        return answer === LATE ? sendProblem(reply, new HttpProblem(503, QUEUES_SILENT)) : answer;
      };
    });
    await scope.register(adapter.registerPlugin(), { prefix: '/dashboard' });
  });
}
