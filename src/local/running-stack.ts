/** A stack that we own, from its keeper's start to its closing. Whatever changes about it is written down at once. */
import { within } from '../lifecycle.js';
import { gone, type ProcessIdentity } from './identity.js';
import type { ServerName } from './keeper.js';
import type { KeeperLink } from './keeper-link.js';
import type { Lock } from './lock.js';
import { type Server, startServer } from './servers.js';
import { endLeftovers, removeState, type StackState, writeState } from './state.js';

/** The keeper's own deadline for the servers, and time to remove the data. */
const STOP_DEADLINE_MS = 20_000;

export interface StackEnv {
  DATABASE_URL: string;
  /** `none` where no Redis can be had, or none was asked for. */
  REDIS_URL: string;
}

export interface LocalStack extends AsyncDisposable {
  /** The environment variables that point at the servers. */
  readonly env: StackEnv;
  /** Where the Redis comes from; `detail` is a sentence for the user, which for `none` says what to do. */
  readonly redis: { readonly source: 'path' | 'fetched' | 'none'; readonly detail: string };
  /** Of a server that was killed: its last one. */
  readonly pids: { readonly keeper: number; readonly postgres: number; readonly redis: number | null };
  /**
   * For fault tests. Resolves when the signal is sent; after SIGKILL when the process is gone. SIGSTOP, SIGCONT and
   * SIGKILL reach the processes of Postgres's open connections too, which would else go on for a while. A server that
   * dies stays dead until `restart`.
   */
  kill(server: ServerName, signal: NodeJS.Signals): Promise<void>;
  /** Starts a dead server again (a running one is ended first), on the same port with the same data. */
  restart(server: ServerName): Promise<void>;
  /** Ends the servers cleanly, and removes the folder of an ephemeral stack. Overlapping calls share one closing. */
  close(): Promise<void>;
}

export class RunningStack implements LocalStack {
  redis: LocalStack['redis'] = { source: 'none', detail: 'Not started yet.' };
  readonly #servers = new Map<ServerName, { server: Server; port: number }>();
  /** Whose end is no news. */
  readonly #restarting = new Set<ServerName>();
  #closing: Promise<void> | undefined;

  constructor(
    private readonly folder: string,
    private readonly lock: Lock,
    readonly keeper: KeeperLink,
    private state: StackState,
    announce: (line: string) => void,
  ) {
    this.update({});
    keeper.onExit = (pid) => {
      const name = [...this.#servers.keys()].find((one) => this.state[one]?.pid === pid);
      if (name && !this.#restarting.has(name) && !this.#closing)
        announce(`The local ${name} has ended: stop this command and start it again to have it back.`);
    };
  }

  get env(): StackEnv {
    if (!this.state.env) throw new Error('the local stack is not ready yet');
    return this.state.env;
  }

  get pids(): LocalStack['pids'] {
    return { keeper: this.keeper.pid, postgres: this.state.postgres?.pid ?? 0, redis: this.state.redis?.pid ?? null };
  }

  update(change: Partial<StackState>): void {
    if (this.#closing) return;
    this.state = { ...this.state, ...change };
    writeState(this.folder, this.state);
  }

  async removeAtEnd(paths: string[]): Promise<void> {
    await this.keeper.request({ do: 'remove-at-end', paths });
    this.update({ removeAtEnd: paths });
  }

  /** Starts a server on a free port, which it keeps; resolves with the port when it answers. */
  async start(server: Server, onPort?: number): Promise<number> {
    const launched = (identity: ProcessIdentity | null) => this.update({ [server.name]: identity });
    const port = await startServer(this.keeper, server, launched, onPort);
    this.#servers.set(server.name, { server, port });
    return port;
  }

  async kill(name: ServerName, signal: NodeJS.Signals): Promise<void> {
    await this.keeper.request({ do: 'signal', name, signal });
  }

  async restart(name: ServerName): Promise<void> {
    const known = this.#servers.get(name);
    if (!known) throw new Error(`this stack has no ${name} of its own`);
    this.#restarting.add(name);
    try {
      await this.keeper.request({ do: 'end', name });
      await this.start(known.server, known.port);
    } finally {
      this.#restarting.delete(name);
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #end(): Promise<void> {
    const request = this.keeper.request({ do: 'stop' }).then(
      () => true,
      () => false,
    );
    try {
      const stopped = await within(STOP_DEADLINE_MS, request, false);
      // A keeper that was killed has left its servers behind, and they are ours to end.
      if (!stopped) await endLeftovers(this.folder, this.state);
      else if (this.state.keeper) await gone(this.state.keeper, STOP_DEADLINE_MS);
      removeState(this.folder);
    } finally {
      await this.lock.release();
    }
  }
}
