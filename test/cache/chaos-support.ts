/** Servers that a test may kill, freeze, empty and set back, and a network that it may cut, one process at a time. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Redis } from 'ioredis';
import { Client } from 'pg';
import { toConfig } from '../../src/config.js';
import { migrate } from '../../src/db/migrate.js';
import { type LocalStack, startLocalStack } from '../../src/local/stack.js';
import { until } from '../support/until.js';
import { type OpenCache, openCache } from './support.js';

export type ServerName = 'redis' | 'postgres';

/** A stack of its own, and the caches that were opened over it. */
export class Servers implements AsyncDisposable {
  /** First part of every key in Redis. */
  readonly prefix = `t${randomBytes(5).toString('hex')}`;
  readonly #opened = new Set<OpenCache>();
  readonly #links = new Set<Link>();
  readonly #dead = new Set<ServerName>();
  readonly #frozen = new Set<ServerName>();

  private constructor(
    readonly stack: LocalStack,
    private readonly copies: string,
  ) {}

  static async start(): Promise<Servers> {
    const local = resolve('.local');
    const folder = `${local}/test-${randomBytes(4).toString('hex')}`;
    const stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: local });
    if (stack.redis.source === 'none') throw new Error(`The tests need a Redis server. ${stack.redis.detail}`);
    await migrate({ connectionString: stack.env.DATABASE_URL }, { queueOnPostgres: false });
    return new Servers(stack, await mkdtemp(join(tmpdir(), 'hc-copies-')));
  }

  /** What another process would have: a connection, a memory and a breaker of its own. */
  open(env: Record<string, string> = {}): OpenCache {
    const cache = openCache(toConfig({ ...this.stack.env, ...env }), this.prefix);
    this.#opened.add(cache);
    return cache;
  }

  /** Knows PostgreSQL alone. */
  openWithoutRedis(): OpenCache {
    return this.open({ REDIS_URL: 'none' });
  }

  async close(cache: OpenCache): Promise<void> {
    this.#opened.delete(cache);
    await cache[Symbol.asyncDispose]();
  }

  /** A way to a server that can be cut without touching the server. */
  async link(server: ServerName): Promise<Link> {
    const link = await Link.to(server === 'redis' ? this.stack.env.REDIS_URL : this.stack.env.DATABASE_URL);
    this.#links.add(link);
    return link;
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

  /** Whatever a test has left: frozen servers go on, dead ones start again; its caches are closed. */
  async heal(): Promise<void> {
    for (const server of [...this.#frozen]) await this.thaw(server);
    for (const server of [...this.#dead]) await this.restart(server);
    for (const link of this.#links) await link[Symbol.asyncDispose]();
    this.#links.clear();
    for (const cache of [...this.#opened]) await this.close(cache);
  }

  /** Keeps a copy of what Redis has on disk now; `putBack` sets its data back to that. */
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
    await rm(this.copies, { recursive: true, force: true });
  }
}

/** A TCP relay that can be cut (refused, as by a server that is gone) and mended, and can hold answers back. */
export class Link implements AsyncDisposable {
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #port = 0;
  #held: (() => void)[] = [];
  /** The sockets whose answers are held back. */
  #deaf = new Set<Socket>();
  #mute = false;
  #lie: readonly [string, string] | undefined;

  private constructor(private readonly target: URL) {}

  static async to(url: string): Promise<Link> {
    const link = new Link(new URL(url));
    await link.mend();
    return link;
  }

  get url(): string {
    const url = new URL(this.target);
    url.hostname = '127.0.0.1';
    url.port = String(this.#port);
    return url.href;
  }

  async mend(): Promise<void> {
    this.#server = createServer((client) => this.#accept(client));
    this.#server.listen(this.#port, '127.0.0.1');
    await once(this.#server, 'listening');
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  cut(): void {
    this.#server?.close();
    this.#server = undefined;
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Holds back what the server answers on the connections that are open now, until `letGo`. */
  hold(): void {
    this.#deaf = new Set(this.#sockets);
  }

  /** From now on the server hears nothing any more; what is said to it is lost. */
  silence(): void {
    this.#mute = true;
  }

  /** From now on the clients read `lie` where the server says `truth`; both of one length. */
  misquote(truth: string, lie: string): void {
    this.#lie = [truth, lie];
  }

  letGo(): void {
    this.#deaf.clear();
    for (const pass of this.#held.splice(0)) pass();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
  }

  #accept(client: Socket): void {
    const server = connect(Number(this.target.port), this.target.hostname);
    client.on('data', (chunk) => {
      if (!this.#mute) server.write(chunk);
    });
    server.on('data', (chunk) => {
      const heard = this.#lie ? Buffer.from(chunk.toString('latin1').replaceAll(...this.#lie), 'latin1') : chunk;
      if (this.#deaf.has(client)) this.#held.push(() => client.write(heard));
      else client.write(heard);
    });
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      this.#sockets.add(from);
      from.on('error', () => undefined); // the other side is told by `close`
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
    }
  }
}

export function isUp(server: ServerName, ...caches: OpenCache[]): boolean {
  return caches.every(({ connection }) => connection.tiers[server]?.guard.isUp ?? true);
}

/** Resolves when every cache uses both tiers again and nothing waits for PostgreSQL. */
export async function recovered(...caches: OpenCache[]): Promise<void> {
  await until('both tiers to be used again', () => isUp('redis', ...caches) && isUp('postgres', ...caches));
  await until('every journaled write to be in PostgreSQL', async () => {
    const pending = await Promise.all(caches.map(({ connection }) => connection.journal?.pending() ?? 0));
    return pending.every((count) => count === 0);
  });
}

/** Makes a cache notice that a server is gone. */
export async function noticed(server: ServerName, ...caches: OpenCache[]): Promise<void> {
  await until(`${server} to be missed`, async () => {
    await Promise.all(caches.map(({ connection }) => connection.tiers[server]?.guard.check()));
    return caches.every(({ connection }) => !(connection.tiers[server]?.guard.isUp ?? false));
  });
}

/**
 * A process of its own that runs `code` against the built library; `cache` is there for it, and `told()`, which resolves
 * with the next thing it is told.
 */
export function childProcess(code: string, env: Record<string, string>, prefix: string): ChildProcess {
  const dist = resolve('dist/src');
  const program = `
    import { connectCache } from '${dist}/cache/connect.js';
    import { HybridCacheService } from '${dist}/cache/service.js';
    import { toConfig } from '${dist}/config.js';
    import { Events } from '${dist}/events.js';
    import { createLogger } from '${dist}/logger.js';
    import { createMetrics } from '${dist}/metrics.js';
    const log = createLogger('warn', process.stderr);
    const connection = connectCache(toConfig(process.env), log, new Events(createMetrics(), log), { prefix: '${prefix}' });
    const cache = new HybridCacheService({ connection });
    const told = () => new Promise((resolve) => process.stdin.once('data', resolve));
    ${code}
  `;
  return spawn(process.execPath, ['--input-type=module', '--eval', program], {
    env: { PATH: process.env.PATH, ...env },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
}
