/** Every operation of the API, declared once: `serve` mounts it, `openapi.ts` writes it down. */
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteShorthandOptions } from 'fastify';
import { z } from 'zod';
import * as schemas from './schemas.js';

/** The security schemes of an access, each of which is enough. */
export const SECURITY = {
  open: [],
  tenant: ['token'],
  viewer: ['token', 'password'],
  all: ['token'],
  dashboard: ['password'],
} as const;

export interface Operation<Answer extends z.ZodType = z.ZodType> {
  readonly id: string;
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** With its parameters in braces. */
  readonly path: string;
  readonly summary: string;
  readonly description?: string;
  /** `tenant` wants a token of the tenant, `all` and `dashboard` one for all of them. */
  readonly access: keyof typeof SECURITY;
  readonly params?: z.ZodObject;
  readonly query?: z.ZodObject;
  readonly body?: z.ZodObject;
  readonly answer: {
    readonly status: number;
    readonly description: string;
    /** What it is made of; where it is not JSON, `type` says what it is. */
    readonly schema: Answer;
    readonly type?: string;
  };
  /** It carries an `ETag`: who has it still is answered with 304. */
  readonly tagged?: true;
  /** Another status with the same answer. */
  readonly also?: { readonly status: number; readonly description: string };
  /** Statuses of problems beyond those that come with the method, the body and the access. */
  readonly problems?: readonly number[];
}

/** The same, and inferred as it stands. */
const operation = <Answer extends z.ZodType>(declared: Operation<Answer>) => declared;

const text = z.string();
const bytes = z.instanceof(Buffer);

