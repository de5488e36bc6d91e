/** The object store that is configured. */
import type { Config } from '../config.js';
import { FileStore } from './file-store.js';
import type { ObjectStore } from './object-store.js';
import { S3Store } from './s3-store.js';

export function openObjectStore(storage: Config['storage']): ObjectStore {
  return storage.kind === 'file' ? new FileStore(storage.folder) : new S3Store(storage);
}
