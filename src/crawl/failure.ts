/** What a status or a broken connection means for the job: a lasting fact about the URL, or something that may pass. */
import { errors } from 'undici';
import { RejectedError, RetryableError, type RetryReason } from '../errors.js';

/** No origin may hold a URL back for longer than this, in milliseconds. */
const MAX_RETRY_AFTER_MS = 3_600_000;

const TIMEOUT_CODES = new Set([
  'ETIMEDOUT',
  'UND_ERR_CONNECT_TIMEOUT',
  'UND_ERR_HEADERS_TIMEOUT',
  'UND_ERR_BODY_TIMEOUT',
]);

/** The peer answers, but with too many headers or a body that does not decompress: zlib and brotli have these codes. */
const DAMAGE_CODE = /^(UND_ERR_HEADERS_OVERFLOW$|Z_|ERR__ERROR_|ERR_BROTLI)/;

/**
 * The error for a response that is neither a success nor a redirect we can follow (RFC 9110 section 15, RFC 6585).
 *
 * @param place host and path, for the detail
 * @param retryAfter the response's `Retry-After`
 */
export function statusFailure(
  status: number,
  place: string,
  retryAfter: string | null,
): RejectedError | RetryableError {
  const detail = `${place}: status ${status}`;
  // What is left of 3xx has no usable Location: nothing is to be had under this URL.
  const nowhere = status >= 300 && status <= 399 && status !== 304;
  if (status === 404 || status === 410 || nowhere) return new RejectedError('gone', detail);
  const throttled = status === 429 || status === 503;
  const passes = throttled || status === 408 || status === 425 || (status >= 500 && status <= 599);
  // What answers a question that nobody asked (206, 304) brings no whole representation: the server's mistake of today.
  if (!passes && status >= 300 && status !== 304) return new RejectedError('forbidden', detail);
  return new RetryableError(throttled ? 'throttled' : 'server-error', detail, {
    retryAfterMs: retryAfterMs(retryAfter),
  });
}

/**
 * `Retry-After` in milliseconds from now, seconds or HTTP-date (RFC 9110 section 10.2.3), at most an hour, 0 for a date
 * that has passed; `undefined` where it says nothing usable.
 */
export function retryAfterMs(value: string | null, now: number = Date.now()): number | undefined {
  const text = value?.trim() ?? '';
  if (/^\d+$/.test(text)) return Math.min(Number(text) * 1_000, MAX_RETRY_AFTER_MS);
  if (!/^(Mon|Tue|Wed|Thu|Fri|Sat|Sun)/.test(text)) return undefined;
  // The asctime form (RFC 9110 section 5.6.7) names no zone and means UTC; Date.parse would take the local one.
  const at = Date.parse(text.endsWith('GMT') ? text : `${text} GMT`);
  return Number.isNaN(at) ? undefined : Math.min(Math.max(at - now, 0), MAX_RETRY_AFTER_MS);
}

/** Names what undici, Node or zlib threw. Our own errors, and what looks like our own mistake, pass unchanged. */
export function connectionFailure(error: unknown, place: string): unknown {
  if (error instanceof RejectedError || error instanceof RetryableError) return error;
  // No cause here: undici hangs the bytes it could not read on the error, and they are not for our logs.
  if (error instanceof errors.HTTPParserError) return new RetryableError('server-error', `${place}: not HTTP`);
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  if (code === '' || error instanceof TypeError) return error;
  return new RetryableError(reasonOf(code), `${place}: ${code}`, { cause: error });
}

function reasonOf(code: string): RetryReason {
  if (TIMEOUT_CODES.has(code)) return 'timeout';
  return DAMAGE_CODE.test(code) ? 'server-error' : 'connection';
}
