/** The crawl job: fetch one image URL for one tenant. */
import { z } from 'zod';
import { ArgumentError } from '../errors.js';
import { isSoundText } from '../kinds/kind.js';
import { canonicalUrl } from '../kinds/url.js';
import { type QueueContract, tenantId } from './contract.js';

const canonical = z.string().transform((text, context) => {
  try {
    return canonicalUrl(text);
  } catch (error) {
    context.addIssue({ code: 'custom', message: error instanceof ArgumentError ? error.expectation : 'not a URL' });
    return z.NEVER;
  }
});

export const crawlPayload = z.object({
  v: z.literal(1),
  tenantId,
  /** Canonical after parsing, see `kinds/url.ts`. */
  url: canonical,
  /** The page that showed the image. */
  sourceUrl: z.string().max(2048).refine(isSoundText, 'expected text without NUL or half a surrogate pair').optional(),
  /** Passes over the known URL and remembered rejections, and always fetches. */
  force: z.boolean().optional(),
});

export type CrawlPayload = z.infer<typeof crawlPayload>;

export const crawlQueue: QueueContract<CrawlPayload> = {
  name: 'crawl',
  payload: crawlPayload,
  identity: ({ tenantId, url, force }) => [tenantId, url, force ? 'force' : ''],
  attempts: 5,
};
