/**
 * The judge: reads PostgreSQL, the object store, Redis and the origin's log, and says which invariants do not hold.
 *
 *     I1  each accepted job ended once: completed, or failed for a reason of its own; who wrote a record says so
 *     I2  one record per (tenant, URL, content), one set of objects per (tenant, content); no record without its
 *         objects, no object without its record, and the bytes are those that the URL serves
 *     I3  no skip before there was a committed record of the same tenant
 *     I4  what Redis has equals what PostgreSQL has
 *     I5  no tenant sees another's
 *     I6  the workers' counters equal the outcomes; where no process was killed
 */

import { gather } from './evidence.js';
import {
  countersAgree,
  everyJobEnded,
  originWasSpared,
  outcomesAreTrue,
  resultsAreKept,
  skipsAreFounded,
} from './judge-jobs.js';
import { facesAreTheirs, objectsAreTheirs, recordsAreOne, tenantsAreApart, tiersAgree } from './judge-stores.js';
import type { Lab } from './lab.js';
import type { Accepted } from './producer.js';

export interface Expected {
  /** Accepted jobs that may be gone, because their store lost what it had not kept; the others must be there. */
  readonly lost?: (job: Accepted) => boolean;
  /** Jobs whose image must have a record, also where the job itself is gone. */
  readonly recorded?: (job: Accepted) => boolean;
  /** Jobs that ended before their tenant was invalidated: the records that they speak of held then, and need not now. */
  readonly outdated?: (job: Accepted) => boolean;
  /** Jobs that must have failed, and why. */
  readonly failed?: (job: Accepted) => string | null;
  /** Requests that the origin may have seen of one URL, for each tenant that wanted it; default: any number. */
  readonly mostRequests?: number;
  /** Requests beyond these, of all URLs together: of runs that were told to stop before they were done. */
  readonly inVain?: number;
  /** Asks for the text of every worker's `/metrics`, for I6: after everything else, so that each has heard of all ends. */
  readonly metrics?: () => Promise<readonly string[]>;
  /** Embedding jobs that had failed, were retried by hand, and ended otherwise: counted both times, for I6. */
  readonly failedBefore?: number;
  /**
   * How many ends the workers may have missed to count, for I6; default 0. Where PostgreSQL keeps the queue and breaks a
   * connection, an end can be committed and its answer lost.
   */
  readonly uncounted?: number;
}

export interface Judgement {
  /** What does not hold, each beginning with its invariant; at most 20. */
  readonly violations: readonly string[];
  readonly figures: Readonly<Record<string, number>>;
}

const MOST_SHOWN = 20;

export async function judge(lab: Lab, expected: Expected): Promise<Judgement> {
  const violations: string[] = [];
  const broken = (what: string) => void violations.push(what);
  if (lab.accepted.length === 0) broken('no job was accepted: nothing was tried');
  const evidence = await gather(lab);
  const lost = everyJobEnded(evidence, expected, broken);
  resultsAreKept(evidence, expected, broken);
  outcomesAreTrue(evidence, broken);
  skipsAreFounded(evidence, expected, broken);
  originWasSpared(evidence, expected, broken);
  recordsAreOne(evidence, broken);
  await objectsAreTheirs(evidence, broken);
  await facesAreTheirs(evidence, broken);
  await tenantsAreApart(evidence, broken);
  await tiersAgree(evidence, broken);
  await countersAgree(evidence, expected, broken);
  const { ends, contents } = evidence;
  const count = (outcome: string) => ends.filter((end) => end.outcome?.outcome === outcome).length;
  return {
    violations: violations.slice(0, MOST_SHOWN),
    figures: {
      accepted: lab.accepted.length,
      refused: lab.refused,
      stored: count('stored'),
      skipped: count('skipped'),
      rejected: count('rejected'),
      failed: ends.filter(({ state }) => state === 'failed').length,
      lost,
      contents: contents.length,
      requests: lab.origin.requests.length,
      kills: lab.kills.length,
    },
  };
}
