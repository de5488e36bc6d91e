/** The object store: whether what is written can be read, and what is missing be told. */
import { randomUUID } from 'node:crypto';
import type { Config } from '../config.js';
import { reasonOf } from '../errors.js';
import type { ObjectStore } from '../storage/object-store.js';
import { openObjectStore } from '../storage/open.js';
import { type Check, type Finding, ok, problem } from './check.js';

const NAME = 'object store';
const DEADLINE_MS = 10_000;
/** A store has no deleting, so there is one probe for ever. */
const KEY = 'doctor/probe';
const NEVER_WRITTEN = 'doctor/absent';

export function storageCheck({ storage }: Config): Check {
  const where = storage.kind === 'file' ? `folder ${storage.folder}` : `bucket ${storage.bucket}`;
  return {
    name: NAME,
    deadlineMs: DEADLINE_MS,
    remedy:
      storage.kind === 'file'
        ? `let this user write below ${storage.folder}, or correct STORAGE_URL`
        : 'correct STORAGE_URL or the AWS credentials, and let them s3:PutObject, s3:GetObject and s3:ListBucket',
    run: async () => {
      const store = openObjectStore(storage);
      try {
        return [await probe(store, where)];
      } finally {
        await store.close();
      }
    },
  };
}

async function probe(store: ObjectStore, where: string): Promise<Finding> {
  const bytes = Buffer.from(randomUUID());
  await store.put(KEY, bytes);
  const read = await store.get(KEY);
  if (!read?.equals(bytes)) {
    return problem(NAME, `${where} gave back something else than was written: unless two doctors ran, mistrust it`);
  }
  // S3 calls what is missing forbidden to whoever may not list the bucket.
  const trouble = await store.get(NEVER_WRITTEN).then(() => null, reasonOf);
  if (trouble === null) return ok(NAME, `a probe was written to ${where} and read back`);
  return problem(
    NAME,
    `${trouble}: ${where} does not say that an object is missing: let the credentials s3:ListBucket`,
  );
}
