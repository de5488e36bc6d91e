/** `npm run demo`: the whole story on this machine, from nothing, leaving nothing behind. */
import { randomBytes } from 'node:crypto';
import { join, resolve } from 'node:path';
import { type App, connect } from '../app.js';
import { type Config, type Env, toConfig } from '../config.js';
import { migrate } from '../db/migrate.js';
import { Closer } from '../lifecycle.js';
import { type LocalStack, startLocalStack } from '../local/stack.js';
import { createLogger } from '../logger.js';
import { Progress } from '../progress.js';
import { forgetNamespace } from './cleanup.js';
import { ApiClient } from './client.js';
import { type PassResult, runPass } from './pass.js';
import { startDemoSite } from './site.js';
import { tableOf } from './table.js';

export interface DemoOptions {
  /** Leaves the service up after the passes, until a signal. */
  readonly keep: boolean;
  /** Prints the passes as JSON in the place of the table. */
  readonly json: boolean;
  readonly env: Env;
  /** Starts API and workers; the demo itself knows no worker. */
  readonly run: (app: App) => Promise<{ address: string; stop(): Promise<void> }>;
  /** Fires when the user wants it to end. */
  readonly signal: AbortSignal;
}

const TENANTS = ['acme', 'globex'];
const LOCAL = resolve('.local');

export async function demo(options: DemoOptions): Promise<void> {
  await using closer = new Closer();
  const say = (line: string) => process.stderr.write(`${line}\n`);
  const ended = once(options.signal);
  const story = tell(options, closer, say);
  await Promise.race([story, ended]);
  if (options.signal.aborted) say('\nstopping');
}

async function tell(options: DemoOptions, closer: Closer, say: (line: string) => void): Promise<void> {
  const servers = await startServers(options, closer, say);
  const site = closer.add('site', await startDemoSite(), (one) => one[Symbol.asyncDispose]());
  const config = toConfig({ ...servers, FETCH_ALLOW: `127.0.0.1/32:${site.port}` });
  await migrate(config.postgres, { queueOnPostgres: config.queue.backend === 'postgres' });
  const app = closer.add('app', connectApp(config, closer), (one) => one.close());
  const service = closer.add('service', await options.run(app), (one) => one.stop());
  const client = new ApiClient(service.address);
  const passes: PassResult[] = [];
  for (const pass of [1, 2]) {
    say(`\npass ${pass}: ${site.urls.length} URLs for each of ${TENANTS.length} tenants`);
    const work = { tenants: TENANTS, urls: site.urls, requests: site.requests };
    passes.push(await runPass(client, work, new Progress(process.stderr)));
  }
  process.stdout.write(options.json ? `${JSON.stringify({ passes })}\n` : `\n${tableOf(passes)}\n`);
  if (!options.keep) return;
  const { address } = service;
  say(`\nPage       ${address}/\nDashboard  ${address}/dashboard\nMetrics    ${address}/metrics\nCtrl-C ends it.`);
  await once(options.signal);
}

/** Its own PostgreSQL always; the Redis of `REDIS_URL` where one is named, else its own, else none. */
async function startServers({ env, keep }: DemoOptions, closer: Closer, say: (line: string) => void): Promise<Env> {
  const folder = join(LOCAL, `demo-${randomBytes(4).toString('hex')}`);
  const redis = env.REDIS_URL ? 'none' : 'private';
  const stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: LOCAL, redis, announce: say });
  closer.add('local stack', stack, (one: LocalStack) => one.close());
  say(env.REDIS_URL ? 'Redis: the one of REDIS_URL' : stack.redis.detail);
  return {
    ...stack.env,
    ...(env.REDIS_URL ? { REDIS_URL: env.REDIS_URL } : {}),
    STORAGE_URL: `file:${join(folder, 'objects')}`,
    // The site is ours, and on this machine.
    FETCH_HOST_GAP_MS: '0',
    EMBEDDING_THREADS: env.EMBEDDING_THREADS,
    PORT: keep ? env.PORT : '0',
  };
}

/** On a Redis that is not ours, everything has a namespace of its own, which is emptied at the end. */
function connectApp(config: Config, closer: Closer): App {
  const namespace = `hc-demo-${randomBytes(4).toString('hex')}`;
  const logger = createLogger('warn', process.stderr);
  if (config.queue.backend === 'postgres') return connect(config, { logger, cachePrefix: namespace });
  const { url } = config.queue;
  closer.add('namespace', namespace, (name) => forgetNamespace(url, name));
  return connect(config, { logger, cachePrefix: namespace, queueNamespace: namespace });
}

function once(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
