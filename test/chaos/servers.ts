/** The servers of a run: a Redis that appends to its file and a PostgreSQL, to be killed, frozen, emptied and set back. */
import { randomBytes } from 'node:crypto';
import { cp, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { Client } from 'pg';
import { migrate } from '../../src/db/migrate.js';
import { type LocalStack, startLocalStack } from '../../src/local/stack.js';
import { until } from '../support/until.js';

export type ServerName = 'redis' | 'postgres';

export class Servers implements AsyncDisposable {
  readonly #frozen = new Set<ServerName>();
  readonly #dead = new Set<ServerName>();

  private constructor(
    readonly stack: LocalStack,
    private readonly copies: string,
  ) {}

  static async start(): Promise<Servers> {
    const local = resolve('.local');
    const folder = join(local, `chaos-${randomBytes(4).toString('hex')}`);
    const stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: local });
    if (stack.redis.source === 'none') throw new Error(`A Redis server is needed. ${stack.redis.detail}`);
    await migrate({ connectionString: stack.env.DATABASE_URL }, { queueOnPostgres: true });
    return new Servers(stack, await mkdtemp(join(tmpdir(), 'hc-chaos-')));
  }

  async kill(server: ServerName): Promise<void> {
    await this.stack.kill(server, 'SIGKILL');
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

  /** Dead or frozen for a while; then as before. */
  async outage(server: ServerName, how: 'killed' | 'frozen', ms: number): Promise<void> {
    await (how === 'killed' ? this.kill(server) : this.freeze(server));
    await pause(ms);
    await (how === 'killed' ? this.restart(server) : this.thaw(server));
  }

  /** Of a dead Redis: it comes back without anything. */
  async emptyRedis(folder: string): Promise<void> {
    for (const name of await readdir(folder)) await rm(join(folder, name), { recursive: true });
  }

  /** Keeps a copy of what Redis has on disk now; what it resolves with sets a dead one's data back to that. */
  async copyRedis(): Promise<() => Promise<void>> {
    const folder = await this.redisFolder();
    const copy = await mkdtemp(join(this.copies, 'redis-'));
    await cp(folder, copy, { recursive: true });
    return async () => {
      await rm(folder, { recursive: true });
      await cp(copy, folder, { recursive: true });
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

  /** Waits where the service has taken all connections, or the server is not quite there yet. */
  sql<Row>(text: string, values: unknown[] = []): Promise<Row[]> {
    return until('PostgreSQL to answer', () => this.#query<Row>(text, values));
  }

  async #query<Row>(text: string, values: unknown[]): Promise<Row[]> {
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
    for (const server of [...this.#frozen]) await this.thaw(server);
    for (const server of [...this.#dead]) await this.restart(server);
    await this.stack.close();
    await rm(this.copies, { recursive: true, force: true });
  }
}
