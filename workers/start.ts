/** The workers of a process: built from the app, held back while PostgreSQL is away, stopped within a deadline. */
import type { Worker } from 'bullmq';
import type { App } from '../src/app.js';
import { createBuiltInEngine } from '../src/faces/builtin.js';
import type { FaceEngine } from '../src/faces/engine.js';
import { Closer, Periodic, within } from '../src/lifecycle.js';
import type { QueueName } from '../src/queues/contract.js';
import { QueueUnavailableError } from '../src/queues/index.js';
import { Alone, DEATHS_BEFORE_ALONE } from './alone.js';
import { tellEnds } from './ends.js';
import { workOf } from './jobs.js';
import { processorOf } from './run.js';
import { startSweep } from './sweep.js';

/** The end of the deadline, in which jobs that are told to stop hand themselves back; half of it where it is short. */
const HAND_BACK_MS = 2_000;
/** From one look at what was left lying to the next, in milliseconds. */
const TEND_EVERY_MS = 5_000;

export interface Workers {
  /** Takes no more jobs, lets running ones finish and has the rest handed back within `deadlineMs`. Safe twice. */
  stop(deadlineMs: number): Promise<void>;
}

export function startWorkers(app: App, names: readonly QueueName[]): Workers {
  const closer = new Closer();
  const shutdown = new AbortController();
  const engine = app.engine ?? closer.add('face engine', ownEngine(app), (one) => one.close());
  const alone = closer.add('jobs that run alone', new Alone(app), (one) => one.close());
  const workers = names.map((name) => {
    const { contract, perform, tend } = workOf(name, app, { events: app.events, engine, closer });
    if (tend) closer.add('tending', new Periodic(TEND_EVERY_MS, unlessAway(app, tend)).start(), (one) => one.stop());
    const processor = processorOf(
      contract,
      (payload, run) => (run.deaths >= DEATHS_BEFORE_ALONE ? alone.run(name, payload, run) : perform(payload, run)),
      app.events,
      shutdown.signal,
    );
    return tellEnds(app.backend.worker(name, processor, concurrencyOf(name, app)), app.events);
  });
  if (names.length > 0) closer.add('sweep', startSweep(app, engine.models.embedding), (one) => one.stop());
  closer.add('hold', holdDuringOutage(app, workers), (release) => release());
  for (const worker of workers) worker.run().catch((error: unknown) => app.events.queueError(worker.name, error));
  let stopping: Promise<void> | undefined;
  return {
    stop: (deadlineMs) => {
      stopping ??= stop(workers, shutdown, closer, deadlineMs);
      return stopping;
    },
  };
}

/** An outage is reported by whoever needs the store, and the next round covers what this one did not. */
function unlessAway({ events }: App, round: (signal: AbortSignal) => Promise<void>) {
  return (signal: AbortSignal) =>
    round(signal).catch((error: unknown) => {
      if (!(error instanceof QueueUnavailableError)) events.troubled('tending', error);
    });
}

/** Nothing of it is loaded before the first image. */
function ownEngine({ config }: App): FaceEngine {
  return createBuiltInEngine({ threads: config.embedding.threads });
}

function concurrencyOf(name: QueueName, { config }: App): number {
  return name === 'crawl' ? config.crawl.concurrency : config.embedding.threads;
}

/** Without PostgreSQL no result can be kept: no job is taken until it is back. */
function holdDuringOutage(app: App, workers: readonly Worker[]): () => void {
  const { guard } = app.connection.tiers.postgres;
  const apply = (up: boolean) => {
    for (const worker of workers) {
      if (up) worker.resume();
      else worker.pause(true).catch((error: unknown) => app.events.queueError(worker.name, error));
    }
  };
  if (!guard.isUp) apply(false);
  return guard.onChange(apply);
}

async function stop(
  workers: readonly Worker[],
  shutdown: AbortController,
  closer: Closer,
  deadlineMs: number,
): Promise<void> {
  const closing = Promise.all(workers.map((worker) => worker.close()));
  const LATE = Symbol('late');
  const handBackMs = Math.min(HAND_BACK_MS, deadlineMs / 2);
  if ((await within(deadlineMs - handBackMs, closing, LATE)) === LATE) {
    shutdown.abort(new Error('the process shuts down'));
    // Work that is deaf to its signal ends with the process; its lock ends soon after, and it runs again elsewhere.
    await within(handBackMs, closing, undefined);
  }
  await closer.close();
}
