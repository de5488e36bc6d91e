/** The object store: whether what is written can be read. */
import type { Config } from '../config.js';
import { openObjectStore } from '../storage/open.js';
import { type Check, ok, problem } from './check.js';

const NAME = 'object store';
const DEADLINE_MS = 10_000;
/** A store has no deleting, so there is one probe for ever. */
const KEY = 'doctor/probe';
const LENGTH = 64;

export function storageCheck({ storage }: Config): Check {
  const where = storage.kind === 'file' ? `folder ${storage.folder}` : `bucket ${storage.bucket}`;
  return {
    name: NAME,
    deadlineMs: DEADLINE_MS,
    remedy:
      storage.kind === 'file'
        ? `let this user write below ${storage.folder}, or correct STORAGE_URL`
        : `correct STORAGE_URL or the AWS credentials, and let them put and get objects of bucket ${storage.bucket}`,
    run: async () => {
      const store = openObjectStore(storage);
      try {
        // A store passes over what has the length of what it holds: keys name contents everywhere else.
        const held = await store.get(KEY);
        const bytes = Buffer.from(new Date().toISOString().padEnd(held?.length === LENGTH ? LENGTH + 1 : LENGTH));
        await store.put(KEY, bytes);
        const read = await store.get(KEY);
        if (read?.equals(bytes)) return [ok(NAME, `a probe was written to ${where} and read back`)];
        return [
          problem(NAME, `${where} gave back something else than was written: unless two doctors ran, mistrust it`),
        ];
      } finally {
        await store.close();
      }
    },
  };
}
