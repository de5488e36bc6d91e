/** The producer of a run, which knows what was accepted. */
import { randomUUID } from 'node:crypto';
import type { App } from '../../src/app.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { answered, QueueUnavailableError } from '../../src/queues/index.js';
import { until } from '../support/until.js';
import { Mix, type Order } from './mix.js';
import type { Origin, OriginOptions } from './origin.js';
import { randomFor } from './random.js';

export interface Accepted {
  readonly id: string;
  readonly tenantId: string;
  readonly url: string;
  /** When the queue had taken it, in milliseconds since the epoch. */
  readonly at: number;
}

const ACCEPT_MS = 180_000;
const AT_ONCE = 200;
/** For a client of another make, whose own patience is not the matter here. */
const FOREIGN_MS = 5_000;

export class Producer {
  /** What it was told is accepted, in order. */
  readonly accepted: Accepted[] = [];
  /** URLs that the queue did not take: nothing is promised about them. */
  refused = 0;

  constructor(
    /** The producer's, which also looks and reads. */
    readonly app: App,
    readonly origin: Origin,
    readonly options: OriginOptions & { readonly seed: number },
  ) {}

  /** Numbers that follow from the seed, for somebody who draws beside others. */
  randomFor(actor: string): () => number {
    return randomFor(this.options.seed, actor);
  }

  /** What producers of this run ask for: the same each time it is begun. */
  mix(): Mix {
    return new Mix(this.origin, this.options.seed, { closed: this.options.robots ?? false });
  }

  /** Asks the queue once, and remembers what was taken. What is refused is counted, and left. */
  async offer(urls: readonly string[], { tenantId = 'acme', force = false } = {}): Promise<Accepted[]> {
    const payloads = urls.map((url) => ({ v: 1 as const, tenantId, url, ...(force ? { force } : {}) }));
    return this.#taken(urls, tenantId, () => this.app.queues.enqueue(crawlQueue, payloads));
  }

  /**
   * As `offer`, and as a client of another make does it that knows nothing of ours: without identity, turn or retries, so
   * that nothing folds a job into its twin.
   */
  async offerAsForeigner(urls: readonly string[], tenantId = 'acme'): Promise<Accepted[]> {
    const jobs = urls.map((url) => ({
      name: 'crawl',
      data: { v: 1, tenantId, url },
      // Ids that are counted begin anew in a Redis that lost its data.
      opts: { jobId: randomUUID() },
    }));
    return this.#taken(urls, tenantId, async () => {
      const queue = this.app.queues.get('crawl');
      await answered(queue.count(), FOREIGN_MS);
      return (await answered(queue.addBulk(jobs), FOREIGN_MS)).map(({ id }) => String(id));
    });
  }

  /** Embedding jobs as such a client adds them. @returns their ids */
  async embedAsForeigner(hashes: readonly string[], tenantId = 'acme'): Promise<string[]> {
    const jobs = hashes.map((contentHash) => ({ name: 'embedding', data: { v: 1, tenantId, contentHash } }));
    return (await this.app.queues.get('embedding').addBulk(jobs)).map(({ id }) => String(id));
  }

  /** Offers them once, in their order as far as one producer goes; twins as a foreigner. */
  async offerAll(orders: readonly Order[]): Promise<Accepted[]> {
    const groups = new Map<string, Order[]>();
    for (const order of orders) {
      const key = `${order.tenantId} ${order.isTwin}`;
      groups.set(key, [...(groups.get(key) ?? []), order]);
    }
    const taken: Accepted[] = [];
    for (const group of groups.values()) {
      const [{ tenantId, isTwin }, urls] = [group[0] as Order, group.map(({ url }) => url)];
      taken.push(...(await (isTwin ? this.offerAsForeigner(urls, tenantId) : this.offer(urls, { tenantId }))));
    }
    return taken;
  }

  /** Enqueues all of them, as a producer does that asks again where it is refused. */
  async enqueue(urls: readonly string[], options: { tenantId?: string; force?: boolean } = {}): Promise<void> {
    for (let from = 0; from < urls.length; from += AT_ONCE) {
      const batch = urls.slice(from, from + AT_ONCE);
      await until('the queue to take jobs', async () => (await this.offer(batch, options)).length > 0, ACCEPT_MS);
    }
  }

  async #taken(urls: readonly string[], tenantId: string, add: () => Promise<string[]>): Promise<Accepted[]> {
    try {
      const ids = await add();
      const at = Date.now();
      const taken = ids.map((id, i) => ({ id, tenantId, url: urls[i] as string, at }));
      this.accepted.push(...taken);
      return taken;
    } catch (error) {
      if (!(error instanceof QueueUnavailableError)) throw error;
      this.refused += urls.length;
      return [];
    }
  }
}
