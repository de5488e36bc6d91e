/**
 * Making a folder ours: one living stack a folder, and nothing left of a dead one. The lock is a file that holds the
 * identity of the process which has it. It appears with its content (a link to a finished file), so nobody reads half a
 * lock, and a lock whose holder is dead is taken over.
 */
import { link, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { reasonOf } from '../errors.js';
import { identifySelf, isAlive, type ProcessIdentity, processIdentity, sameProcess } from './identity.js';
import { endLeftovers, readState } from './state.js';

const LOCK_FILE = 'stack.lock';

/** A stack already runs, or is being started, in this folder. */
export class StackRunningError extends Error {
  override readonly name = 'StackRunningError';
  constructor(
    folder: string,
    readonly ownerPid: number,
    /** Where the first one serves; `null` while it does not, or if it serves nothing. */
    readonly address: string | null,
    starting: boolean,
  ) {
    const what = address ? `already runs at ${address}` : starting ? 'is being started' : 'already runs';
    super(
      `the local stack in ${folder} ${what} (process ${ownerPid}): use that one, stop it first, or choose another folder`,
    );
  }
}

/**
 * Makes the folder where it is missing, ends what a dead stack left in it and locks it. Rejects with StackRunningError
 * when a living process has it. Of several processes that ask at once exactly one succeeds.
 */
export async function claimFolder(folder: string, ephemeral: boolean): Promise<Lock> {
  // More than one round where the keeper of a dead owner removes the folder just now, and our new lock with it.
  for (let round = 1; round <= 5; round++) {
    const lock = await lockFolder(folder);
    if (!lock) continue;
    try {
      const left = readState(folder);
      if (left && (await isAlive(left.owner))) throw new StackRunningError(folder, left.owner.pid, left.address, false);
      if (left) await endLeftovers(folder, left);
      if (!(await lock.isHeld())) continue;
      if (ephemeral) await refuseUnlessEmpty(folder);
      return lock;
    } catch (error) {
      await lock.release();
      throw error;
    }
  }
  throw new Error(`${folder} is removed again and again while a local stack is to be started in it`);
}

/** `null` when the folder was removed under our hands. */
async function lockFolder(folder: string): Promise<Lock | null> {
  try {
    await mkdir(folder, { recursive: true });
    const lock = await takeLock(join(folder, LOCK_FILE));
    if (!('heldBy' in lock)) return lock;
    const state = readState(folder);
    // A holder that has not written its state yet must not be taken for the dead one before it.
    const its = state && sameProcess(state.owner, lock.heldBy) ? state : null;
    throw new StackRunningError(folder, lock.heldBy.pid, its?.address ?? null, !its?.env);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    if (!['EACCES', 'EROFS', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    throw new Error(`cannot keep a local stack in ${folder}: ${reasonOf(error)}`, { cause: error });
  }
}

/** An ephemeral stack's folder is removed whole: it must not hold anything of somebody else's. */
async function refuseUnlessEmpty(folder: string): Promise<void> {
  const others = (await readdir(folder)).filter((name) => !name.startsWith(LOCK_FILE));
  if (others.length === 0) return;
  throw new Error(
    `an ephemeral stack is removed with its folder, and ${folder} holds ${others[0]}: choose an empty one`,
  );
}

export interface Lock {
  /** False when somebody removed the lock, such as the keeper of a dead owner that removes the whole folder. */
  isHeld(): Promise<boolean>;
  release(): Promise<void>;
}

/** Takes the lock, or says which living process has it. */
export async function takeLock(path: string): Promise<Lock | { heldBy: ProcessIdentity }> {
  const self = await identifySelf();
  const draft = `${path}.${self.pid}-${takes++}`;
  await writeFile(draft, JSON.stringify(self), { mode: 0o600 });
  try {
    const heldBy = (await linkAt(draft, path)) ? null : await takeOver(draft, path);
    if (heldBy) return { heldBy };
  } finally {
    await rm(draft, { force: true });
  }
  const isHeld = async () => {
    const holder = await holderOf(path);
    return holder !== null && sameProcess(holder, self);
  };
  return { isHeld, release: async () => ((await isHeld()) ? rm(path, { force: true }) : undefined) };
}

let takes = 0;

async function linkAt(draft: string, path: string): Promise<boolean> {
  try {
    await link(draft, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

/**
 * Replaces a dead holder's lock; gives the living holder when there is one. Two processes may see the same dead
 * holder at once: whoever replaces it first takes a second lock that is named after it and looks again, so that
 * the slower one can never replace the lock of the faster. That second lock may be left behind by a crash in turn,
 * and is then taken over by the same rule.
 */
async function takeOver(draft: string, path: string): Promise<ProcessIdentity | null> {
  const dead = await holderOf(path);
  if (!dead) return (await linkAt(draft, path)) ? null : takeOver(draft, path);
  if (await isAlive(dead)) return dead;
  const right = await takeLock(`${path}.over-${dead.pid}-${dead.started.replace(/\W/g, '')}`);
  if ('heldBy' in right) return right.heldBy;
  try {
    const now = await holderOf(path);
    if (!now || !sameProcess(now, dead)) return now ?? takeOver(draft, path);
    await rename(draft, path);
    return null;
  } finally {
    await right.release();
  }
}

async function holderOf(path: string): Promise<ProcessIdentity | null> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  if (text === null) return null;
  try {
    return processIdentity.parse(JSON.parse(text));
  } catch {
    throw new Error(`${path} cannot be understood: remove it if no process uses its folder`);
  }
}
