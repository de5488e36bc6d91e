/** How many images are worked on at once: one less than libuv has threads, so that slow ones leave one for files. */

/** libuv's own four, which sharp, files and compression share. */
const AT_ONCE = 4 - 1;

const waiting: (() => void)[] = [];
let free = AT_ONCE;

/** Does `work` once a slot is free, in the order of asking. */
export async function inSlot<T>(work: () => Promise<T>): Promise<T> {
  if (free > 0) free -= 1;
  else await new Promise<void>((resolve) => waiting.push(resolve));
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next) next();
    else free += 1;
  }
}
