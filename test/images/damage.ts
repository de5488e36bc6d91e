/** Ways in which images arrive broken, and in which somebody breaks them on purpose. */

type Random = (bound: number) => number;

const WAYS: readonly ((bytes: Buffer, random: Random) => Buffer)[] = [
  (bytes, random) => flipped(bytes, random, bytes.length),
  // Most decoders have been attacked through their headers.
  (bytes, random) => flipped(bytes, random, Math.min(bytes.length, 128)),
  (bytes, random) => bytes.subarray(0, random(bytes.length)),
  (bytes, random) => overwritten(bytes, random),
  (bytes, random) => without(bytes, random),
  (bytes, random) => doubled(bytes, random),
];

/** A damaged copy; the same one for the same `random`. */
export function damaged(bytes: Buffer, random: Random): Buffer {
  const way = WAYS[random(WAYS.length)] as (typeof WAYS)[number];
  return way(bytes, random);
}

function flipped(bytes: Buffer, random: Random, within: number): Buffer {
  const copy = Buffer.from(bytes);
  for (let flips = 1 + random(8); flips > 0; flips--) {
    const at = random(within);
    copy[at] = (copy[at] as number) ^ (1 << random(8));
  }
  return copy;
}

/** Numbers that decoders get wrong: none, as many as fit, as many as fit with a sign. */
function overwritten(bytes: Buffer, random: Random): Buffer {
  const copy = Buffer.from(bytes);
  const at = random(bytes.length);
  copy.subarray(at, at + 1 + random(8)).fill([0x00, 0xff, 0x7f, 0x80][random(4)] as number);
  return copy;
}

function without(bytes: Buffer, random: Random): Buffer {
  const at = random(bytes.length);
  return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random(64))]);
}

function doubled(bytes: Buffer, random: Random): Buffer {
  const at = random(bytes.length);
  return Buffer.concat([bytes.subarray(0, at + 1 + random(64)), bytes.subarray(at)]);
}
