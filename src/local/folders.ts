/** Folders that several processes may make and remove at once: each is there or not, and nobody finds half of one. */
import { access, rename, rm } from 'node:fs/promises';

export async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

/** For what is given its place when it is finished: another process may have finished the same a moment ago. */
export function unlessThere(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EEXIST' && error.code !== 'ENOTEMPTY') throw error;
}

/**
 * Renames first, so that a process which locks the folder at this moment loses its lock together with all the rest and
 * starts again. Where that cannot be (a mount point, a parent that is not ours) the removal is as good as `rm` is.
 */
export async function removeFolder(path: string): Promise<void> {
  const away = `${path}.removed-${process.pid}`;
  const target = await rename(path, away).then(
    () => away,
    () => path,
  );
  // After a SIGKILL the processes of Postgres's connections may write for a moment longer: hence the retries.
  await rm(target, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
}
