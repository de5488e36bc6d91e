/** Objects as files below one folder. */
import { randomUUID } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import { ArgumentError } from '../errors.js';
import type { ObjectStore } from './object-store.js';

const DRAFTS = '.drafts';
const OLD_MS = 60 * 60_000;

export class FileStore implements ObjectStore {
  constructor(private readonly folder: string) {}

  /** Written elsewhere, flushed, then renamed: a crash leaves at most a draft, which `tidy` removes. */
  async put(key: string, bytes: Uint8Array): Promise<void> {
    const path = this.#path(key);
    // Whoever wrote it may have died before it was flushed.
    if (await holds(path, bytes)) return flushFolder(dirname(path));
    const draft = join(this.folder, DRAFTS, randomUUID());
    try {
      const file = await inFolder(draft, () => open(draft, 'wx'));
      try {
        await file.writeFile(bytes);
        await file.sync();
      } finally {
        await file.close();
      }
      await inFolder(path, () => rename(draft, path));
      await flushFolder(dirname(path));
    } catch (error) {
      await rm(draft, { force: true });
      throw error;
    }
  }

  async get(key: string): Promise<Buffer | null> {
    try {
      return await readFile(this.#path(key));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw error;
    }
  }

  async tidy(olderThanMs = OLD_MS): Promise<number> {
    const folder = join(this.folder, DRAFTS);
    const names = await readdir(folder).catch(() => []); // nothing was ever written
    let removed = 0;
    for (const name of names) {
      const draft = join(folder, name);
      // Whoever else tidies up may have been faster.
      const { mtimeMs } = await stat(draft).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
      if (mtimeMs > Date.now() - olderThanMs) continue;
      await rm(draft, { force: true });
      removed += 1;
    }
    return removed;
  }

  async close(): Promise<void> {}

  #path(key: string): string {
    const path = join(this.folder, key);
    if (!path.startsWith(this.folder + sep) || key.includes('\0')) throw new ArgumentError('key', 'leaves the store');
    return path;
  }
}

/** Nearly every folder is there already: it is made, and flushed, where its lack is told. */
async function inFolder<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    const folder = dirname(path);
    const first = await mkdir(folder, { recursive: true });
    for (let made = folder; first && made.length >= first.length; made = dirname(made))
      await flushFolder(dirname(made));
    return work();
  }
}

/** A rename lasts through a power cut only once its folder is on the disk as well. */
async function flushFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** A disk may have damaged what was once whole: only the bytes themselves tell. */
async function holds(path: string, bytes: Uint8Array): Promise<boolean> {
  try {
    return (await stat(path)).size === bytes.length && (await readFile(path)).equals(bytes);
  } catch {
    return false;
  }
}
