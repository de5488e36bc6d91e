/** What goes on while something is done to the servers: jobs at a steady rate, and a program that uses the library. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { sha256 } from '../../src/kinds/identity.js';
import { until } from '../support/until.js';
import type { Lab } from './lab.js';
import type { Mix } from './mix.js';
import { pick } from './random.js';

const TICK_MS = 100;
/** After a stretch in which we had no turn, no more than these seconds are made good. */
const MOST_BEHIND_SECONDS = 1;

/** Offers jobs at a rate, whatever becomes of them. */
export class SteadyJobs {
  readonly #mix: Mix;
  readonly #offers = new Set<Promise<unknown>>();
  #stopped = false;
  #failure: unknown;
  #running: Promise<void> | undefined;

  constructor(
    private readonly lab: Lab,
    readonly perSecond: number,
  ) {
    this.#mix = lab.mix();
  }

  start(): this {
    this.#running ??= this.#run();
    return this;
  }

  /** Resolves when what was offered was answered. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
    await Promise.all(this.#offers);
    if (this.#failure) throw this.#failure;
  }

  /** Offers so many at once, beside the others. */
  burst(count: number): Promise<unknown> {
    const offer = this.lab.offerAll(this.#mix.take(count)).catch((error: unknown) => {
      this.#failure = error;
    });
    this.#offers.add(offer);
    return offer.then(() => this.#offers.delete(offer));
  }

  async #run(): Promise<void> {
    let last = performance.now();
    let due = 0;
    while (!this.#stopped) {
      const now = performance.now();
      due += Math.min((now - last) / 1000, MOST_BEHIND_SECONDS) * this.perSecond;
      last = now;
      if (due >= 1) this.burst(Math.floor(due));
      due %= 1;
      await pause(TICK_MS);
    }
  }
}

const READERS = 4;
const READ_PAUSE_MS = 40;
const WRITE_PAUSE_MS = 80;
const FIRST_ENTRIES = 100;
const MOST_SHOWN = 5;

/** What was written under one key: numbers that only rise. */
interface Written {
  /** The last of which the library said that it is durable. */
  durable: number;
  /** The last that was tried. */
  tried: number;
}

interface Read {
  readonly at: number;
  readonly ms: number;
}

/**
 * A program that uses the library, in this process: readers who wait for each answer, and a writer of new entries and of
 * newer values of old ones.
 */
export class LibraryUse {
  readonly reads: Read[] = [];
  /** Writes that the library did not call durable. */
  refused = 0;
  /** Reads that answered `null`, where something was durable. */
  unanswered = 0;
  /** Answers that were wrong when they were given. */
  readonly #wrong: string[] = [];
  readonly #entries = new Map<string, Written>();
  readonly #keys: string[] = [];
  readonly #randomKey: () => number;
  #written = 0;
  #stopped = false;
  #running: Promise<unknown> | undefined;

  constructor(
    private readonly lab: Lab,
    private readonly options: {
      readonly tenantId?: string;
      /** PostgreSQL may be away too: then a read may know nothing, or not yet what waits to be replayed. */
      readonly withoutPostgres?: boolean;
    } = {},
  ) {
    this.#randomKey = lab.randomFor('library writer');
  }

  async start(): Promise<this> {
    while (this.#entries.size < FIRST_ENTRIES) await this.#write(this.#newKey());
    this.#running = Promise.all([
      ...Array.from({ length: READERS }, (_, i) => this.#readOn(this.lab.randomFor(`library reader ${i}`))),
      this.#writeOn(),
    ]);
    return this;
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  /** How long the reads took that were asked for in this time, in milliseconds, sorted. */
  readMs(from: number, to: number): number[] {
    const within = this.reads.filter(({ at }) => at >= from && at < to);
    return within.map(({ ms }) => ms).sort((a, b) => a - b);
  }

  /** Once nothing is away any more: what was called durable is there, in PostgreSQL and for whoever asks. */
  async violations(): Promise<string[]> {
    const { journal } = this.lab.app.connection;
    await until('what was journaled to be replayed', async () => !(await journal?.pending()));
    await until('the library to answer again', async () => (await this.#look(this.#keys[0] as string)) !== null);
    const wrong: string[] = [...this.#wrong];
    if (!this.options.withoutPostgres) {
      if (this.unanswered > 0) wrong.push(`I4 ${this.unanswered} reads knew nothing, with PostgreSQL there`);
      if (this.refused > 0) wrong.push(`I4 ${this.refused} writes were not durable, with PostgreSQL there`);
    }
    const permanent = await this.#permanent();
    for (const [key, written] of this.#entries) {
      const said = await this.#look(key);
      for (const [who, value] of Object.entries({ 'the library': said, PostgreSQL: permanent.get(key) ?? null })) {
        const problem = problemOf(value, written.durable, written.tried);
        if (problem) wrong.push(`I4 ${who} has ${problem} of ${key}, in the end`);
      }
    }
    return wrong.slice(0, MOST_SHOWN);
  }

  async #permanent(): Promise<Map<string, number>> {
    const rows = await this.lab.servers.sql<{ hash: string; phash: string }>(
      'select content_hash as hash, phash from perceptual_hash_cache where tenant_id = $1',
      [this.#tenantId],
    );
    return new Map(rows.map(({ hash, phash }) => [hash, numberOf(phash)]));
  }

  async #readOn(random: () => number): Promise<void> {
    while (!this.#stopped) {
      const key = pick(random, this.#keys);
      const written = this.#entries.get(key) as Written;
      const least = written.durable;
      const [at, started] = [Date.now(), performance.now()];
      const value = await this.#look(key);
      this.reads.push({ at, ms: performance.now() - started });
      if (value === null && least > 0) this.unanswered += 1;
      const problem = problemOf(value, this.options.withoutPostgres ? 0 : least, written.tried);
      if (problem) this.#wrong.push(`I4 the library answered ${problem} of ${key}`);
      await pause(READ_PAUSE_MS);
    }
  }

  async #writeOn(): Promise<void> {
    while (!this.#stopped) {
      await this.#write(this.#written % 2 === 0 ? this.#newKey() : pick(this.#randomKey, this.#keys));
      await pause(WRITE_PAUSE_MS);
    }
  }

  async #write(key: string): Promise<void> {
    this.#written += 1;
    const written = this.#entries.get(key) as Written;
    const value = this.#written;
    written.tried = value;
    if (await this.lab.app.cache.cachePerceptualHash(key, this.#tenantId, hashOf(value))) written.durable = value;
    else this.refused += 1;
  }

  async #look(key: string): Promise<number | null> {
    const phash = await this.lab.app.cache.getCachedPerceptualHash(key, this.#tenantId);
    return phash === null ? null : numberOf(phash);
  }

  get #tenantId(): string {
    return this.options.tenantId ?? 'library';
  }

  #newKey(): string {
    const key = sha256(`${this.#tenantId} ${this.#keys.length}`);
    this.#keys.push(key);
    this.#entries.set(key, { durable: 0, tried: 0 });
    return key;
  }
}

/** `least` 0 is: nothing was promised. */
function problemOf(value: number | null, least: number, most: number): string | null {
  if (value === null) return least > 0 ? 'nothing' : null;
  if (value < least) return `value ${value}, after ${least} was durable,`;
  return value > most ? `value ${value}, and only ${most} were tried,` : null;
}

function hashOf(value: number): string {
  return value.toString(16).padStart(16, '0');
}

function numberOf(phash: string): number {
  return Number.parseInt(phash, 16);
}
