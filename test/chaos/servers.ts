/** The servers of a run: a Redis that appends to its file and a PostgreSQL, to be killed, frozen, emptied and set back. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { OwnServers, startServers } from '../support/own-servers.js';
import { until } from '../support/until.js';

export type { ServerName } from '../support/own-servers.js';

export class Servers extends OwnServers {
  /** @param maxConnections of PostgreSQL; by default its own */
  static async start(maxConnections?: number): Promise<Servers> {
    const servers = new Servers(await startServers('chaos', true));
    if (maxConnections === undefined) return servers;
    try {
      await servers.sql(`alter system set max_connections = ${maxConnections}`);
      await servers.kill('postgres', 'SIGQUIT');
      await servers.restart('postgres');
      return servers;
    } catch (error) {
      await servers[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Of a dead Redis: it comes back without anything. */
  async emptyRedis(folder: string): Promise<void> {
    for (const name of await readdir(folder)) await rm(join(folder, name), { recursive: true });
  }

  /** Waits where the service has taken all connections, or the server is not quite there yet. */
  override sql<Row>(text: string, values: unknown[] = []): Promise<Row[]> {
    return until('PostgreSQL to answer', () => super.sql<Row>(text, values));
  }
}
