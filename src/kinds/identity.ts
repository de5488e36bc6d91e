/** SHA-256, in full and in lower-case hex: the identity of contents, of URLs and of jobs. */
import { hash } from 'node:crypto';

export function sha256(data: string | Uint8Array): string {
  return hash('sha256', data, 'hex');
}
