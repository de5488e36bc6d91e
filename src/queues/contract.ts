/** What may be asked: a queue is a name, a payload that is checked on both ends, an identity and a retry policy. */
import { randomUUID } from 'node:crypto';
import type { JobsOptions } from 'bullmq';
import { z } from 'zod';
import { sha256 } from '../kinds/identity.js';
import { TENANT_ID } from '../kinds/kind.js';

export const QUEUE_NAMES = ['crawl', 'embedding'] as const;
export type QueueName = (typeof QUEUE_NAMES)[number];

export interface QueueContract<Payload> {
  readonly name: QueueName;
  readonly payload: z.ZodType<Payload>;
  /** Two jobs of the same identity are one while the first waits or runs. */
  identity(payload: Payload): readonly string[];
  readonly attempts: number;
}

const HOUR = 3600;

export const RETENTION = {
  removeOnComplete: { age: HOUR, count: 100_000 },
  removeOnFail: { age: 14 * 24 * HOUR },
} as const;

/** Name of the waits between attempts, which `backend.ts` computes: they need the error to honour `Retry-After`. */
export const BACKOFF = { type: 'service' } as const;

/**
 * How one job is put into its queue. Its id is random, never reused and free of `:`, so that a record that names its
 * job names one job for ever, also after Redis has lost its counters.
 */
export function jobOptions<Payload>(contract: QueueContract<Payload>, payload: Payload) {
  return {
    jobId: randomUUID(),
    deduplication: { id: sha256(contract.identity(payload).join('\n')) },
    attempts: contract.attempts,
    backoff: BACKOFF,
    ...RETENTION,
  } satisfies JobsOptions;
}

/** The tenant as every payload names it. */
export const tenantId = z.string().regex(TENANT_ID, 'expected 1 to 100 of letters, digits, ".", "_", "-"');
