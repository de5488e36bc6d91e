/** Who may do what: bearer tokens of tenants, `*` for everything, and the loopback rule where there are none. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { ApiToken } from '../config.js';
import { HttpProblem, notFound } from './problem.js';

/** What a request's token opens. */
export interface Access {
  mayUse(tenantId: string): boolean;
  readonly all: boolean;
  /** Those it opens, where it does not open all. */
  readonly tenants: ReadonlySet<string>;
}

const EVERYTHING: Access = { mayUse: () => true, all: true, tenants: new Set() };

const MISDIRECTED = 'without API_TOKENS this server answers to loopback names alone';
const LOOPBACK_HOST = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$/i;

export class AccessRules {
  readonly #tokens: readonly { readonly digest: Buffer; readonly tenant: string }[];

  constructor(tokens: readonly ApiToken[]) {
    this.#tokens = tokens.map(({ token, tenant }) => ({ digest: digestOf(token), tenant }));
  }

  /**
   * What the request may use.
   *
   * @throws {HttpProblem} 401 without a known token; 421 where no token is set and a browser was led here under another
   * name (DNS rebinding)
   */
  of(request: FastifyRequest): Access {
    return this.#openedBy(request, bearer(request));
  }

  /**
   * As `of`, for what the page shows: the token may also be the password of HTTP Basic, which is what a browser sends
   * along with an `<img>`. It sends it by itself, so never for what changes something.
   */
  viewer(request: FastifyRequest): Access {
    return this.#openedBy(request, bearer(request) ?? basicPassword(request));
  }

  /** The tenant, where the request may use it. @throws {HttpProblem} 404 as if it were absent */
  tenant(request: FastifyRequest, tenantId: string): string {
    if (!this.of(request).mayUse(tenantId)) throw notFound();
    return tenantId;
  }

  /** HTTP Basic for people at the page: any name, and any token as the password. */
  async page(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    try {
      this.viewer(request);
    } catch (error) {
      if (!(error instanceof HttpProblem) || error.status !== 401) throw error;
      reply.header('www-authenticate', 'Basic realm="hybrid-cache-service", charset="UTF-8"');
      await reply.code(401).send('This page needs a token as the password; the name does not matter.');
    }
  }

  /** HTTP Basic for people at the dashboard: any name, and a `*` token as the password. */
  async dashboard(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    if (this.#tokens.length === 0) {
      // Said here and not thrown: below, the dashboard's own error handler would make a 500 of it.
      if (!namesLoopback(request)) await reply.code(421).send(MISDIRECTED);
      return;
    }
    const password = basicPassword(request);
    if (password !== null && this.#opened(password)?.all) return;
    reply.header('www-authenticate', 'Basic realm="dashboard", charset="UTF-8"');
    await reply.code(401).send('The dashboard needs a token for all tenants as the password.');
  }

  #openedBy(request: FastifyRequest, given: string | null): Access {
    if (this.#tokens.length === 0) return openOnLoopback(request);
    const access = given === null ? null : this.#opened(given);
    if (!access) throw new HttpProblem(401, 'send a token of API_TOKENS as "Authorization: Bearer …"');
    return access;
  }

  /** Compares with every token, in a time that tells nothing about which one came close. */
  #opened(given: string): Access | null {
    const digest = digestOf(given);
    const tenants = new Set<string>();
    for (const token of this.#tokens) {
      if (timingSafeEqual(token.digest, digest)) tenants.add(token.tenant);
    }
    if (tenants.has('*')) return EVERYTHING;
    return tenants.size > 0 ? { mayUse: (tenantId) => tenants.has(tenantId), all: false, tenants } : null;
  }
}

function openOnLoopback(request: FastifyRequest): Access {
  if (namesLoopback(request)) return EVERYTHING;
  throw new HttpProblem(421, MISDIRECTED);
}

function namesLoopback({ headers }: FastifyRequest): boolean {
  return LOOPBACK_HOST.test(headers.host ?? '');
}

function digestOf(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

export function bearer({ headers }: FastifyRequest): string | null {
  return /^Bearer +(\S+)$/i.exec(headers.authorization ?? '')?.[1] ?? null;
}

function basicPassword({ headers }: FastifyRequest): string | null {
  const encoded = /^Basic +(\S+)$/i.exec(headers.authorization ?? '')?.[1];
  if (!encoded) return null;
  const pair = Buffer.from(encoded, 'base64').toString();
  const cut = pair.indexOf(':');
  return cut < 0 ? null : pair.slice(cut + 1);
}
