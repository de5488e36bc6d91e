/** All kinds. A new one is its file, a line here and its name in `KIND_NAMES`. */

import { KIND_NAMES } from '../metrics.js';
import { crawlContents, crawlUrls, rejections } from './crawl.js';
import { faceDetections, faceEmbeddings } from './faces.js';
import type { AnyKind } from './kind.js';
import { perceptualHashes } from './perceptual-hash.js';
import { robotsFiles } from './robots.js';
import { searches } from './search-results.js';

export const KINDS: readonly AnyKind[] = [
  faceEmbeddings,
  faceDetections,
  perceptualHashes,
  searches,
  crawlUrls,
  crawlContents,
  rejections,
  robotsFiles,
];

/** Called where a cache is opened: stops the process at boot, with the fix in the message, not at the first look-up. */
export function checkKinds(kinds: readonly AnyKind[] = KINDS): void {
  for (const name of KIND_NAMES) {
    const count = kinds.filter((kind) => kind.name === name).length;
    if (count !== 1) throw new Error(`kind ${name} is declared ${count} times: list it once in kinds/index.ts`);
  }
}
