/** Starting a server and waiting until it answers, with what went wrong in its own words when it does not. */
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { withoutSecrets } from '../logger.js';
import { identify, type ProcessIdentity } from './identity.js';
import type { ChildCommand, ServerName } from './keeper.js';
import type { KeeperLink } from './keeper-link.js';

/** A server that can be started, on one port after another until one is free. */
export interface Server {
  name: ServerName;
  command(port: number): ChildCommand;
  /** True once it answers as ours. Rejects only where waiting cannot help. */
  answers(port: number): Promise<boolean>;
}

/** Includes recovery after a crash, with all that was written since the last checkpoint. */
const READY_DEADLINE_MS = 60_000;
const ATTEMPTS = 25;
/**
 * Passes by itself: a port that somebody took since we looked, and a Postgres that was killed, whose connections'
 * processes take a moment to notice and hold its shared memory until then.
 */
const MAY_PASS = /address already in use|could not bind|still in use|is another postmaster/i;

export class ServerStartError extends Error {
  override readonly name = 'ServerStartError';
  constructor(
    server: string,
    what: string,
    /** The last lines of its log. */
    readonly log: string,
  ) {
    super(`the local ${server} ${what}. The end of its log:\n${log}`);
  }
}

/**
 * Starts a server on `port`, or on a free one of its own choice; resolves with the port once it answers. Its process is
 * told to `launched` before that, so that it is on record should we die while it starts.
 */
export async function startServer(
  keeper: KeeperLink,
  server: Server,
  launched: (identity: ProcessIdentity | null) => void,
  port?: number,
): Promise<number> {
  for (let attempt = 1; ; attempt++) {
    try {
      const chosen = port ?? (await freePort());
      const command = server.command(chosen);
      const pid = (await keeper.request({ do: 'start', command })) as number;
      launched(await identify(pid));
      await untilItAnswers(keeper, server, pid, chosen, command.logFile);
      return chosen;
    } catch (error) {
      const passing = error instanceof ServerStartError && MAY_PASS.test(error.log);
      if (!passing || attempt >= ATTEMPTS) throw error;
      await delay(200);
    }
  }
}

async function untilItAnswers(
  keeper: KeeperLink,
  server: Server,
  pid: number,
  port: number,
  logFile: string,
): Promise<void> {
  for (const end = Date.now() + READY_DEADLINE_MS; Date.now() < end; await delay(25)) {
    if (keeper.hasExited(pid)) throw new ServerStartError(server.name, 'ended while starting', await tail(logFile));
    if (await server.answers(port)) return;
  }
  throw new ServerStartError(server.name, `did not answer within ${READY_DEADLINE_MS / 1000} s`, await tail(logFile));
}

/** The last lines of a log, without passwords. */
export async function tail(file: string): Promise<string> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const lines = text.trimEnd().split('\n').slice(-12);
  return withoutSecrets(lines.map((line) => `  ${line}`).join('\n'));
}

/** A loopback port that nobody listens on at this moment. */
function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as AddressInfo;
      probe.close(() => resolve(port));
    });
  });
}
