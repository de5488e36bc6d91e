/**
 * What a person wants to know at a glance, as the page at `/` shows it. The figures come from the stores and not from
 * the process that is asked, so that they are the same whichever is; a part whose store is away says so in its place.
 *
 * Ten pages cost as one: a part is looked up once in a second, whoever asks for it, and what costs more less often.
 */
import type { FastifyInstance } from 'fastify';
import type { z } from 'zod';
import type { App } from '../app.js';
import { facesFound, HOLDING_NAMES, HOLDINGS, type Holdings, holdingsOf } from '../cache/holdings.js';
import { type NearDuplicate, searchNearDuplicates } from '../cache/near-duplicates.js';
import { type RecentImage, recentImages } from '../cache/recent-images.js';
import { SHARED_MINUTES, SharedLookups } from '../cache/shared-lookups.js';
import { reasonOf } from '../errors.js';
import { within } from '../lifecycle.js';
import { withoutSecrets } from '../logger.js';
import { QUEUE_NAMES, type QueueName } from '../queues/contract.js';
import { answered } from '../queues/index.js';
import type { Access, AccessRules } from './access.js';
import { operations, serve } from './api.js';
import { type EndedJobs, EndedJobWindow, hostAndPath } from './ended-jobs.js';
import { failuresOf, runOf, theirs } from './run-figures.js';
import type { missing, overview } from './schemas.js';
import { Shared } from './shared.js';

const FRESH_MS = 1_000;
/** Rows are counted, up to 10,000 of each table: a tenth of a second of PostgreSQL's where there are that many. */
const COUNTED_MS = 5_000;
/** Failed jobs are read anew then, and near-duplicates searched. */
const COSTLY_MS = 10_000;
const IMAGES = 24;
const TROUBLES = 6;
const LINKS = 4;
const CHECK_MS = 1_000;

export type Overview = z.infer<typeof overview>;
/** A part, where its store told it. */
type Part<Name extends keyof Overview> = Exclude<NonNullable<Overview[Name]>, Missing>;
type Missing = z.infer<typeof missing>;
type QueueView = Part<'queues'>[number];
type TierView = Overview['tiers'][number];

export function overviewRoutes(
  server: FastifyInstance,
  app: App,
  access: AccessRules,
  lookups: SharedLookups | null,
): void {
  const source = new OverviewSource(app, lookups);
  serve(server, operations.overview, async (request, reply) => {
    const allowed = access.viewer(request);
    reply.header('cross-origin-resource-policy', 'same-origin');
    return source.read(allowed);
  });
}

/**
 * In every process that does work, so that whichever serves the page knows the look-ups of all. Only a server that
 * listens tells of its own; `null` where Redis is turned off.
 */
export function shareLookups(server: FastifyInstance, { config, connection, metrics }: App): SharedLookups | null {
  const { redis } = connection.tiers;
  if (!redis || !config.redisUrl) return null;
  const shared = new SharedLookups(config.redisUrl, (id) => redis.tier.keyOf(id), metrics.lookups);
  server.addHook('onListen', async () => shared.start());
  server.addHook('onClose', () => shared.close());
  return shared;
}

class OverviewSource {
  readonly #shared = new Shared();
  readonly #windows: Record<'completed' | 'failed', readonly EndedJobWindow[]>;

  constructor(
    private readonly app: App,
    private readonly lookups: SharedLookups | null,
  ) {
    const windows = (ending: 'completed' | 'failed') =>
      QUEUE_NAMES.map((queue) => new EndedJobWindow(app.queues, queue, ending));
    this.#windows = { completed: windows('completed'), failed: windows('failed') };
  }

  read({ all, tenants }: Access): Promise<Overview> {
    const scope = all ? null : [...tenants].sort();
    return this.#shared.get(keyOf('overview', scope), FRESH_MS, () => this.#make(scope));
  }

