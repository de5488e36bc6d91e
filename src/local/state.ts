/**
 * What a stack writes down. In its folder, while it runs: where its servers are, who owns it, and which processes to end
 * should its owner and its keeper have died. Beside its data, for as long as there is data: the servers' passwords.
 * Both files hold passwords, so only their owner's user may read them.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { exists, removeFolder } from './folders.js';
import { endProcess, gone, identify, type ProcessIdentity, processIdentity } from './identity.js';

const stackState = z.object({
  owner: processIdentity,
  keeper: processIdentity.nullable(),
  postgres: processIdentity.nullable(),
  redis: processIdentity.nullable(),
  /** Postgres's data folder, whose `postmaster.pid` names a server that this file has not come to know. */
  dataFolder: z.string(),
  /** What is removed with the stack; empty for one that is kept. */
  removeAtEnd: z.array(z.string()),
  /** `null` while the stack is being started. */
  env: z.object({ DATABASE_URL: z.string(), REDIS_URL: z.string() }).nullable(),
  address: z.string().nullable(),
  /** Variables that the owner was given, and that whoever joins has to have as well. */
  chosen: z.record(z.string(), z.string()).default({}),
});
export type StackState = z.infer<typeof stackState>;

const FILE = 'stack.json';

/** The state in a folder; `null` when there is none, or none that can be understood. */
export function readState(folder: string): StackState | null {
  try {
    return stackState.parse(JSON.parse(readFileSync(join(folder, FILE), 'utf8')));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EACCES') return null;
    throw new Error(
      `${join(folder, FILE)} belongs to another user: run this command as that user, or set DATABASE_URL and REDIS_URL`,
    );
  }
}

/** Synchronous, so that two writes of one process never land in the wrong order. */
export function writeState(folder: string, state: StackState): void {
  const draft = join(folder, `${FILE}.${process.pid}`);
  writeFileSync(draft, JSON.stringify(state, null, 2), { mode: 0o600 });
  renameSync(draft, join(folder, FILE));
}

export function removeState(folder: string): void {
  rmSync(join(folder, FILE), { force: true });
}

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

const secrets = z.object({ postgres: z.string().min(1), redis: z.string().min(1) });
export type Secrets = z.infer<typeof secrets>;

/** The passwords of the data in `home`; new ones where there is no data yet. */
export async function loadSecrets(home: string, dataFolder: string): Promise<Secrets> {
  const file = join(home, 'secrets.json');
  const text = await readFile(file, 'utf8').catch(() => null);
  if (text !== null) return secrets.parse(JSON.parse(text));
  if (await exists(dataFolder)) {
    throw new Error(
      `${file}, the password of the data in ${dataFolder}, is missing: restore it, or remove that folder`,
    );
  }
  // Hexadecimal, so that it needs no escaping in a URL or a configuration file.
  const made = { postgres: randomBytes(24).toString('hex'), redis: randomBytes(24).toString('hex') };
  await writeFile(`${file}.new`, JSON.stringify(made), { mode: 0o600 });
  await rename(`${file}.new`, file);
  return made;
}
