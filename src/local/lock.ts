/**
 * One stack a folder: a lock file that holds the identity of the process which has it. It appears with its content
 * (a link to a finished file), so nobody reads half a lock, and a lock whose holder is dead is taken over.
 */
import { link, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { identifySelf, isAlive, type ProcessIdentity, processIdentity, sameProcess } from './identity.js';

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
