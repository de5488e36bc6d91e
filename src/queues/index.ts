/** All queues, as a producer or an onlooker sees them: enqueue, look at a job, count. */
import { performance } from 'node:perf_hooks';
import { setImmediate as othersTurn } from 'node:timers/promises';
import type { Job, Queue } from 'bullmq';
import { within } from '../lifecycle.js';
import { withoutSecrets } from '../logger.js';
import { isReply } from '../redis-script.js';
import type { QueueBackend } from './backend.js';
import { jobOptions, QUEUE_NAMES, type QueueContract, type QueueName } from './contract.js';
import { TURN_RULES, type TurnRules, Turns } from './turns.js';

/** The queue's store did not take it in time; nothing is known to be enqueued. */
export class QueueUnavailableError extends Error {
  override readonly name = 'QueueUnavailableError';
  constructor(options?: ErrorOptions) {
    super('the queue is unavailable: try again in a few seconds', options);
  }
}

/** What a producer is told within. */
const DEADLINE_MS = 900;
/** A batch of many jobs may take longer than a single one. */
const BATCH_DEADLINE_MS = 5_000;
/** Jobs of one batch. BullMQ makes and sends a batch in one go, and nobody else has a turn: 1,000 of them take 50 to 100 ms of CPU. */
const BATCH = 100;
/** Jobs that are looked at to find the oldest: of those without a turn, and of those with one. */
const FAR_END = 8;
const NEXT = 32;

/** A payload's job. */
export interface Enqueued {
  readonly id: string;
  /** Whether the job was there before, of an earlier payload of the same identity. */
  readonly isTwin: boolean;
}

export interface JobView {
  readonly queue: QueueName;
  readonly id: string;
  /** As BullMQ names it. */
  readonly state: string;
  readonly outcome: unknown;
  readonly attempts: number;
  /** Without the queries of URLs, which may be signatures. */
  readonly error: string | null;
  readonly tenantId: unknown;
}

export class Queues {
  readonly #queues: ReadonlyMap<QueueName, Queue>;
  readonly #turns: Turns;

  constructor(backend: QueueBackend, rules: TurnRules = TURN_RULES) {
    this.#queues = new Map(QUEUE_NAMES.map((name) => [name, backend.queue(name)]));
    this.#turns = new Turns(backend.state, rules);
  }

