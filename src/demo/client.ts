/** The demo's view of the service: its HTTP API, and nothing else. */
import { setTimeout as pause } from 'node:timers/promises';
import { request } from 'undici';

export interface JobAnswer {
  readonly state: string;
  readonly outcome: Record<string, unknown> | null;
  readonly error: string | null;
}

const PAUSE_MS = 100;

export class ApiClient {
  constructor(private readonly address: string) {}

  async enqueue(tenantId: string, urls: readonly string[]): Promise<string[]> {
    const images = urls.map((url) => ({ url }));
    const { accepted } = await this.#json<{ accepted: { jobId: string }[] }>('POST', '/v1/crawl-jobs', {
      tenantId,
      images,
    });
    return accepted.map(({ jobId }) => jobId);
  }

  /** Waits until every job has ended; `onEnd` hears of each. */
  async finished(ids: readonly string[], onEnd: () => void): Promise<JobAnswer[]> {
    const ended = new Map<string, JobAnswer>();
    while (ended.size < ids.length) {
      for (const id of ids.filter((one) => !ended.has(one))) {
        const job = await this.#json<JobAnswer>('GET', `/v1/jobs/crawl/${id}`);
        if (job.state !== 'completed' && job.state !== 'failed') continue;
        ended.set(id, job);
        onEnd();
      }
      await pause(PAUSE_MS);
    }
    return ids.flatMap((id) => ended.get(id) ?? []);
  }

  /** Waits until the embedding queue is empty; `onLeft` hears how many jobs it still holds. */
  async embedded(onLeft: (jobs: number) => void): Promise<void> {
    for (;;) {
      const states = ['waiting', 'active', 'delayed', 'prioritized'];
      const counts = states.map((state) => this.counter('bullmq_job_count', { queue: 'embedding', state }));
      const left = (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
      onLeft(left);
      if (left === 0) return;
      await pause(PAUSE_MS);
    }
  }

  /** The number of faces on an image. */
  async faces(tenantId: string, contentHash: string): Promise<number> {
    const path = `/v1/tenants/${tenantId}/images/${contentHash}`;
    const { faces } = await this.#json<{ faces: unknown[] | null }>('GET', path);
    if (faces === null) throw new Error(`${path} is not embedded although the queue is empty`);
    return faces.length;
  }

  /** The sum of a metric's samples that carry all of `labels`. */
  async counter(name: string, labels: Readonly<Record<string, string>>): Promise<number> {
    const { body } = await request(`${this.address}/metrics`);
    const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
    const samples = (await body.text())
      .split('\n')
      .filter((line) => line.startsWith(`${name}{`) && wanted.every((label) => line.includes(label)));
    return samples.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }

  async #json<T>(method: 'GET' | 'POST', path: string, payload?: unknown): Promise<T> {
    const headers = { 'content-type': 'application/json' };
    const options = payload === undefined ? { method } : { method, headers, body: JSON.stringify(payload) };
    const { statusCode, body } = await request(`${this.address}${path}`, options);
    if (statusCode >= 300) throw new Error(`${method} ${path} answered ${statusCode}: ${await body.text()}`);
    return (await body.json()) as T;
  }
}
