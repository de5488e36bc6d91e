/** Each request has an id: in its answer, in the log line of its failure, and at debug in one line for every answer. */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { FastifyInstance } from 'fastify';
import type { Logger } from '../logger.js';

/** What tracing systems send: ids, UUIDs, base64. Anything else could forge or flood a log. */
const SANE_ID = /^[\w.+/=:-]{1,128}$/;

/** The caller's own, or a new one. */
export function requestId({ headers }: Pick<IncomingMessage, 'headers'>): string {
  const given = headers['x-request-id'];
  return typeof given === 'string' && SANE_ID.test(given) ? given : randomUUID();
}

export function logRequests(server: FastifyInstance, log: Logger): void {
  server.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id);
  });
  server.addHook('onResponse', async ({ id, method, url }, { statusCode, elapsedTime }) => {
    // Without the query, which may hold somebody's signed URL.
    const path = url.replace(/\?.*/s, '');
    log.debug({ requestId: id, method, path, status: statusCode, ms: Math.round(elapsedTime) }, 'request answered');
  });
}
