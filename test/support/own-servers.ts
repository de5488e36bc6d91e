/** Servers of one's own, to be killed, frozen and set back. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { Redis } from 'ioredis';
import { Client } from 'pg';
import { migrate } from '../../src/db/migrate.js';
import { type LocalStack, startLocalStack } from '../../src/local/stack.js';

export type ServerName = 'redis' | 'postgres';

/** What `startServers` gives, and whoever extends `OwnServers` is made of. */
export interface Started {
  readonly stack: LocalStack;
  /** A folder for copies of data. */
  readonly copies: string;
}

/** @param name first part of the name of their folder under `.local` */
export async function startServers(name: string, queueOnPostgres: boolean): Promise<Started> {
  const local = resolve('.local');
  const folder = join(local, `${name}-${randomBytes(4).toString('hex')}`);
  const stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: local });
  if (stack.redis.source === 'none') throw new Error(`A Redis server is needed. ${stack.redis.detail}`);
  await migrate({ connectionString: stack.env.DATABASE_URL }, { queueOnPostgres });
  return { stack, copies: await mkdtemp(join(tmpdir(), 'hc-copies-')) };
}

export class OwnServers implements AsyncDisposable {
  readonly stack: LocalStack;
  readonly #copies: string;
  readonly #frozen = new Set<ServerName>();
  readonly #dead = new Set<ServerName>();

  constructor({ stack, copies }: Started) {
    this.stack = stack;
    this.#copies = copies;
  }

  /** @param signal SIGQUIT is PostgreSQL's immediate shutdown, which tells its clients that it goes. */
  async kill(server: ServerName, signal: 'SIGKILL' | 'SIGQUIT' = 'SIGKILL'): Promise<void> {
    await this.stack.kill(server, signal);
    this.#frozen.delete(server);
    this.#dead.add(server);
  }

  async freeze(server: ServerName): Promise<void> {
    await this.stack.kill(server, 'SIGSTOP');
    this.#frozen.add(server);
  }

  async thaw(server: ServerName): Promise<void> {
    this.#frozen.delete(server);
    await this.stack.kill(server, 'SIGCONT');
  }

  async restart(server: ServerName): Promise<void> {
    await this.stack.restart(server);
    this.#frozen.delete(server);
    this.#dead.delete(server);
  }

  /** Frozen servers go on, dead ones start again. */
  async heal(): Promise<void> {
    for (const server of [...this.#frozen]) await this.thaw(server);
    for (const server of [...this.#dead]) await this.restart(server);
  }

  /** Keeps a copy of what Redis has on disk now; what it resolves with sets a dead one's data back to that. */
  async copyRedis(): Promise<() => Promise<void>> {
    const folder = await this.redisFolder();
    const copy = await mkdtemp(join(this.#copies, 'redis-'));
    // What it is writing at this moment has another name by the next.
    const isWhole = (path: string) => !basename(path).startsWith('temp-');
    await cp(folder, copy, { recursive: true, filter: isWhole });
    return async () => {
      await rm(folder, { recursive: true });
      await cp(copy, folder, { recursive: true });
    };
  }

  /** The same of PostgreSQL, which is away meanwhile. */
  async copyPostgres(): Promise<() => Promise<void>> {
    const [row] = await this.sql<{ folder: string }>("select current_setting('data_directory') as folder");
    const folder = row?.folder as string;
    const copy = join(await mkdtemp(join(this.#copies, 'postgres-')), 'data');
    await this.kill('postgres');
    await copied(folder, copy);
    await this.restart('postgres');
    return async () => {
      await rm(folder, { recursive: true });
      await copied(copy, folder);
    };
  }

  redisFolder(): Promise<string> {
    return this.redis(async (redis) => ((await redis.config('GET', 'dir')) as string[])[1] as string);
  }

  /** Looks behind the product's back. */
  async redis<T>(use: (redis: Redis) => Promise<T>): Promise<T> {
    const redis = new Redis(this.stack.env.REDIS_URL, { maxRetriesPerRequest: 1, lazyConnect: true });
    redis.on('error', () => undefined);
    try {
      await redis.connect();
      return await use(redis);
    } finally {
      redis.disconnect();
    }
  }

  async sql<Row>(text: string, values: unknown[] = []): Promise<Row[]> {
    const client = new Client({ connectionString: this.stack.env.DATABASE_URL });
    client.on('error', () => undefined);
    try {
      await client.connect();
      return (await client.query(text, values)).rows as Row[];
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.heal();
    await this.stack.close();
    await rm(this.#copies, { recursive: true, force: true });
  }
}

/** With its owner, who may be another user than we are. */
async function copied(from: string, to: string): Promise<void> {
  await promisify(execFile)('cp', ['-a', from, to]);
}
