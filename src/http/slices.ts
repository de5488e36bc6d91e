/** Long work in slices, so that the event loop gets to everybody else in between. */
import { setImmediate as othersTurn } from 'node:timers/promises';

const SLICE_MS = 10;

/** Calls `visit` for each. By time and not by count: an image costs between 10 and 300 us, as its URL is. */
export async function inSlices<Thing>(
  things: readonly Thing[],
  visit: (thing: Thing, index: number) => void,
): Promise<void> {
  let end = performance.now() + SLICE_MS;
  for (const [index, thing] of things.entries()) {
    visit(thing, index);
    if (performance.now() < end) continue;
    await othersTurn();
    end = performance.now() + SLICE_MS;
  }
}
