/** What producers ask for in a run: which follows from the seed alone, whatever becomes of it. */
import type { Origin } from './origin.js';
import { randomFor } from './random.js';

export interface Order {
  readonly tenantId: string;
  readonly url: string;
  /** Whether the tenant was given this URL before: it is to reach a worker all the same, so nothing folds it. */
  readonly isTwin: boolean;
}

const TENANTS = ['acme', 'zenith'] as const;
type Tenant = (typeof TENANTS)[number];

/** Of the orders: the second tenant's, known URLs, known bytes under a new URL, what is refused, what fails once. */
const SHARES = { second: 0.15, twins: 0.3, copies: 0.2, refused: 0.04, flaky: 0.02 };
/** Of a tenant, before anything is asked for again. */
const FIRST = 10;
/** Beyond this number contents are the flaky ones, which nobody else serves. */
const FLAKY_FROM = 10_000_000;

/**
 * Half of the orders are new. The tenants see one web: what is new to the second is a URL that the first has asked for,
 * and has to be fetched for it all the same.
 */
export class Mix {
  readonly #random: () => number;
  readonly #urls: Record<Tenant, string[]> = { acme: [], zenith: [] };
  readonly #contents: Record<Tenant, number> = { acme: 0, zenith: 0 };
  #odd = 0;

  constructor(
    private readonly origin: Origin,
    seed: number,
    private readonly options: {
      /** Whether some URLs are those that robots rules close. */ readonly closed?: boolean;
    } = {},
  ) {
    this.#random = randomFor(seed, 'mix');
  }

  next(): Order {
    // Three draws each time, so that no choice moves the next one.
    const [who, what, which] = [this.#random(), this.#random(), this.#random()];
    const tenantId: Tenant = who < SHARES.second && this.#contents.acme > FIRST ? 'zenith' : 'acme';
    const isFirst = this.#contents[tenantId] < FIRST;
    const urls = this.#urls[tenantId];
    if (!isFirst && what < SHARES.twins) {
      return { tenantId, url: urls[Math.floor(which * urls.length)] as string, isTwin: true };
    }
    const url = isFirst ? this.#fresh(tenantId) : this.#another(tenantId, what - SHARES.twins, which);
    urls.push(url);
    return { tenantId, url, isTwin: false };
  }

  take(count: number): Order[] {
    return Array.from({ length: count }, () => this.next());
  }

  #another(tenantId: Tenant, what: number, which: number): string {
    const { copies, refused, flaky } = SHARES;
    if (what < copies) return this.origin.imageUrl(Math.floor(which * this.#contents[tenantId]), ++this.#odd);
    if (what < copies + refused) return this.#refused(++this.#odd);
    if (what < copies + refused + flaky) return this.origin.flakyUrl(FLAKY_FROM + ++this.#odd);
    return this.#fresh(tenantId);
  }

  #refused(number: number): string {
    const { origin, options } = this;
    const all = [origin.statusUrl(404, number), origin.wordsUrl(number), origin.closedUrl(number)];
    return all[number % (options.closed ? 3 : 2)] as string;
  }

  #fresh(tenantId: Tenant): string {
    const content = this.#contents[tenantId];
    // The second never overtakes the first.
    if (tenantId === 'zenith' && content >= this.#contents.acme) return this.origin.imageUrl(0, ++this.#odd);
    this.#contents[tenantId] = content + 1;
    return this.origin.imageUrl(content);
  }
}
