/** Reads a response body into memory, never more than was agreed: on the wire and after decompression. */
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createBrotliDecompress, createGunzip, createInflate } from 'node:zlib';
import { RejectedError } from '../errors.js';

/** RFC 9110 section 8.4.1. */
const DECODERS = new Map([
  ['gzip', createGunzip],
  ['x-gzip', createGunzip],
  ['deflate', createInflate],
  ['br', createBrotliDecompress],
]);

export interface BodyLimits {
  maxBytes: number;
  /** The response's `Content-Length` and `Content-Encoding`, where it has them. */
  length: string | null;
  encoding: string | null;
}

/**
 * The bytes, decoded. On every way out the stream is consumed or destroyed.
 *
 * @throws RejectedError `too-large` over `maxBytes`, before the first byte where Content-Length says so; `unsupported`
 * for another content encoding than gzip, deflate and br
 */
export async function readBody(body: Readable, { maxBytes, length, encoding }: BodyLimits): Promise<Buffer> {
  try {
    if (length !== null && Number(length) > maxBytes) throw tooLarge(maxBytes);
    const decoder = decoderOf(encoding)?.();
    if (!decoder) return await pipeline(body, (chunks: AsyncIterable<Buffer>) => collected(capped(chunks, maxBytes)));
    // We asked for `identity`; some servers compress all the same. The wire is capped as well, because compressed
    // input can go on for ever without giving a byte of output. What fails there fails here, through the decoder; but
    // once that has its end, what a server sends behind it, or never sends, is none of the body.
    pipeline(body, (chunks: AsyncIterable<Buffer>) => capped(chunks, maxBytes), decoder).catch(() => undefined);
    return await collected(capped(decoder, maxBytes));
  } finally {
    body.on('error', () => undefined).destroy();
  }
}

/**
 * Lets go of a body nobody wants. A page small enough to have come with its headers leaves the connection in use; what
 * is not here by the next turn of the event loop is not worth waiting for, and its connection is closed.
 */
export function discard(body: Readable): void {
  body.on('error', () => undefined).resume();
  setImmediate(() => body.destroy());
}

function decoderOf(encoding: string | null) {
  const name = encoding?.trim().toLowerCase() ?? '';
  if (name === '' || name === 'identity') return null;
  const decoder = DECODERS.get(name);
  if (!decoder) throw new RejectedError('unsupported', `content encoding ${name.slice(0, 40)}`);
  return decoder;
}

async function* capped(chunks: AsyncIterable<Buffer>, maxBytes: number): AsyncGenerator<Buffer> {
  let size = 0;
  for await (const chunk of chunks) {
    size += chunk.length;
    if (size > maxBytes) throw tooLarge(maxBytes);
    yield chunk;
  }
}

async function collected(chunks: AsyncIterable<Buffer>): Promise<Buffer> {
  const list: Buffer[] = [];
  for await (const chunk of chunks) list.push(chunk);
  return Buffer.concat(list);
}

function tooLarge(maxBytes: number): RejectedError {
  return new RejectedError('too-large', `more than ${maxBytes} bytes`);
}
