/** A stack that we own, from its keeper's start to its closing. Whatever changes about it is written down at once. */
import { within } from '../lifecycle.js';
import { gone, type ProcessIdentity } from './identity.js';
import type { KeeperLink } from './keeper-link.js';
import type { ServerName } from './keeper-protocol.js';
import { endLeftovers } from './leftovers.js';
import type { Lock } from './lock.js';
import { type Server, startServer } from './servers.js';
import type { LocalStack, StackEnv } from './stack.js';
import { removeState, type StackState, writeState } from './state.js';

/** The keeper's own deadline for the servers, and time to remove the data. */
const STOP_DEADLINE_MS = 20_000;

export class RunningStack implements LocalStack {
  redis: LocalStack['redis'] = { source: 'none', detail: 'Not started yet.' };
  readonly #servers = new Map<ServerName, { server: Server; port: number }>();
  #closing: Promise<void> | undefined;

  constructor(
    private readonly folder: string,
    private readonly lock: Lock,
    readonly keeper: KeeperLink,
    private state: StackState,
  ) {
    this.update({});
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
    await this.keeper.request({ do: 'end', name });
    await this.start(known.server, known.port);
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
    } finally {
      removeState(this.folder);
      await this.lock.release();
    }
  }
}
