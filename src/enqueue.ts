/** `hybrid-cache enqueue`: a list of URLs becomes crawl jobs. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import type { App } from './app.js';
import { checkTenantId } from './kinds/kind.js';
import { firstProblem } from './queues/contract.js';
import { type CrawlPayload, crawlPayload, crawlQueue } from './queues/crawl.js';

const BATCH = 1_000;
const PAUSE_MS = 200;

interface EnqueueOptions {
  readonly tenant: string;
  readonly force?: boolean;
  readonly wait?: boolean;
}

/** @returns the exit code: 1 where a line was refused or a job failed */
export async function enqueueList(app: App, file: string, options: EnqueueOptions): Promise<number> {
  checkTenantId(options.tenant);
  const refused: string[] = [];
  const ids: string[] = [];
  for await (const batch of batches(file, options, refused)) {
    ids.push(...(await app.queues.enqueue(crawlQueue, batch)));
    process.stderr.write(`enqueued ${ids.length}\n`);
  }
  if (ids.length === 0) process.stderr.write('enqueued 0\n');
  for (const line of refused) process.stderr.write(`refused ${line}\n`);
  const failed = options.wait ? await summarize(app, [...new Set(ids)]) : 0;
  return refused.length + failed > 0 ? 1 : 0;
}

async function* batches(file: string, { tenant, force }: EnqueueOptions, refused: string[]) {
  const input = file === '-' ? process.stdin : createReadStream(file);
  let batch: CrawlPayload[] = [];
  let number = 0;
  for await (const line of createInterface({ input })) {
    number += 1;
    if (line.trim() === '') continue;
    const result = crawlPayload.safeParse({ v: 1, tenantId: tenant, url: line.trim(), ...(force ? { force } : {}) });
    if (result.success) batch.push(result.data);
    else refused.push(`line ${number}: ${firstProblem(result.error).expectation}`);
    if (batch.length < BATCH) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

/** Waits for every job and prints how many ended how. @returns how many failed */
async function summarize(app: App, ids: readonly string[]): Promise<number> {
  const counts = new Map<string, number>();
  for (const id of ids) {
    const end = await ended(app, id);
    counts.set(end, (counts.get(end) ?? 0) + 1);
  }
  for (const [end, count] of counts) process.stdout.write(`${end}\t${count}\n`);
  return counts.get('failed') ?? 0;
}

async function ended(app: App, id: string): Promise<string> {
  for (;;) {
    const job = await app.queues.job('crawl', id);
    if (!job || job.state === 'failed') return job ? 'failed' : 'gone';
    if (job.state === 'completed') {
      const { outcome, reason } = job.outcome as { outcome: string; reason?: string };
      return reason ? `${outcome}: ${reason}` : outcome;
    }
    await pause(PAUSE_MS);
  }
}
