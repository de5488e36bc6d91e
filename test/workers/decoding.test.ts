/** Images that take too long to decode, with queues as they are. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { RetryableError } from '../../src/errors.js';
import { decoding } from '../../workers/decoding.js';
import { orRejected } from '../../workers/run.js';
import { enqueueOne, startWork, untilState } from '../support/queue-work.js';
import { createWorld, type World } from '../support/world.js';

let world: World;

beforeAll(async () => {
  world = await createWorld();
});

afterAll(() => world[Symbol.asyncDispose]());

/** Decodings of one job that fail in these ways, one a run. */
async function endOf(namespace: string, failures: RetryableError[]) {
  const app = world.app({}, { retryBaseMs: 1, queueNamespace: `${world.namespace}-${namespace}` });
  const refusals: unknown[] = [];
  const work = async () => {
    const failure = failures.shift();
    if (failure) throw failure;
    return { outcome: 'stored' };
  };
  startWork(app, async (_payload, run) => ({
    ...(await orRejected(
      () => decoding(run, work),
      async (refusal) => void refusals.push(refusal),
    )),
  }));
  const job = await untilState(app, await enqueueOne(app), 'completed', 'failed');
  return { outcome: job.outcome, attempts: job.attempts, refusals };
}

const tooLong = () => new RetryableError('timeout', 'decoding took too long');

test('once: the machine may have stood still, and the job is tried again', async () => {
  expect(await endOf('once', [tooLong()])).toEqual({ outcome: { outcome: 'stored' }, attempts: 2, refusals: [] });
});

test('twice: it is the image, which is refused and remembered', async () => {
  const refusal = { reason: 'too-large', detail: 'decoding took too long, twice' };
  const twice = [tooLong(), new RetryableError('internal', 'out of memory'), tooLong(), tooLong()];
  expect(await endOf('twice', twice)).toEqual({
    outcome: { outcome: 'rejected', ...refusal },
    attempts: 3,
    refusals: [refusal],
  });
});
