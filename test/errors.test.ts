/** One list of reasons: what an error says of itself is what the queue's words are read as. */
import { expect, test } from 'vitest';
import {
  FAILURE_REASONS,
  failureReasonOf,
  RejectedError,
  RetryableError,
  type RetryReason,
  TierUnavailableError,
} from '../src/errors.js';

const RETRY: RetryReason[] = [
  'timeout',
  'connection',
  'dns',
  'server-error',
  'throttled',
  'storage',
  'engine',
  'internal',
];

test('a job fails for one of these reasons, and no other', () => {
  expect([...FAILURE_REASONS].sort()).toEqual([...RETRY, 'invalid-payload', 'poison'].sort());
});

test.each(RETRY)('the words of an error that may pass are read as its reason, %s', (reason) => {
  expect(failureReasonOf(new RetryableError(reason, 'dns: timeout: what it says').message)).toBe(reason);
});

test.each([
  ['invalid-payload: url: must be an http or https URL', 'invalid-payload'],
  ['poison: it ended its process three times', 'poison'],
])('%s is read as %s', (words, reason) => {
  expect(failureReasonOf(words)).toBe(reason);
});

test.each([
  [''],
  ['timeout'],
  ['timeout:'],
  ['timeout exceeded when trying to connect'],
  [' timeout: no answer'],
  ['Timeout: no answer'],
  ['Error: timeout: no answer'],
  ['invalid payload: url: as it was said once'],
  ['toString: of an object'],
  [new TypeError('x is undefined').message],
  [new RejectedError('corrupt', 'half an image').message],
  [new TierUnavailableError('postgres', 'gone').message],
])('what nobody foresaw is internal: %j', (words) => {
  expect(failureReasonOf(words)).toBe('internal');
});
