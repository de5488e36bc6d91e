/**
 * Takes from an image what a network looks at, before any tensor is made: tensors hold four bytes a value, several
 * copies live at once, and WASM memory never shrinks. Given whole 1,600 px images a thread took 600 MB, given these
 * samples 400 MB.
 */

/** 8-bit RGB, row by row. */
export interface RgbImage {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/** A rectangle in pixels, from its top left corner. */
export interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/**
 * Bilinear, longest side `side`; the image itself where it is no larger. Sampled where TensorFlow.js would sample
 * (`resizeBilinear` with neither aligned corners nor half-pixel centres), so that face-api's detector sees the same.
 */
export function reduced(image: RgbImage, side: number): RgbImage {
  const step = Math.max(image.width, image.height) / side;
  if (step <= 1) return image;
  const width = Math.max(1, Math.floor(image.width / step));
  const height = Math.max(1, Math.floor(image.height / step));
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) reduceRow(image, step, y, data.subarray(y * width * 3, (y + 1) * width * 3));
  return { data, width, height };
}

function reduceRow({ data, width, height }: RgbImage, step: number, y: number, out: Uint8Array): void {
  const top = Math.floor(y * step);
  const down = y * step - top;
  const upper = top * width * 3;
  const lower = Math.min(top + 1, height - 1) * width * 3;
  for (let i = 0; i < out.length; i++) {
    const at = Math.floor(i / 3) * step;
    const left = Math.floor(at);
    const first = left * 3 + (i % 3);
    const second = Math.min(left + 1, width - 1) * 3 + (i % 3);
    const above = mixed(data[upper + first] as number, data[upper + second] as number, at - left);
    const below = mixed(data[lower + first] as number, data[lower + second] as number, at - left);
    out[i] = Math.round(mixed(above, below, down));
  }
}

function mixed(a: number, b: number, part: number): number {
  return a + (b - a) * part;
}

/** A copy of a part of the image; the rectangle is whole pixels inside it, as {@link inside} gives. */
export function cropped(image: RgbImage, { x, y, width, height }: Box): RgbImage {
  const data = new Uint8Array(width * height * 3);
  for (let row = 0; row < height; row++) {
    const from = ((y + row) * image.width + x) * 3;
    data.set(image.data.subarray(from, from + width * 3), row * width * 3);
  }
  return { data, width, height };
}

/** The whole pixels of `box` that lie inside the image; at least one, also where the box lies outside. */
export function inside(box: Box, { width, height }: Pick<RgbImage, 'width' | 'height'>): Box {
  const x = Math.min(Math.max(0, Math.floor(box.x)), width - 1);
  const y = Math.min(Math.max(0, Math.floor(box.y)), height - 1);
  // As face-api: the corner is moved inside first, then what juts out on the right and below is cut off.
  const within = (size: number, room: number) => Math.max(1, Math.min(Math.floor(size), room));
  return { x, y, width: within(box.width, width - x), height: within(box.height, height - y) };
}