  get all(): readonly Queue[] {
    return [...this.#queues.values()];
  }

  get(name: QueueName): Queue {
    const queue = this.#queues.get(name);
    if (!queue) throw new Error(`queue ${name} is not among QUEUE_NAMES`);
    return queue;
  }

  /**
   * Enqueues payloads that are checked already, in turn with other tenants' jobs (`turns.ts`); a payload whose twin waits
   * or runs gets the twin's id.
   *
   * @returns the jobs' ids, in the order of the payloads
   * @throws {QueueUnavailableError} within a second where the store is away
   */
  async enqueue<Payload extends { readonly tenantId: string }>(
    contract: QueueContract<Payload>,
    payloads: readonly Payload[],
  ): Promise<string[]> {
    return (await this.enqueueTellingTwins(contract, payloads)).map(({ id }) => id);
  }

  /** As `enqueue`, and tells which ids are those of twins. */
  async enqueueTellingTwins<Payload extends { readonly tenantId: string }>(
    contract: QueueContract<Payload>,
    payloads: readonly Payload[],
  ): Promise<Enqueued[]> {
    const end = performance.now() + DEADLINE_MS;
    const remainingMs = () => (payloads.length > 1 ? BATCH_DEADLINE_MS : Math.max(0, end - performance.now()));
    // A store that does not answer at all is found out before a batch of work is sent.
    if (payloads.length > 1) await this.reach(contract.name);
    const enqueued: Enqueued[] = [];
    for (let from = 0; from < payloads.length; from += BATCH) {
      if (from > 0) await othersTurn();
      enqueued.push(...(await this.#enqueueBatch(contract, payloads.slice(from, from + BATCH), remainingMs)));
    }
    return enqueued;
  }

  /** A batch takes its turns once those before it are in the queue: so it finds their twins there. */
  async #enqueueBatch<Payload extends { readonly tenantId: string }>(
    contract: QueueContract<Payload>,
    payloads: readonly Payload[],
    remainingMs: () => number,
  ): Promise<Enqueued[]> {
    const jobs = payloads.map((data) => ({ name: contract.name, data, opts: jobOptions(contract, data) }));
    const comers = jobs.map(({ data, opts }) => ({ tenantId: data.tenantId, identity: opts.deduplication.id }));
    const priorities = await answered(this.#turns.take(contract.name, comers), remainingMs());
    const inTurn = jobs.map((job, i) => ({ ...job, opts: { ...job.opts, priority: priorities[i] as number } }));
    const added = await answered(this.get(contract.name).addBulk(inTurn), remainingMs());
    return added.map(({ id }, i) => ({ id: String(id), isTwin: id !== inTurn[i]?.opts.jobId }));
  }

  /** `null` for an unknown job. @throws {QueueUnavailableError} */
  async job(name: QueueName, id: string): Promise<JobView | null> {
    // State first: a job that completes between the two questions is then seen as it was, and never without its outcome.
    const state = await answered(this.get(name).getJobState(id), DEADLINE_MS);
    // In no state is no job; in Redis, `getJob` would read the queue's own keys (`meta`, `events`) as if they were some.
    if (state === 'unknown') return null;
    const job = (await answered(this.get(name).getJob(id), DEADLINE_MS)) as Job | undefined;
    if (!job) return null;
    return {
      queue: name,
      id,
      state,
      outcome: state === 'completed' ? job.returnvalue : null,
      attempts: job.attemptsMade,
      error: state !== 'completed' && job.failedReason ? withoutSecrets(job.failedReason) : null,
      tenantId: job.data?.tenantId,
    };
  }

  /** Jobs by state. */
  async counts(name: QueueName): Promise<Record<string, number>> {
    return answered(this.get(name).getJobCounts(), DEADLINE_MS);
  }

  /** Whether somebody has paused it, on the dashboard for instance. */
  async isPaused(name: QueueName): Promise<boolean> {
    return answered(this.get(name).isPaused(), DEADLINE_MS);
  }

  /**
   * Seconds that the longest waiting job has waited; 0 where none waits.
   *
   * @param counting the queue's `counts`, where they are asked for anyway
   */
  async oldestWaitingSeconds(name: QueueName, counting = this.counts(name)): Promise<number> {
    const { waiting = 0, paused = 0, prioritized = 0 } = await counting;
    const [queue, unturned] = [this.get(name), waiting + paused];
    const found = await answered(
      Promise.all([
        // Newest first on both backends (BullMQ's `asc` orders what it cut out, and on PostgreSQL cuts at the wrong end), so
        // the oldest are at the far end; some are asked for because workers take them meanwhile.
        unturned > 0 ? queue.getJobs(['waiting'], Math.max(0, unturned - FAR_END), -1) : [],
        // Every tenant's oldest has about the present turn: only of more tenants than these may one be older.
        prioritized > 0 ? queue.getJobs(['prioritized'], 0, NEXT - 1, true) : [],
      ]),
      DEADLINE_MS,
    );
    const ages = found.flat().map((job) => Date.now() - waitsSince(job));
    return Math.max(0, ...ages) / 1000;
  }

  /** One cheap question: to count jobs would take PostgreSQL the longer the more there are. @throws {QueueUnavailableError} */
  async reach(name: QueueName): Promise<void> {
    await answered(this.get(name).isPaused(), DEADLINE_MS);
  }

  /** Whether the store answers within a second. */
  async isUp(): Promise<boolean> {
    return this.reach('crawl').then(
      () => true,
      () => false,
    );
  }

  async close(): Promise<void> {
    await Promise.all([within(DEADLINE_MS, this.#turns.close(), undefined), ...this.all.map(closed)]);
  }
}

/** Who is taken out of the failed set keeps its timestamp, which is part of its identity; `failed.ts` notes the time. */
function waitsSince({ timestamp, progress }: Job): number {
  const { retriedAt } = progress instanceof Object ? (progress as { retriedAt?: unknown }) : {};
  return typeof retriedAt === 'number' ? Math.max(retriedAt, timestamp) : timestamp;
}

/** A store that is away cannot be told good-bye (BullMQ rejects then, or waits for it): its connection is cut. */
async function closed(queue: Queue): Promise<void> {
  const CLOSED = Symbol('closed');
  const ending = queue.close().then(
    () => CLOSED,
    () => undefined,
  );
  if ((await within(DEADLINE_MS, ending, undefined)) === CLOSED) return;
  await within(DEADLINE_MS, queue.disconnect(), undefined).catch(() => undefined);
}

const LATE = Symbol('late');

/** @throws {QueueUnavailableError} where the store does not answer in time or cannot; what it says about wrong data, as it is */
export async function answered<T>(work: Promise<T>, ms: number): Promise<T> {
  const result = await within(ms, work, LATE).catch((error: unknown) => {
    throw isAboutData(error) ? error : new QueueUnavailableError({ cause: error });
  });
  if (result === LATE) {
    work.catch(() => undefined); // nobody waits for it any more
    throw new QueueUnavailableError();
  }
  return result;
}

/** Our own mistake, which no waiting makes good. SQLSTATE class 22 is "data exception". */
function isAboutData(error: unknown): boolean {
  if (isReply(error)) return error.message.startsWith('ERR value is not');
  return error instanceof Error && 'code' in error && /^22[0-9A-Z]{3}$/.test(String(error.code));
}