export const operations = {
  enqueueCrawl: operation({
    id: 'enqueueCrawl',
    method: 'POST',
    path: '/v1/crawl-jobs',
    summary: 'Enqueue images to be crawled',
    description:
      'Each image is accepted or rejected by itself. While a job for the same tenant, canonical URL and `force` waits ' +
      'or runs, its id is given again and nothing is enqueued: a request that got no answer can be sent again.',
    access: 'tenant',
    body: schemas.crawlJobs,
    answer: { status: 202, description: 'What was enqueued, and what was not.', schema: schemas.crawlJobsAccepted },
    problems: [404, 429, 503],
  }),
  enqueueEmbedding: operation({
    id: 'enqueueEmbedding',
    method: 'POST',
    path: '/v1/embedding-jobs',
    summary: 'Enqueue an image that is stored to be embedded',
    access: 'tenant',
    body: schemas.embeddingJob,
    answer: { status: 202, description: 'The job.', schema: schemas.embeddingJobAccepted },
    problems: [404, 503],
  }),
  job: operation({
    id: 'getJob',
    method: 'GET',
    path: '/v1/jobs/{queue}/{id}',
    summary: 'A job’s state and outcome',
    access: 'tenant',
    params: schemas.jobPath,
    answer: { status: 200, description: 'The job.', schema: schemas.job },
    problems: [404, 503],
  }),
  image: operation({
    id: 'getImage',
    method: 'GET',
    path: '/v1/tenants/{tenantId}/images/{contentHash}',
    summary: 'What is known of an image',
    access: 'viewer',
    params: schemas.imagePath,
    answer: { status: 200, description: 'The image, its faces with their vectors.', schema: schemas.image },
    problems: [404, 503],
  }),
  raw: operation({
    id: 'getRawImage',
    method: 'GET',
    path: '/v1/tenants/{tenantId}/images/{contentHash}/raw',
    summary: 'The bytes as they were fetched',
    access: 'viewer',
    params: schemas.imagePath,
    answer: { status: 200, description: 'The bytes.', schema: bytes, type: 'image/*' },
    tagged: true,
    problems: [404, 503],
  }),
  thumbnail: operation({
    id: 'getThumbnail',
    method: 'GET',
    path: '/v1/tenants/{tenantId}/images/{contentHash}/thumbnail',
    summary: 'A small JPEG of the image, upright',
    access: 'viewer',
    params: schemas.imagePath,
    answer: { status: 200, description: 'The bytes.', schema: bytes, type: 'image/jpeg' },
    tagged: true,
    problems: [404, 503],
  }),
  explain: operation({
    id: 'explainUrl',
    method: 'GET',
    path: '/v1/tenants/{tenantId}/explain',
    summary: 'What is known of a URL, and whether a crawl of it would be skipped',
    access: 'tenant',
    params: schemas.tenantPath,
    query: schemas.explainQuery,
    answer: { status: 200, description: 'What is known.', schema: schemas.explanation },
    problems: [400, 404, 503],
  }),
  invalidate: operation({
    id: 'invalidateTenantCache',
    method: 'DELETE',
    path: '/v1/tenants/{tenantId}/cache',
    summary: 'Forget what is cached of a tenant',
    description: 'Its crawl records go too: its images are 404 until they are crawled again. Objects stay.',
    access: 'tenant',
    params: schemas.tenantPath,
    answer: { status: 200, description: 'How much was forgotten.', schema: schemas.invalidated },
    problems: [404, 503],
  }),
  statistics: operation({
    id: 'getCacheStats',
    method: 'GET',
    path: '/v1/cache/stats',
    summary: 'What both tiers hold, and how look-ups were answered',
    access: 'all',
    answer: { status: 200, description: 'Figures of all tenants together.', schema: schemas.statistics },
    problems: [404],
  }),
  overview: operation({
    id: 'getOverview',
    method: 'GET',
    path: '/v1/overview',
    summary: 'What the page at `/` shows',
    description:
      'The newest jobs, images and troubles of the token’s tenants, and of all of them what they hold. An answer may be ' +
      'a second old, counts some seconds. Made for the page: what it shows may change with it.',
    access: 'viewer',
    answer: { status: 200, description: 'What the stores say now.', schema: schemas.overview },
  }),
  dashboard: operation({
    id: 'dashboard',
    method: 'GET',
    path: '/dashboard',
    summary: 'The queue dashboard, for people',
    access: 'dashboard',
    answer: { status: 200, description: 'A page.', schema: text, type: 'text/html' },
  }),
  metrics: operation({
    id: 'metrics',
    method: 'GET',
    path: '/metrics',
    summary: 'Metrics in Prometheus’ text format',
    access: 'open',
    answer: { status: 200, description: 'The metrics of this process.', schema: text, type: 'text/plain' },
  }),
  health: operation({
    id: 'health',
    method: 'GET',
    path: '/healthz',
    summary: 'Whether this process lives',
    access: 'open',
    answer: { status: 200, description: 'It does.', schema: schemas.health },
  }),
  ready: operation({
    id: 'ready',
    method: 'GET',
    path: '/readyz',
    summary: 'Whether work can be done',
    access: 'open',
    answer: { status: 200, description: 'It can; `degraded` names what is away.', schema: schemas.readiness },
    also: { status: 503, description: 'The queue’s store or both tiers are away.' },
  }),
  openapi: operation({
    id: 'openapi',
    method: 'GET',
    path: '/openapi.json',
    summary: 'This document',
    access: 'open',
    answer: { status: 200, description: 'OpenAPI 3.1.', schema: z.looseObject({ openapi: z.string() }) },
  }),
};

/** Mounts an operation. What `perform` resolves with is checked, by its type, to be what is declared, or sent already. */
export function serve<Answer extends z.ZodType>(
  server: FastifyInstance,
  { method, path, answer }: Operation<Answer>,
  perform: (request: FastifyRequest, reply: FastifyReply) => Promise<z.input<NoInfer<Answer>> | FastifyReply>,
  options: RouteShorthandOptions = {},
): void {
  server.route({
    ...options,
    method,
    url: path.replace(/\{(\w+)\}/g, ':$1'),
    handler: (request, reply) => perform(request, reply.code(answer.status)),
  });
}
