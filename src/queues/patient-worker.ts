/** BullMQ's worker, without what it would do to a job that is another run's, or that did its work. */
import { AsyncLocalStorage } from 'node:async_hooks';
import { type Job, type Processor, UnrecoverableError, Worker, type WorkerOptions } from 'bullmq';
import { JobLostError } from '../errors.js';
import type { createPatientBackend } from './patient-postgres.js';
import type { createTimelyRedis } from './timely-redis.js';

type BackendFactory = typeof createPatientBackend | typeof createTimelyRedis;

/** How often a worker looks whether it stood still, in milliseconds; and how late that is where it did. */
const LOOK_MS = 500;
const STILL_MS = 500;
const STOOD_STILL = 'the process stood still for longer than its lock lasts';

/** The lock of a run. */
interface Lock {
  readonly id: string;
  /** It is sure to last until then: milliseconds since the epoch. */
  until: number;
}

/**
 * BullMQ 6.7 keeps locks by a job's id alone. A job that is put off for a moment can run in the next slot while its last run
 * is on its way out: that run does not end the other one's lock, nor does a renewal that came too late stop it.
 *
 * Nor does it know of a lock that ended while its process stood still before its renewal is refused: by then a run may have
 * acted on what it reads first. Such a run is told to stop before anything is read. Where it is the store that is away, a
 * run goes on: nobody else can take its job.
 *
 * It also fails a job whose end could not be recorded, when the store died in the middle of it ("Connection
 * terminated" is not among the errors it waits out). Such a job did its work: it is left alone, its lock ends, and its
 * next run finds what this one wrote. Only what the work itself threw is a failure.
 */
export class PatientWorker extends Worker {
  readonly #thrown: WeakSet<object>;
  /** The token of the run that BullMQ is at. */
  readonly #token = new AsyncLocalStorage<string>();
  /** Of the runs under way, by token. */
  readonly #locks = new Map<string, Lock>();

  constructor(name: string, processor: Processor, options: WorkerOptions, backend: BackendFactory) {
    const thrown = new WeakSet<object>();
    const remembering: Processor = async (job, token, signal) => {
      try {
        return await processor(job, token, signal);
      } catch (thing) {
        const error = thing instanceof Error ? thing : new Error(String(thing));
        thrown.add(error);
        throw error;
      }
    };
    // The types tie a worker to one kind of backend; what is overridden below is the same for both.
    super(name, remembering, options, backend as never);
    this.#thrown = thrown;
    // Another worker may have the job by now: this one stops working on it.
    this.on('lockRenewalFailed', (ids) => {
      for (const id of ids) this.#lose(id, 'its lock was lost');
    });
    this.#watchForStandstills();
    const untrack = this.lockManager.untrackJob.bind(this.lockManager);
    this.lockManager.untrackJob = (id) => {
      if (this.#isHeldBy(this.#token.getStore(), id)) untrack(id);
    };
  }

  override async processJob(...args: Parameters<Worker['processJob']>): ReturnType<Worker['processJob']> {
    const [job, token] = args;
    const id = String(job.id);
    // A run that lost the job without knowing: nothing would tell it any more.
    this.#lose(id, 'the job runs again');
    const now = Date.now();
    const lock = { id, until: (job.processedOn ?? now) + (this.opts.lockDuration as number) };
    this.#locks.set(token, lock);
    try {
      const running = this.#token.run(token, () => super.processJob(...args));
      if (lock.until < now) this.#lose(id, STOOD_STILL);
      return await running;
    } finally {
      this.#locks.delete(token);
    }
  }

  override async extendJobLocks(ids: string[], tokens: string[], ms: number): Promise<string[]> {
    const until = Date.now() + ms;
    const lost = await super.extendJobLocks(ids, tokens, ms);
    for (const [i, id] of ids.entries()) {
      const lock = this.#locks.get(tokens[i] as string);
      if (lock?.id === id && !lost.includes(id)) lock.until = until;
    }
    return lost.filter((id) => this.#isHeldBy(tokens[ids.indexOf(id)], id));
  }

  /** Timers run before sockets are read: whoever lost its job meanwhile hears of it before all else. */
  #watchForStandstills(): void {
    let last = Date.now();
    const look = () => {
      const now = Date.now();
      const late = now - last - LOOK_MS;
      last = now;
      if (late < STILL_MS) return;
      for (const { id, until } of this.#locks.values()) if (until < now) this.#lose(id, STOOD_STILL);
    };
    const looking = setInterval(look, LOOK_MS).unref();
    this.on('closed', () => clearInterval(looking));
  }

  #lose(id: string, how: string): void {
    // BullMQ hands on whatever it is given.
    this.cancelJob(id, new JobLostError(how) as unknown as string);
  }

  #isHeldBy(token: string | undefined, id: string): boolean {
    const { trackedJobs } = this.lockManager as unknown as { trackedJobs: Map<string, { token: string }> };
    return trackedJobs.get(id)?.token === token;
  }

  protected override async handleFailed(...args: Parameters<Worker['handleFailed']>): Promise<Job> {
    const [error] = args;
    if (this.#thrown.has(error) || error instanceof UnrecoverableError) return super.handleFailed(...args);
    this.emit('error', error);
    return undefined as never; // as BullMQ itself does where there is no next job
  }
}
