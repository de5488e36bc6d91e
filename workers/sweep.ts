/**
 * What crashes leave behind and time makes old, at start and every 5 minutes: enqueues embeddings that are missing,
 * forgets claims of long ago, removes drafts of objects, deletes what was invalidated. Rounds look at what is new, and at
 * all images once a day and whenever the queue's Redis began anew: it may have lost jobs of any age. Once a day what is too
 * old is deleted, where that is asked for.
 */
import type { App } from '../src/app.js';
import type { Query } from '../src/cache/query.js';
import { unembeddedSince } from '../src/cache/unembedded.js';
import { TierUnavailableError } from '../src/errors.js';
import { Periodic } from '../src/lifecycle.js';
import { type EmbeddingPayload, embeddingQueue } from '../src/queues/embedding.js';

const DAY_MS = 24 * 60 * 60_000;
/** Milliseconds from one round to the next, and from one look through everything. */
const RHYTHM = { everyMs: 5 * 60_000, wholeEveryMs: DAY_MS };
/** Rounds look back this much further than the one before: a slow transaction commits late. */
const OVERLAP_MS = 10 * 60_000;
/** Jobs that are enqueued between two looks at the signal. */
const BATCH = 100;

export function startSweep(app: App, model: string, { everyMs, wholeEveryMs } = RHYTHM): Periodic {
  const { cleanupDays } = app.config;
  let coveredUntil = 0;
  let wholeAt = Number.NEGATIVE_INFINITY;
  let sweptRun: string | null = null;
  const round = async (signal: AbortSignal) => {
    try {
      // Images have their times of PostgreSQL's clock.
      const started = await now(app.connection.query);
      const isDaily = started - wholeAt >= wholeEveryMs;
      const queueRun = await runOfQueue(app);
      const mayHaveLost = queueRun !== null && queueRun !== sweptRun;
      // What was forgotten on purpose is not to be embedded again.
      const oldest = cleanupDays === null ? 0 : Math.max(0, started - cleanupDays * DAY_MS);
      const since = new Date(isDaily || mayHaveLost ? oldest : coveredUntil - OVERLAP_MS);
      app.events.swept(await enqueueMissing(app, model, since, signal));
      await app.claims.forgetExpired();
      await app.objects.tidy();
      app.connection.invalidation.purge();
      if (cleanupDays !== null && isDaily) app.events.cleaned(await app.connection.cleanup(cleanupDays, signal));
      if (signal.aborted) return;
      coveredUntil = started;
      if (isDaily) wholeAt = started;
      if (mayHaveLost) sweptRun = queueRun;
    } catch (error) {
      // An outage is reported by the guard, and the next round covers what this one did not.
      if (!(error instanceof TierUnavailableError)) app.events.troubled('sweep', error);
    }
  };
  return new Periodic(everyMs, round).start();
}

/** Milliseconds since the epoch by PostgreSQL's clock. */
async function now(query: Query): Promise<number> {
  const { rows } = await query<{ ms: number }>({ text: 'select extract(epoch from now())::float8 * 1000 as ms' });
  return rows[0]?.ms ?? 0;
}

/** Names the run of the queue's Redis; `null` where it cannot be asked, or the queue is in PostgreSQL, which loses nothing. */
async function runOfQueue({ connection: { journal } }: App): Promise<string | null> {
  const facts = await journal?.facts().catch(() => null);
  return facts?.runId ?? null;
}

/** @returns how many embedding jobs there are now that were missing: not those that waited already */
export async function enqueueMissing(app: App, model: string, since: Date, signal?: AbortSignal): Promise<number> {
  let count = 0;
  for await (const page of unembeddedSince(app.connection.query, model, since, signal)) {
    const payloads = page.map(({ tenantId, contentHash }): EmbeddingPayload => ({ v: 1, tenantId, contentHash }));
    for (let from = 0; from < payloads.length && !signal?.aborted; from += BATCH) {
      const enqueued = await app.queues.enqueueTellingTwins(embeddingQueue, payloads.slice(from, from + BATCH));
      count += enqueued.filter(({ isTwin }) => !isTwin).length;
    }
  }
  return count;
}
