/**
 * The local stack: a private Postgres and, where one can be had, a private Redis on free loopback ports, for a machine
 * that has neither. One folder holds one stack.
 *
 * Three processes deep: we own it, a keeper in a session of its own starts and ends the servers, and the servers know
 * nothing of either. What happens when one of us is killed is told in `keeper.ts` and `leftovers.ts`.
 */
import { resolve } from 'node:path';
import { claimFolder } from './claim.js';
import { isAlive } from './identity.js';
import type { ServerName } from './keeper-protocol.js';
import { openStack } from './opening.js';
import { RunningStack } from './running-stack.js';
import { readState } from './state.js';

export { StackRunningError } from './claim.js';
export { findRedisServer } from './find-redis.js';

export interface StackOptions {
  /** Made when missing; of an ephemeral stack it must be missing or empty. */
  folder: string;
  /** All of the stack, its folder included, is removed when it closes or when this process dies. Default false. */
  ephemeral?: boolean;
  /** Where a fetched Redis is kept, for several stacks to share. Default `folder`. */
  cacheFolder?: string;
  /** `none`: neither look for a Redis nor start one. Default `private`. */
  redis?: 'private' | 'none';
  /** Gets lines for the user about what takes time or lies elsewhere than expected. */
  announce?: (line: string) => void;
  /** What a second start in this folder is told, where it is known already; else see setOwnerAddress. */
  owner?: { url?: string };
}

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

/**
 * Starts the servers and resolves when both answer. Rejects with StackRunningError when a living process has a stack in
 * that folder. A Redis that cannot be had is no error: `redis.source` is then `none`.
 */
export async function startLocalStack(options: StackOptions): Promise<LocalStack> {
  const folder = resolve(options.folder);
  const lock = await claimFolder(folder, options.ephemeral ?? false);
  // Absolute, since the keeper works in another folder than we do.
  const cacheFolder = resolve(options.cacheFolder ?? folder);
  return openStack({ ...options, folder, cacheFolder }, lock);
}

/** Tells later starts in the same folder, and those who join, where the owner of this stack serves. */
export async function setOwnerAddress(stack: LocalStack, url: string): Promise<void> {
  if (!(stack instanceof RunningStack)) throw new TypeError('setOwnerAddress: not a stack that startLocalStack gave');
  stack.update({ address: url });
}

/**
 * The stack that another process runs in this folder, for a command that joins it. `null` when there is none: not yet
 * ready, its owner dead, or all of its servers dead. A stack with one dead server is still a running one.
 */
export async function findRunningStack(
  folder: string,
): Promise<{ env: StackEnv; ownerPid: number; address: string | null } | null> {
  const state = readState(resolve(folder));
  if (!state?.env || !(await isAlive(state.owner))) return null;
  const servers = [state.postgres, state.redis].filter((server) => server !== null);
  const alive = await Promise.all(servers.map(isAlive));
  return alive.includes(true) ? { env: state.env, ownerPid: state.owner.pid, address: state.address } : null;
}
