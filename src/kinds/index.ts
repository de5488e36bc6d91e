/** All kinds. A new one is its file, a line here and its name in `KIND_NAMES`. */
import { crawlContents, crawlUrls, rejections } from './crawl.js';
import { faceDetections, faceEmbeddings } from './faces.js';
import { type AnyKind, KIND_NAMES } from './kind.js';
import { perceptualHashes } from './perceptual-hash.js';

export const KINDS: readonly AnyKind[] = checked([
  faceEmbeddings,
  faceDetections,
  perceptualHashes,
  crawlUrls,
  crawlContents,
  rejections,
]);

/** Stops the process at boot, with the fix in the message, rather than at the first look-up. */
function checked(kinds: AnyKind[]): AnyKind[] {
  for (const name of KIND_NAMES) {
    const count = kinds.filter((kind) => kind.name === name).length;
    if (count !== 1) throw new Error(`kind ${name} is declared ${count} times: list it once in kinds/index.ts`);
  }
  return kinds;
}
