/** Ask for work, and look at it. */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { App } from '../app.js';
import { isSoundText } from '../kinds/kind.js';
import { firstProblem, QUEUE_NAMES, tenantId } from '../queues/contract.js';
import { type CrawlPayload, crawlPayload, crawlQueue } from '../queues/crawl.js';
import { embeddingPayload, embeddingQueue } from '../queues/embedding.js';
import type { AccessRules } from './access.js';
import { notFound, parsed } from './problem.js';

const MOST_IMAGES = 10_000;
const CRAWL_BODY_BYTES = 32 * 1024 * 1024;

const crawlJobs = z.object({
  tenantId,
  /** Each is checked by itself: one bad URL refuses itself alone. */
  images: z.array(z.unknown()).min(1).max(MOST_IMAGES),
  force: z.boolean().optional(),
});

const embeddingJob = embeddingPayload.omit({ v: true });

const jobPath = z.object({ queue: z.enum(QUEUE_NAMES), id: z.string().min(1).max(200).refine(isSoundText) });

interface RejectedImage {
  readonly index: number;
  readonly url: string | null;
  readonly reason: string;
}

export function jobRoutes(server: FastifyInstance, app: App, access: AccessRules): void {
  // Before the body is read: a stranger is neither listened to for 32 MiB nor told what is wrong with them.
  const onRequest = async (request: FastifyRequest) => void access.of(request);

  server.post('/v1/crawl-jobs', { bodyLimit: CRAWL_BODY_BYTES, onRequest }, async (request, reply) => {
    const body = parsed(crawlJobs, request.body);
    access.tenant(request, body.tenantId);
    const { payloads, urls, rejected } = sorted(body);
    const ids = payloads.length > 0 ? await app.queues.enqueue(crawlQueue, payloads) : [];
    const accepted = ids.map((jobId, i) => ({ url: urls[i], jobId }));
    return reply.code(202).send({ accepted, rejected });
  });

  server.post('/v1/embedding-jobs', { onRequest }, async (request, reply) => {
    const body = parsed(embeddingJob, request.body);
    access.tenant(request, body.tenantId);
    if (!(await app.records.content(body.tenantId, body.contentHash))) throw notFound();
    const [jobId] = await app.queues.enqueue(embeddingQueue, [{ v: 1, ...body }]);
    return reply.code(202).send({ jobId });
  });

  server.get('/v1/jobs/:queue/:id', async (request) => {
    const allowed = access.of(request);
    const path = jobPath.safeParse(request.params);
    const job = path.success ? await app.queues.job(path.data.queue, path.data.id) : null;
    if (!job || !(allowed.all || allowed.mayUse(String(job.tenantId)))) throw notFound();
    const { tenantId: _, ...view } = job;
    return view;
  });
}

function sorted({ tenantId, images, force }: z.infer<typeof crawlJobs>) {
  const payloads: CrawlPayload[] = [];
  const urls: string[] = [];
  const rejected: RejectedImage[] = [];
  images.forEach((image, index) => {
    const fields = typeof image === 'object' && image !== null ? image : {};
    const given = 'url' in fields && typeof fields.url === 'string' ? fields.url : null;
    const result = crawlPayload.safeParse({ ...fields, v: 1, tenantId, ...(force ? { force } : {}) });
    if (result.success && given !== null) {
      payloads.push(result.data);
      urls.push(given);
    } else if (!result.success) {
      const { field, expectation } = firstProblem(result.error);
      rejected.push({ index, url: given, reason: `${field}: ${expectation}` });
    }
  });
  return { payloads, urls, rejected };
}
