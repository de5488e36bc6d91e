/** Ending what an earlier stack in the same folder has left: its owner was killed, perhaps its keeper too. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { endProcess, gone, identify, type ProcessIdentity } from './identity.js';
import { removeFolder } from './removal.js';
import { removeState, type StackState } from './state.js';

/** A keeper whose owner is dead needs this long at most: its own deadline for the servers, and the removal. */
const KEEPER_DEADLINE_MS = 15_000;
const SERVER_DEADLINE_MS = 10_000;

/** Ends the processes that the state names, if they are still the same ones, and removes what was to be removed. */
export async function endLeftovers(folder: string, state: StackState): Promise<void> {
  // A keeper that has lost its owner is ending everything by itself already, and better than we could from outside.
  if (state.keeper && !(await gone(state.keeper, KEEPER_DEADLINE_MS))) await endProcess(state.keeper, 'SIGKILL', 0);
  const unknown = await postmaster(state.dataFolder);
  await Promise.all([
    state.redis && endProcess(state.redis, 'SIGTERM', SERVER_DEADLINE_MS),
    ...[state.postgres, unknown].map((server) => server && endProcess(server, 'SIGINT', SERVER_DEADLINE_MS)),
  ]);
  for (const path of state.removeAtEnd) await removeFolder(path);
  removeState(folder);
}

/**
 * The Postgres that serves this data folder by its own account: its pid file, believed only when that process was
 * started on this folder.
 */
async function postmaster(dataFolder: string): Promise<ProcessIdentity | null> {
  const file = await readFile(join(dataFolder, 'postmaster.pid'), 'utf8').catch(() => '');
  const pid = Number.parseInt(file, 10);
  if (!(pid > 1)) return null;
  const args = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return args.split('\0').includes(dataFolder) ? identify(pid) : null;
}
