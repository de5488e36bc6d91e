/** SHA-256, in full and in lower-case hex: the identity of contents, of URLs and of jobs. */
import { createHash } from 'node:crypto';

export function sha256(data: string | Uint8Array): string {
  return createHash('sha256').update(data).digest('hex');
}
