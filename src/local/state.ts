/**
 * What a running stack tells other processes in its folder: where its servers are, who owns it, and which processes
 * to end should its owner and its keeper have died. Holds passwords, so only its owner's user may read it.
 */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { processIdentity } from './identity.js';

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
