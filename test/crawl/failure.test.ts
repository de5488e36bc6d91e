import { describe, expect, it } from 'vitest';
import { retryAfterMs } from '../../src/crawl/failure.js';

describe('retryAfterMs', () => {
  const now = Date.UTC(1994, 10, 6, 8, 49, 30);

  it.each([
    ['0', 0],
    ['120', 120_000],
    [' 5 ', 5_000],
    ['3601', 3_600_000],
    ['99999999999999999999', 3_600_000],
    ['Sun, 06 Nov 1994 08:49:37 GMT', 7_000],
    ['Sunday, 06-Nov-94 08:49:37 GMT', 7_000],
    ['Sun Nov  6 08:49:37 1994', 7_000],
    ['Sun, 06 Nov 1994 08:00:00 GMT', 0],
    ['Mon, 07 Nov 1994 08:49:37 GMT', 3_600_000],
  ])('reads %j', (value, expected) => {
    expect(retryAfterMs(value, now)).toBe(expected);
  });

  it.each([null, '', '-5', '1.5', '5s', 'soon', '1994-11-06T08:49:37Z', 'Sunny'])('makes nothing of %j', (value) => {
    expect(retryAfterMs(value, now)).toBeUndefined();
  });
});
