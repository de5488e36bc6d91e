/**
 * The jobs of a queue that ended last, as the queue's store keeps them: what several processes did, seen from any one.
 * Which they are is asked for each time; what became of each is read once.
 */
import type { Job } from 'bullmq';
import { failureReasonOf } from '../errors.js';
import { withoutSecrets } from '../logger.js';
import type { QueueName } from '../queues/contract.js';
import { answered, type Queues } from '../queues/index.js';

export interface EndedJob {
  readonly tenantId: string | null;
  readonly queue: QueueName;
  /** Milliseconds since the epoch. */
  readonly at: number;
  /** As in the metrics. */
  readonly outcome: string;
  readonly reason: string | null;
  readonly faces: number;
  /** Host and path of the URL, without its query, which may be a signature; or a content hash. */
  readonly subject: string;
  /** Why it was rejected or failed, in words that may be another site's. */
  readonly detail: string | null;
}

export interface EndedJobs {
  /** Newest first. */
  readonly jobs: readonly EndedJob[];
  /** Whether there are older ones that were not read. */
  readonly more: boolean;
}

/** Jobs that are looked at; of a queue on PostgreSQL each costs a statement, the first time. */
const MOST = 1_000;
const BATCH = 200;
const DEADLINE_MS = 5_000;
/** A job that is run again ends under its old id: what is known of it is believed for so long, in milliseconds. */
const BELIEVED_MS: Record<Ending, number> = { completed: 60_000, failed: 10_000 };

type Ending = 'completed' | 'failed';

export class EndedJobWindow {
  #known = new Map<string, EndedJob>();
  #since = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly queues: Queues,
    private readonly name: QueueName,
    private readonly ending: Ending,
  ) {}

  /** Not to be called again before it has answered. @throws {QueueUnavailableError} within seconds */
  async read(): Promise<EndedJobs> {
    await this.queues.reach(this.name); // says within a second that the store is away
    const queue = this.queues.get(this.name);
    const ids = await answered(queue.getRanges([this.ending], 0, MOST), DEADLINE_MS);
    if (performance.now() - this.#since > BELIEVED_MS[this.ending]) {
      this.#known = new Map();
      this.#since = performance.now();
    }
    const window = ids.slice(0, MOST);
    const known = new Map<string, EndedJob>();
    for (let from = 0; from < window.length; from += BATCH) {
      const reading = window.slice(from, from + BATCH).map(async (id) => {
        const job = this.#known.get(id) ?? viewOf(this.name, this.ending, await queue.getJob(id));
        return [id, job] as const;
      });
      for (const [id, job] of await answered(Promise.all(reading), DEADLINE_MS)) if (job) known.set(id, job);
    }
    this.#known = known;
    return { jobs: [...known.values()], more: ids.length > MOST };
  }
}

/** `null` for a job that was removed, or runs again, since its id was read. */
function viewOf(queue: QueueName, ending: Ending, job: Job | undefined): EndedJob | null {
  if (job?.finishedOn === undefined) return null;
  const data = fieldsOf(job.data);
  const about = { tenantId: textOf(data.tenantId), queue, at: job.finishedOn, subject: subjectOf(data) };
  if (ending === 'failed') {
    const words = job.failedReason ?? '';
    const reason = failureReasonOf(words);
    const detail = words.startsWith(`${reason}: `) ? words.slice(reason.length + 2) : words;
    return { ...about, outcome: 'failed', reason, faces: 0, detail: short(detail) };
  }
  const end = fieldsOf(job.returnvalue);
  return {
    ...about,
    outcome: textOf(end.outcome) ?? 'unknown',
    reason: textOf(end.reason),
    faces: typeof end.faces === 'number' ? end.faces : 0,
    detail: short(textOf(end.detail)),
  };
}

/** Of whatever another client has put there. */
function fieldsOf(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? { ...value } : {};
}

function textOf(value: unknown): string | null {
  return typeof value === 'string' ? value : null;
}

const MOST_CHARACTERS = 300;

function short(text: string | null): string | null {
  return text === null ? null : withoutSecrets(text).slice(0, MOST_CHARACTERS);
}

function subjectOf({ url, contentHash }: Record<string, unknown>): string {
  return hostAndPath(textOf(url)) ?? textOf(contentHash)?.slice(0, MOST_CHARACTERS) ?? '';
}

/** A URL as people may see it: its query may be a signature, and its user information a password. */
export function hostAndPath(url: string | null): string | null {
  if (url === null || !URL.canParse(url)) return null;
  const { host, pathname } = new URL(url);
  return (host + pathname).slice(0, MOST_CHARACTERS);
}
