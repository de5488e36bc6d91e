/**
 * A browser sends a person's credentials (HTTP Basic, or that it runs on this machine) with requests of any page. What
 * changes something is therefore refused where the browser says that a page of another origin asked for it: in
 * `Sec-Fetch-Site`, or, where that is not sent (plain HTTP to another machine), in `Origin`. Who sends neither is no
 * browser. The rule is that of Go's `http.CrossOriginProtection`.
 */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { HttpProblem, sendProblem } from './problem.js';

const SAFE_METHODS = ['GET', 'HEAD', 'OPTIONS'];

export function refuseOtherOrigins(server: FastifyInstance): void {
  server.addHook('onRequest', async (request, reply) => {
    if (SAFE_METHODS.includes(request.method) || bringsToken(request) || isOfThisOrigin(request)) return;
    // Said here and not thrown: the dashboard's own error handler would make a 500 of it.
    await sendProblem(reply, new HttpProblem(403, 'a page of another origin may not do this'));
  });
}

/** No browser adds one by itself: whoever wrote the page has it. */
function bringsToken({ headers }: FastifyRequest): boolean {
  return /^Bearer /i.test(headers.authorization ?? '');
}

function isOfThisOrigin({ headers }: FastifyRequest): boolean {
  const site = headers['sec-fetch-site'];
  if (site !== undefined) return site === 'same-origin' || site === 'none';
  const { origin, host } = headers;
  // The scheme is not compared: a proxy may have taken TLS off. `null`, of a sandboxed frame, is no URL.
  return origin === undefined || (URL.canParse(origin) && new URL(origin).host === host);
}
