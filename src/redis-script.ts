/** Scripts in Redis, and what Redis answers to them. */
import { createHash } from 'node:crypto';
import type { Redis } from 'ioredis';

export function isReply(error: unknown): error is Error {
  return error instanceof Error && error.name === 'ReplyError';
}

const digests = new Map<string, string>();

/** By its digest, which Redis knows unless it was restarted. */
export async function evaluate(
  redis: Redis,
  script: string,
  keys: readonly string[],
  args: readonly (string | number | Buffer)[],
) {
  let digest = digests.get(script);
  if (!digest) {
    digest = createHash('sha1').update(script).digest('hex');
    digests.set(script, digest);
  }
  try {
    return await redis.evalsha(digest, keys.length, ...keys, ...args);
  } catch (error) {
    if (!isReply(error) || !error.message.startsWith('NOSCRIPT')) throw error;
    return redis.eval(script, keys.length, ...keys, ...args);
  }
}
