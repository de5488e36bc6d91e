/** What the judge reads before it judges: the queue, PostgreSQL, the object store, and what the site serves. */
import { readdir } from 'node:fs/promises';
import { join, relative } from 'node:path';
import type { Job } from 'bullmq';
import type { QueueName } from '../../src/queues/contract.js';
import type { Lab } from './lab.js';
import type { Served } from './origin.js';
import type { Accepted } from './producer.js';

export interface ContentRow {
  readonly tenant: string;
  readonly hash: string;
  readonly raw: string;
  readonly thumbnail: string | null;
  readonly jobId: string | null;
  /** Milliseconds since the epoch, by PostgreSQL's clock; of its commit at the latest. */
  readonly createdAt: number;
}

export interface UrlRow {
  readonly tenant: string;
  readonly url: string;
  readonly hash: string;
  readonly createdAt: number;
}

/** How a job ended, as its queue has it. */
export interface Ended {
  readonly outcome: { outcome?: string; reason?: string; contentHash?: string; rawKey?: string } | null;
  readonly error: string | null;
}

/** What became of a job that was accepted. */
export interface End extends Ended {
  readonly job: Accepted;
  /** As BullMQ names it. */
  readonly state: string;
  /** As records name it. */
  readonly identity: string;
  /** Milliseconds since the epoch, by the clock of the queue's server. */
  readonly finishedOn: number;
}

export interface Evidence {
  readonly lab: Lab;
  /** One for each accepted job. */
  readonly ends: readonly End[];
  /** Of everything in each queue that has ended, also what nobody was told is accepted. */
  readonly ended: Readonly<Record<QueueName, readonly Ended[]>>;
  readonly contents: readonly ContentRow[];
  readonly urls: readonly UrlRow[];
  /** Keys of the object store. */
  readonly objects: ReadonlySet<string>;
  /** By URL: of those that were asked for, and those that are recorded. */
  readonly served: ReadonlyMap<string, Served | null>;
}

/** Says that something does not hold. */
export type Broken = (what: string) => void;

const AT_ONCE = 100;
const MILLIS = '(extract(epoch from created_at) * 1000)::float8 as "createdAt"';

export async function gather(lab: Lab): Promise<Evidence> {
  const ends = await endsOf(lab);
  const contents = await lab.servers.sql<ContentRow>(
    `select tenant_id as tenant, content_hash as hash, raw_key as raw, thumbnail_key as thumbnail, job_id as "jobId",
       ${MILLIS} from crawl_content_cache`,
  );
  const urls = await lab.servers.sql<UrlRow>(
    `select tenant_id as tenant, url, content_hash as hash, ${MILLIS} from crawl_cache`,
  );
  return {
    lab,
    ends,
    ended: { crawl: await endedIn(lab, 'crawl'), embedding: await endedIn(lab, 'embedding') },
    contents,
    urls,
    objects: await objectsOf(lab),
    served: await servedAt(lab, [...ends.map(({ job }) => job.url), ...urls.map(({ url }) => url)]),
  };
}

/** One for each job, as it was first accepted: a twin was given the id of the job that it found. */
async function endsOf(lab: Lab): Promise<End[]> {
  const jobs = [...new Map([...lab.accepted].reverse().map((job) => [job.id, job])).values()];
  const queue = lab.app.queues.get('crawl');
  const ends: End[] = [];
  for (let from = 0; from < jobs.length; from += AT_ONCE) {
    const found = jobs.slice(from, from + AT_ONCE).map(async (job): Promise<End> => {
      const [state, view] = await Promise.all([queue.getJobState(job.id), queue.getJob(job.id)]);
      return {
        job,
        state: view ? state : 'unknown',
        ...(view ? endOf(view) : { outcome: null, error: null }),
        identity: `${job.id}@${view?.timestamp}`,
        finishedOn: view?.finishedOn ?? 0,
      };
    });
    ends.push(...(await Promise.all(found)));
  }
  return ends;
}

/** Page by page: BullMQ asks for all jobs of a page at once, and on PostgreSQL through a few connections. */
export async function jobsOf({ app }: Lab, name: QueueName, state: 'completed' | 'failed'): Promise<Job[]> {
  const jobs: Job[] = [];
  for (let from = 0; ; from += AT_ONCE) {
    const page: Job[] = await app.queues.get(name).getJobs([state], from, from + AT_ONCE - 1);
    jobs.push(...page);
    if (page.length === 0) return jobs;
  }
}

async function endedIn(lab: Lab, name: QueueName): Promise<Ended[]> {
  return [...(await jobsOf(lab, name, 'completed')), ...(await jobsOf(lab, name, 'failed'))].map(endOf);
}

function endOf({ returnvalue, failedReason }: Job): Ended {
  return { outcome: returnvalue ?? null, error: failedReason ?? null };
}

async function objectsOf({ app, folder }: Lab): Promise<Set<string>> {
  await app.objects.tidy(0); // the collector has run
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile());
  return new Set(files.map((entry) => relative(folder, join(entry.parentPath, entry.name))));
}

async function servedAt({ origin }: Lab, urls: readonly string[]): Promise<Map<string, Served | null>> {
  const served = new Map<string, Served | null>();
  for (const url of urls) if (!served.has(url)) served.set(url, await origin.served(url));
  return served;
}
