/** Around every decoding in a job: what becomes of an image that takes too long. */
import { RejectedError, RetryableError } from '../src/errors.js';
import type { Run } from './run.js';

/**
 * Once, this machine may have stood still or been overloaded: the job is tried again. Twice, it is the image, made so that a
 * decoder works for minutes; it is refused as `too-large`, the reason for what takes more to decode than is allowed.
 *
 * @throws {RejectedError} `too-large`
 */
export async function decoding<T>({ remembered, remember }: Run, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof RetryableError) || error.reason !== 'timeout') throw error;
    if (remembered.decodedTooLong)
      throw new RejectedError('too-large', 'decoding took too long, twice', { cause: error });
    await remember({ decodedTooLong: true });
    throw error;
  }
}
