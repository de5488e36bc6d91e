/** What whoever sent something wrong is told. */
import { expect, test } from 'vitest';
import { crawlJobsBody } from '../src/http/schemas.js';
import { crawlPayload } from '../src/queues/crawl.js';
import { check } from '../src/schema-check.js';

const FITS = { v: 1, tenantId: 'acme', url: 'https://example.com/1.jpg' };

test.each([
  [crawlPayload, { ...FITS, url: undefined }, 'url', 'is required'],
  [crawlPayload, { ...FITS, url: 7 }, 'url', 'expected string'],
  [crawlPayload, { ...FITS, tenantId: 'a b' }, 'tenantId', 'expected 1 to 100 of letters, digits, ".", "_", "-"'],
  [crawlPayload, null, 'payload', 'expected object'],
  [crawlJobsBody, { tenantId: 'acme', images: [] }, 'images', 'expected 1 or more items'],
  [crawlJobsBody, { tenantId: 'acme' }, 'images', 'is required'],
  [crawlJobsBody, { tenantId: 'acme', images: Array(10_001).fill({}) }, 'images', 'expected 10000 items at most'],
  [crawlPayload, { ...FITS, sourceUrl: 'x'.repeat(2_049) }, 'sourceUrl', 'expected 2048 characters at most'],
])('names the field and what would fit (%#)', (schema, value, field, expectation) => {
  expect(check<unknown>(schema, value)).toEqual({ problem: { field, expectation } });
});

test('what fits is answered as the schema reads it', () => {
  expect(check(crawlPayload, FITS)).toEqual({ data: FITS });
});
