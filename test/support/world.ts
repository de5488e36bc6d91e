/** A corner of the shared servers that one test file owns: its own database, key prefix, queue names and folder. */
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { Client } from 'pg';
import { inject } from 'vitest';
import { type App, connect, type Overrides } from '../../src/app.js';
import { type Config, toConfig } from '../../src/config.js';
import { forgetNamespace } from '../../src/demo/cleanup.js';
import { createLogger } from '../../src/logger.js';

export interface World extends AsyncDisposable {
  readonly namespace: string;
  readonly databaseUrl: string;
  readonly redisUrl: string;
  /** Configuration for this corner; `env` wins. */
  config(env?: Record<string, string>): Config;
  /** An app over this corner; closed with the world. */
  app(env?: Record<string, string>, overrides?: Overrides): App;
  /** Lines that the apps logged, parsed. */
  readonly logs: Record<string, unknown>[];
}

/** Sites of our own need no consideration, unless a test is about that. */
const IMPOLITE = { FETCH_HOST_GAP_MS: '0', FETCH_HOST_CONCURRENCY: '100', FETCH_ROBOTS: 'ignore' };

export async function createWorld(): Promise<World> {
  const namespace = `t${randomBytes(5).toString('hex')}`;
  const databaseUrl = await createDatabase(namespace);
  const redisUrl = inject('redisUrl');
  const folder = await mkdtemp(join(tmpdir(), 'hc-test-'));
  const apps: App[] = [];
  const logs: Record<string, unknown>[] = [];
  const config = (env: Record<string, string> = {}) =>
    toConfig({
      ...IMPOLITE,
      DATABASE_URL: databaseUrl,
      REDIS_URL: redisUrl,
      STORAGE_URL: `file:${folder}`,
      PORT: '0',
      ...env,
    });
  return {
    namespace,
    databaseUrl,
    redisUrl,
    logs,
    config,
    app: (env, overrides = {}) => {
      const logger = createLogger('debug', { write: (line: string) => void logs.push(JSON.parse(line)) });
      const settings = config(env);
      const queueNamespace = settings.queue.backend === 'redis' ? { queueNamespace: namespace } : {};
      const app = connect(settings, { logger, cachePrefix: namespace, ...queueNamespace, ...overrides });
      apps.push(app);
      return app;
    },
    [Symbol.asyncDispose]: async () => {
      for (const app of apps) await app.close();
      await forgetNamespace(redisUrl, namespace);
      await dropDatabase(namespace);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** A bare client for looking behind the product's back. */
export function redisClient(world: World): Redis {
  return new Redis(world.redisUrl, { maxRetriesPerRequest: 1 });
}

async function createDatabase(name: string): Promise<string> {
  const url = new URL(inject('databaseUrl'));
  const template = url.pathname.slice(1);
  // `postgres` is nobody's template, so being connected to it holds up no copy.
  await asAdmin(async (client) => {
    await client.query('select pg_advisory_lock(1)'); // copies of one template are made one at a time
    await client.query(`create database ${name} template ${template}`);
  });
  url.pathname = `/${name}`;
  return url.href;
}

async function dropDatabase(name: string): Promise<void> {
  await asAdmin((client) => client.query(`drop database if exists ${name} with (force)`));
}

async function asAdmin(work: (client: Client) => Promise<unknown>): Promise<void> {
  const url = new URL(inject('databaseUrl'));
  url.pathname = '/postgres';
  const client = new Client({ connectionString: url.href });
  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end();
  }
}