  async #make(tenants: readonly string[] | null): Promise<Overview> {
    const { connection, models } = this.app;
    const model = models.embedding;
    const ofAll = tenants === null;
    const at = Date.now();
    const told = teller(ofAll);
    const run = (queue: QueueName) => told(async () => runOf(await this.#completed(queue), tenants, at));
    const [crawl, embedding, holdings, faces, queues, lookups, replayPending, tiers, failures, troubles, images] =
      await Promise.all([
        run('crawl'),
        run('embedding'),
        told(() => this.#shared.get(keyOf('holdings', tenants), COUNTED_MS, () => this.#holdings(tenants))),
        told(() =>
          this.#shared.get(keyOf('faces', tenants), COUNTED_MS, () => facesFound(connection.query, tenants, model)),
        ),
        ofAll ? told(() => Promise.all(QUEUE_NAMES.map((queue) => this.#queue(queue)))) : undefined,
        ofAll ? told(() => this.#lookupView()) : undefined,
        ofAll ? told(() => this.#replayPending()) : undefined,
        this.#tiers(ofAll),
        told(async () => failuresOf((await this.#failed()).map((jobs) => theirs(jobs, tenants)))),
        told(() => this.#troubles(tenants)),
        told(() => this.#images(tenants, model)),
      ]);
    const shared = { crawl, embedding, holdings, faces, tiers, failures, troubles, images };
    const general = queues && lookups && replayPending !== undefined ? { queues, lookups, replayPending } : {};
    return { at, tenants, model, ...shared, ...general };
  }

  #completed(queue: QueueName): Promise<EndedJobs> {
    const window = this.#windows.completed[QUEUE_NAMES.indexOf(queue)] as EndedJobWindow;
    return this.#shared.get(`completed ${queue}`, FRESH_MS, () => window.read());
  }

  #failed(): Promise<EndedJobs[]> {
    return this.#shared.get('failed', COSTLY_MS, () => Promise.all(this.#windows.failed.map((one) => one.read())));
  }

  /** Of all tenants, what `stats` says. */
  async #holdings(tenants: readonly string[] | null): Promise<Holdings> {
    if (tenants) return holdingsOf(this.app.connection.query, tenants);
    const { postgresStats } = await this.app.cache.getCacheStats();
    if ('error' in postgresStats) throw new Error(postgresStats.error);
    return {
      images: postgresStats.crawlContentCacheCount,
      urls: postgresStats.crawlCacheCount,
      embedded: postgresStats.faceEmbeddingsCacheCount,
      refusals: postgresStats.rejectionCacheCount,
      atLeast: [],
      about: HOLDING_NAMES.filter((name) => postgresStats.estimated.includes(HOLDINGS[name])),
    };
  }

  async #queue(queue: QueueName): Promise<QueueView> {
    const { queues } = this.app;
    const counting = queues.counts(queue);
    const [counts, paused, oldestWaitingSeconds] = await Promise.all([
      counting,
      queues.isPaused(queue),
      queues.oldestWaitingSeconds(queue, counting),
    ]);
    const of = (...states: string[]) => states.reduce((sum, state) => sum + (counts[state] ?? 0), 0);
    return {
      queue,
      paused,
      waiting: of('waiting', 'prioritized', 'paused', 'waiting-children'),
      delayed: of('delayed'),
      active: of('active'),
      completed: of('completed'),
      failed: of('failed'),
      oldestWaitingSeconds,
    };
  }

  /** `null` where nothing is journaled. */
  async #replayPending(): Promise<number | null> {
    const { journal } = this.app.connection;
    return journal ? answered(journal.pending(), CHECK_MS) : null;
  }

  async #lookupView(): Promise<Part<'lookups'>> {
    if (!this.lookups) return { minutes: null, byKind: structuredClone(this.app.metrics.lookups) };
    return { minutes: SHARED_MINUTES, byKind: await this.lookups.read() };
  }

  /** As this process finds them when it asks. Why one is away may name a host: that is the operator's to know. */
  async #tiers(forOperators: boolean): Promise<TierView[]> {
    const { connection, config, queues } = this.app;
    const { redis, postgres } = connection.tiers;
    const checked = async (name: TierView['name'], guard: typeof postgres.guard): Promise<TierView> => {
      const up = await within(CHECK_MS, guard.check(), false);
      const why = withoutSecrets(guard.reason) || 'no answer within a second';
      return { name, state: up ? 'up' : 'down', detail: up || !forOperators ? '' : why };
    };
    const queue = async (): Promise<TierView> => {
      const detail = `on ${config.queue.backend === 'redis' ? 'Redis' : 'PostgreSQL'}`;
      return { name: 'queue', state: (await queues.isUp()) ? 'up' : 'down', detail };
    };
    return Promise.all([
      redis ? checked('redis', redis.guard) : { name: 'redis' as const, state: 'off' as const, detail: 'turned off' },
      checked('postgres', postgres.guard),
      queue(),
    ]);
  }

  async #troubles(tenants: readonly string[] | null): Promise<Part<'troubles'>> {
    const completed = await Promise.all(QUEUE_NAMES.map((queue) => this.#completed(queue)));
    return [...completed, ...(await this.#failed())]
      .flatMap((jobs) => theirs(jobs, tenants).jobs)
      .filter(({ outcome }) => outcome === 'rejected' || outcome === 'failed')
      .sort((a, b) => b.at - a.at)
      .slice(0, TROUBLES)
      .map(({ faces: _, ...trouble }) => trouble);
  }

  async #images(tenants: readonly string[] | null, model: string): Promise<Part<'images'>> {
    const images = await recentImages(this.app.connection.query, tenants, model, IMAGES);
    return Promise.all(
      images.map(async ({ url, phash, ...image }) => {
        const found = phash ? await this.#nearDuplicates(image, phash) : [];
        const nearDuplicates = found.slice(0, LINKS).map(({ contentHash, distance }) => ({ contentHash, distance }));
        return { ...image, address: hostAndPath(url), nearDuplicates };
      }),
    );
  }

  #nearDuplicates({ tenantId, contentHash }: Pick<RecentImage, 'tenantId' | 'contentHash'>, phash: string) {
    return this.#shared.get<NearDuplicate[]>(`alike ${tenantId} ${contentHash}`, COSTLY_MS, () =>
      searchNearDuplicates(this.app.connection.query, tenantId, phash, { except: contentHash }),
    );
  }
}

/** One for each scope: a tenant may be called `null` or `undefined`, and no name holds a blank or a comma. */
function keyOf(part: string, tenants: readonly string[] | null): string {
  return tenants ? `${part} of ${tenants.join()}` : `${part} of all tenants`;
}

/** Why something is missing may name a host, which is the operator's to know. */
function teller(forOperators: boolean) {
  return async <T>(ask: () => Promise<T>): Promise<T | Missing> => {
    try {
      return await ask();
    } catch (error) {
      return { error: forOperators ? withoutSecrets(reasonOf(error)) : 'a store is away' };
    }
  };
}
