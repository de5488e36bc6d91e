/** The servers of a run: a Redis that appends to its file and a PostgreSQL, to be killed, frozen, emptied and set back. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { OwnServers, startServers } from '../support/own-servers.js';
import { until } from '../support/until.js';

export type { ServerName } from '../support/own-servers.js';

export class Servers extends OwnServers {
  static async start(): Promise<Servers> {
    return new Servers(await startServers('chaos', true));
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
