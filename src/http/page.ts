/**
 * The page at `/`: a few files that are served as they are and ask `GET /v1/overview` for what they show. Nothing in
 * them comes from elsewhere, and the browser is told to fetch nothing from there.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { packageFolder } from '../package.js';
import type { AccessRules } from './access.js';

/** As they lie in the package, beside the sources: they need no build. */
const FOLDER = join('src', 'http', 'page');
const SCRIPT = 'text/javascript; charset=utf-8';
const FILES = {
  '/': { name: 'index.html', type: 'text/html; charset=utf-8' },
  '/page/page.css': { name: 'page.css', type: 'text/css; charset=utf-8' },
  '/page/page.js': { name: 'page.js', type: SCRIPT },
  '/page/draw.js': { name: 'draw.js', type: SCRIPT },
  '/page/images.js': { name: 'images.js', type: SCRIPT },
  '/page/elements.js': { name: 'elements.js', type: SCRIPT },
  '/page/icon.svg': { name: 'icon.svg', type: 'image/svg+xml' },
} as const;

const HEADERS = {
  'content-security-policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join('; '),
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'cache-control': 'no-cache',
};

export async function pageRoutes(server: FastifyInstance, access: AccessRules): Promise<void> {
  const folder = join(packageFolder(), FOLDER);
  for (const [path, { name, type }] of Object.entries(FILES)) {
    const content = await readFile(join(folder, name));
    const onRequest = access.page.bind(access);
    server.get(path, { onRequest }, async (_request, reply) => reply.headers(HEADERS).type(type).send(content));
  }
}
