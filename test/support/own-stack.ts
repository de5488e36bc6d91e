/** A stack of one test file's own, whose servers it may kill, freeze and restart. */
import { randomBytes } from 'node:crypto';
import { resolve } from 'node:path';
import { type App, connect, type Overrides } from '../../src/app.js';
import { type Config, toConfig } from '../../src/config.js';
import { migrate } from '../../src/db/migrate.js';
import { type LocalStack, startLocalStack } from '../../src/local/stack.js';
import { createLogger } from '../../src/logger.js';

export interface OwnStack extends AsyncDisposable {
  readonly servers: LocalStack;
  config(env?: Record<string, string>): Config;
  /** Lines that the apps logged, parsed. */
  readonly logs: Record<string, unknown>[];
  /** An app over these servers; closed with them. */
  app(env?: Record<string, string>, overrides?: Overrides): App;
}

export async function startOwnStack(): Promise<OwnStack> {
  const local = resolve('.local');
  const folder = `${local}/test-${randomBytes(4).toString('hex')}`;
  const servers = await startLocalStack({ folder, ephemeral: true, cacheFolder: local });
  await migrate({ connectionString: servers.env.DATABASE_URL }, { queueOnPostgres: true });
  const apps: App[] = [];
  const logs: Record<string, unknown>[] = [];
  const logger = createLogger('debug', { write: (line: string) => void logs.push(JSON.parse(line)) });
  const config = (env: Record<string, string> = {}) =>
    toConfig({ ...servers.env, STORAGE_URL: `file:${folder}/objects`, PORT: '0', ...env });
  return {
    servers,
    config,
    logs,
    app: (env, overrides = {}) => {
      const app = connect(config(env), { logger, ...overrides });
      apps.push(app);
      return app;
    },
    [Symbol.asyncDispose]: async () => {
      for (const app of apps) await app.close();
      await servers.close();
    },
  };
}
