/** Ask for work, and look at it. */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import type { App } from '../app.js';
import { TierUnavailableError } from '../errors.js';
import { type CrawlPayload, crawlPayload, crawlQueue } from '../queues/crawl.js';
import { embeddingQueue } from '../queues/embedding.js';
import { QueueUnavailableError } from '../queues/index.js';
import { check } from '../schema-check.js';
import type { AccessRules } from './access.js';
import { operations, serve } from './api.js';
import { Deadline } from './deadline.js';
import { notFound, parsed } from './problem.js';
import { ImageQuota } from './quota.js';
import { crawlJobsBody, embeddingJob, type job, jobPath } from './schemas.js';
import { inSlices } from './slices.js';

const CRAWL_BODY_BYTES = 32 * 1024 * 1024;

interface RejectedImage {
  readonly index: number;
  readonly url: string | null;
  readonly reason: string;
}

export function jobRoutes(server: FastifyInstance, app: App, access: AccessRules): void {
  // Before the body is read: a stranger is neither listened to for 32 MiB nor told what is wrong with them.
  const onRequest = async (request: FastifyRequest) => void access.of(request);

  const quota = new ImageQuota(app);
  const crawlOptions = { bodyLimit: CRAWL_BODY_BYTES, onRequest };
  const enqueueCrawl = async (request: FastifyRequest) => {
    const body = parsed(crawlJobsBody, request.body);
    access.tenant(request, body.tenantId);
    const isMany = body.images.length > 1;
    const deadline = new Deadline();
    // Beside the checks, and before the quota: nobody pays for what a store that is away could not take.
    const [{ payloads, urls, rejected }] = await Promise.all([sorted(body), app.queues.reach(crawlQueue.name)]);
    await quota.take(request, payloads.length);
    const enqueued = payloads.length > 0 ? app.queues.enqueue(crawlQueue, payloads) : Promise.resolve([]);
    const ids = await (isMany ? enqueued : deadline.of(enqueued, new QueueUnavailableError()));
    return { accepted: ids.map((jobId, i) => ({ url: urls[i] as string, jobId })), rejected };
  };
  serve(server, operations.enqueueCrawl, enqueueCrawl, crawlOptions);

  const enqueueEmbedding = async (request: FastifyRequest) => {
    const body = parsed(embeddingJob, request.body);
    access.tenant(request, body.tenantId);
    const deadline = new Deadline();
    const looked = app.records.content(body.tenantId, body.contentHash);
    if (!(await deadline.of(looked, new TierUnavailableError('postgres', 'no answer in time')))) throw notFound();
    const enqueued = app.queues.enqueue(embeddingQueue, [{ v: 1, ...body }]);
    const [jobId] = await deadline.of(enqueued, new QueueUnavailableError());
    return { jobId: jobId as string };
  };
  serve(server, operations.enqueueEmbedding, enqueueEmbedding, { onRequest });

  serve(server, operations.job, async (request) => {
    const allowed = access.of(request);
    const path = jobPath.safeParse(request.params);
    const found = path.success ? await app.queues.job(path.data.queue, path.data.id) : null;
    if (!found) throw notFound();
    const { tenantId, ...view } = found;
    // Another client's job may name anything, or nothing: that is for those alone who see all tenants.
    if (!allowed.all && !(typeof tenantId === 'string' && allowed.mayUse(tenantId))) throw notFound();
    // Its outcome is what a worker left: of ours, one of the union.
    return view as z.input<typeof job>;
  });
}

async function sorted({ tenantId, images, force }: z.infer<typeof crawlJobsBody>) {
  const payloads: CrawlPayload[] = [];
  const urls: string[] = [];
  const rejected: RejectedImage[] = [];
  await inSlices(images, (image, index) => {
    const fields = typeof image === 'object' && image !== null ? image : {};
    const given = 'url' in fields && typeof fields.url === 'string' ? fields.url : null;
    const { data, problem } = check(crawlPayload, { ...(force ? { force } : {}), ...fields, v: 1, tenantId });
    if (problem) {
      rejected.push({ index, url: given, reason: `${problem.field}: ${problem.expectation}` });
    } else if (given !== null) {
      payloads.push(data);
      urls.push(given);
    }
  });
  return { payloads, urls, rejected };
}
