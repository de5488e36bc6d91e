/** One real PostgreSQL and one real Redis for the whole run; each test file takes its own corner of them. */
import { randomBytes } from 'node:crypto';
import { resolve } from 'node:path';
import type { TestProject } from 'vitest/node';
import { migrate } from '../../src/db/migrate.js';
import { startLocalStack } from '../../src/local/stack.js';

declare module 'vitest' {
  interface ProvidedContext {
    databaseUrl: string;
    redisUrl: string;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const local = resolve('.local');
  const given = process.env.REDIS_URL;
  const stack = await startLocalStack({
    folder: `${local}/test-${randomBytes(4).toString('hex')}`,
    ephemeral: true,
    cacheFolder: local,
    redis: given ? 'none' : 'private',
  });
  if (!given && stack.redis.source === 'none') {
    await stack.close();
    throw new Error(`The tests need a Redis server. ${stack.redis.detail}`);
  }
  // Migrated once; every file's database is a copy of it, see `world.ts`.
  await migrate({ connectionString: stack.env.DATABASE_URL }, { queueOnPostgres: true });
  project.provide('databaseUrl', stack.env.DATABASE_URL);
  project.provide('redisUrl', given || stack.env.REDIS_URL);
  return () => stack.close();
}
