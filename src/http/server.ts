/** The HTTP server: routes, limits, errors. `api: false` serves an operator's routes alone, for a worker process. */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { performance } from 'node:perf_hooks';
import fastify, { type FastifyInstance } from 'fastify';
import type { App } from '../app.js';
import { within } from '../lifecycle.js';
import { AccessRules } from './access.js';
import { cacheRoutes } from './cache.js';
import { imageRoutes } from './images.js';
import { jobRoutes } from './jobs.js';
import { dashboard, healthRoutes, storeGauges } from './observe.js';
import { documentRoute } from './openapi.js';
import { overviewRoutes, shareLookups } from './overview.js';
import { pageRoutes } from './page.js';
import { answerWithProblems, HttpProblem, sendProblem } from './problem.js';
import { logRequests, requestId } from './request-log.js';
import { refuseOtherOrigins } from './same-origin.js';

const BODY_BYTES = 1024 * 1024;
/** Of Node: a head is no longer. */
const MOST_PATH_CHARACTERS = 16 * 1024;

export async function createServer(app: App, { api }: { api: boolean }): Promise<FastifyInstance> {
  const server = fastify({
    bodyLimit: BODY_BYTES,
    // Routes say themselves what is too long: Fastify's own 100 characters would hide jobs of other clients.
    routerOptions: { maxParamLength: MOST_PATH_CHARACTERS },
    // A client that takes for ever to send its request holds a socket, not a job.
    requestTimeout: 60_000,
    // Connections that only wait for the next request are not waited for; `closeServer` waits for answers.
    forceCloseConnections: 'idle',
    logger: false,
    requestIdHeader: false,
    genReqId: requestId,
    // A path that cannot be decoded reaches no hook and no error handler.
    frameworkErrors: (_error, { id }, reply) =>
      sendProblem(reply.header('x-request-id', id), new HttpProblem(400, 'the path of the URL cannot be decoded')),
  });
  // A form or plain text would pass a browser's cross-origin rules; JSON alone does not.
  server.removeContentTypeParser('text/plain');
  watchAnswers(server);
  beCareful(server);
  logRequests(server, app.log);
  refuseOtherOrigins(server);
  answerWithProblems(server, app);
  healthRoutes(server, app);
  const lookups = shareLookups(server, app);
  if (!api) return server;
  documentRoute(server);
  const access = new AccessRules(app.config.http.tokens);
  storeGauges(app);
  jobRoutes(server, app, access);
  imageRoutes(server, app, access);
  cacheRoutes(server, app, access);
  overviewRoutes(server, app, access, lookups);
  await pageRoutes(server, access);
  await dashboard(server, app, access);
  return server;
}

/** Unless a route knows better: nobody guesses what an answer is, and nobody keeps it for the next who asks. */
function beCareful(server: FastifyInstance): void {
  server.addHook('onSend', async (_request, reply) => {
    reply.header('x-content-type-options', 'nosniff');
    if (!reply.hasHeader('cache-control')) reply.header('cache-control', 'no-store');
  });
}

const answers = new WeakMap<FastifyInstance, Set<ServerResponse>>();

/** Which answers are not sent to their end: Node closes a connection as idle once it has been given all that it is to send. */
function watchAnswers(server: FastifyInstance): void {
  const underWay = new Set<ServerResponse>();
  answers.set(server, underWay);
  server.server.on('request', (_, answer) => {
    underWay.add(answer);
    answer.once('close', () => underWay.delete(answer));
  });
}

/** Answers under way are sent, for at most `ms`: who does not read his answer, or send his request, is cut off then. */
export async function closeServer(server: FastifyInstance, ms: number): Promise<void> {
  const end = performance.now() + ms;
  const underWay = [...(answers.get(server) ?? [])];
  await within(ms, Promise.all(underWay.map((answer) => once(answer, 'close'))), undefined);
  const LATE = Symbol('late');
  const closing = server.close();
  if ((await within(Math.max(0, end - performance.now()), closing, LATE)) === LATE) server.server.closeAllConnections();
  await closing;
}
