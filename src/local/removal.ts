/** Removing a stack's folder, so that it is either there or not: nobody finds half of it. */
import { rename, rm } from 'node:fs/promises';

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
