/** Objects as files below one folder. */
import { randomUUID } from 'node:crypto';
import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import { ArgumentError } from '../errors.js';
import type { ObjectStore } from './object-store.js';

export class FileStore implements ObjectStore {
  constructor(private readonly folder: string) {}

  /** Written beside its place, flushed, then renamed: a crash leaves at most a file that no key names. */
  async put(key: string, bytes: Uint8Array): Promise<void> {
    const path = this.#path(key);
    if (await holds(path, bytes.length)) return;
    await mkdir(dirname(path), { recursive: true });
    const draft = `${path}.${randomUUID()}.draft`;
    try {
      const file = await open(draft, 'wx');
      try {
        await file.writeFile(bytes);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(draft, path);
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

  async close(): Promise<void> {}

  #path(key: string): string {
    const path = join(this.folder, key);
    if (!path.startsWith(this.folder + sep) || key.includes('\0')) throw new ArgumentError('key', 'leaves the store');
    return path;
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

/** The key names the content, so a file of the right length is the object: an interrupted write has no such name. */
async function holds(path: string, length: number): Promise<boolean> {
  try {
    return (await stat(path)).size === length;
  } catch {
    return false;
  }
}
