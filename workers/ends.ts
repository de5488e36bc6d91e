/**
 * How runs end, counted and logged once the queue has recorded it: a run that lost its lock, or whose end the store
 * could not take, is told of by the run that comes after it, and by nobody else.
 */
import { type Job, UnrecoverableError, type Worker } from 'bullmq';
import type { Events, JobEnd, JobFields } from '../src/events.js';

export function tellEnds(worker: Worker, events: Events): Worker {
  return worker
    .on('completed', (job, outcome: JobEnd) => {
      events.jobRan(job.queueName, outcome.outcome, 'completed', secondsOf(job));
      events.jobCompleted(fieldsOf(job), job.data, outcome);
    })
    .on('failed', (job, error) => {
      if (!job) return; // BullMQ knows no more of it
      // Only one that is not to run again has an end.
      const willRetry = job.finishedOn === undefined;
      events.jobRan(job.queueName, 'none', willRetry ? 'retried' : 'failed', secondsOf(job));
      events.jobFailed(fieldsOf(job), causeOf(error), willRetry);
    });
}

/** In an error that no attempt would help, what the work threw. */
function causeOf(error: Error): unknown {
  return error instanceof UnrecoverableError ? (error.cause ?? error) : error;
}

export function fieldsOf(job: Job): JobFields {
  return { queue: job.queueName, jobId: String(job.id), tenantId: String(job.data?.tenantId ?? '') };
}

/** Since the run began. */
export function secondsOf({ processedOn = Date.now() }: Job): number {
  return Math.max(0, Date.now() - processedOn) / 1000;
}
