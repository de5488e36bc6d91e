/** Servers that a test may kill, freeze, empty and set back, and a network that it may cut, one process at a time. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { toConfig } from '../../src/config.js';
import { OwnServers, type ServerName, startServers } from '../support/own-servers.js';
import { until } from '../support/until.js';
import { type OpenCache, openCache } from './support.js';

export type { ServerName } from '../support/own-servers.js';

/** A stack of its own, and the caches that were opened over it. */
export class Servers extends OwnServers {
  /** First part of every key in Redis. */
  readonly prefix = `t${randomBytes(5).toString('hex')}`;
  readonly #opened = new Set<OpenCache>();
  readonly #links = new Set<Link>();

  static async start(): Promise<Servers> {
    return new Servers(await startServers('test', false));
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

  /** Whatever a test has left: its links go, and its caches are closed. */
  override async heal(): Promise<void> {
    await super.heal();
    for (const link of this.#links) await link[Symbol.asyncDispose]();
    this.#links.clear();
    for (const cache of [...this.#opened]) await this.close(cache);
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
    if (this.#server) return;
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
