/** Takes every key of a namespace out of a Redis that others use too. */
import { Redis } from 'ioredis';

const BATCH = 500;

/** @param namespace first part of the keys: letters, digits and `-`, so that it means itself in a pattern */
export async function forgetNamespace(url: string, namespace: string): Promise<void> {
  const redis = new Redis(url, { lazyConnect: true, maxRetriesPerRequest: 1 });
  redis.on('error', () => undefined); // the command under way rejects with the same error
  try {
    for await (const keys of redis.scanStream({ match: `${namespace}*`, count: BATCH }) as AsyncIterable<string[]>) {
      if (keys.length > 0) await redis.unlink(...keys);
    }
  } finally {
    redis.disconnect();
  }
}
