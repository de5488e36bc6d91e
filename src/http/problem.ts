/** Errors as `application/problem+json` (RFC 9457): one place that says what a caller is told. */
import type { FastifyError, FastifyInstance, FastifyReply } from 'fastify';
import type { z } from 'zod';
import type { App } from '../app.js';
import { ArgumentError, TierUnavailableError } from '../errors.js';
import { QueueUnavailableError } from '../queues/index.js';
import { check } from '../schema-check.js';

export const TITLES: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  413: 'Content Too Large',
  415: 'Unsupported Media Type',
  421: 'Misdirected Request',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
};

/** An answer that a route gives up with. */
export class HttpProblem extends Error {
  override readonly name = 'HttpProblem';
  constructor(
    readonly status: number,
    readonly detail: string,
    /** The part of the request that is wrong. */
    readonly field?: string,
    /** Seconds after which trying again makes sense. */
    readonly retryAfter: number | undefined = status === 503 ? 5 : undefined,
  ) {
    super(detail);
  }
}

/** Absent, and not yours, are one answer: nobody learns what another tenant has. */
export function notFound(): HttpProblem {
  return new HttpProblem(404, 'nothing is here');
}

/** The request's part as `schema` reads it, or a 400 that names the field. */
export function parsed<T>(schema: z.ZodType<T>, part: unknown): T {
  const { data, problem } = check(schema, part);
  if (problem) throw new HttpProblem(400, `${problem.field}: ${problem.expectation}`, problem.field);
  return data;
}

export function answerWithProblems(server: FastifyInstance, app: App): void {
  server.setNotFoundHandler((_request, reply) => sendProblem(reply, notFound()));
  server.setErrorHandler((error: FastifyError, request, reply) => {
    const problem = toProblem(error);
    if (problem.status === 500) app.log.error({ err: error, requestId: request.id }, 'request failed');
    return sendProblem(reply, problem);
  });
}

function toProblem(error: FastifyError): HttpProblem {
  if (error instanceof HttpProblem) return error;
  if (error instanceof ArgumentError) return new HttpProblem(400, error.message, error.argument);
  if (error instanceof QueueUnavailableError) return new HttpProblem(503, error.message);
  if (error instanceof TierUnavailableError) return new HttpProblem(503, 'the cache is unavailable: try again soon');
  const status = error.statusCode ?? 500;
  // Fastify's own refusals (size, type, JSON) say what was wrong; anything else may say too much.
  return status < 500 ? new HttpProblem(status, error.message) : new HttpProblem(500, 'something went wrong here');
}

export function sendProblem(reply: FastifyReply, { status, detail, field, retryAfter }: HttpProblem): FastifyReply {
  if (status === 401) reply.header('www-authenticate', 'Bearer');
  if (retryAfter !== undefined) reply.header('retry-after', String(retryAfter));
  const body = { type: 'about:blank', title: TITLES[status] ?? 'Error', status, detail, ...(field ? { field } : {}) };
  return reply.code(status).type('application/problem+json').send(JSON.stringify(body));
}
