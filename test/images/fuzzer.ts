/**
 * A process of its own, because what it looks for may end it: many small images, damaged or whole, go through the
 * service's decoder, and each must end as a picture or in a typed error. It says what became of them in one line of JSON.
 */
import sharp from 'sharp';
import { RejectedError, type RejectReason, RetryableError } from '../../src/errors.js';
import { decodePixels, processImage } from '../../src/images/image.js';
import { randomBelow } from '../support/images.js';
import { damaged } from './damage.js';
import { samples } from './samples.js';

export interface Run {
  readonly seed: number;
  readonly images: number;
  /** Of each image, in pixels. */
  readonly width: number;
  readonly damage: boolean;
}

export interface Report {
  /** How many ended how: `image`, or the reason of a typed error. */
  readonly outcomes: Readonly<Record<string, number>>;
  /** Resident memory in MB, at the end of each hundredth part of the run. */
  readonly rss: readonly number[];
}

/** As configured by default. */
const LIMITS = { maxPixels: 100_000_000 };

/** Under way at once: what libuv's threads take, so that decoders run beside each other as in a worker. */
const TOGETHER = 4;

/** What a decoder may say of bytes; `RejectReason` has others, about origins and addresses. */
const REASONS: ReadonlySet<RejectReason> = new Set(['not-an-image', 'corrupt', 'unsupported', 'too-large']);

const run: Run = JSON.parse(process.argv[2] ?? '');
const taken = await samples(run.width);
const outcomes: Record<string, number> = {};
const rss: number[] = [];
for (let i = 0; i < run.images; i += TOGETHER) {
  process.stderr.write(`${i}\n`);
  await Promise.all(Array.from({ length: TOGETHER }, (_, k) => one(i + k)));
  if (i / run.images >= rss.length / 100) rss.push(Math.round(process.memoryUsage.rss() / 2 ** 20));
}
process.stdout.write(JSON.stringify({ outcomes, rss } satisfies Report));

async function one(i: number): Promise<void> {
  const random = randomBelow(Math.imul(run.seed + i, 2_654_435_761));
  const { name, bytes: whole } = taken[random(taken.length)] as (typeof taken)[number];
  const bytes = run.damage ? damaged(whole, random) : whole;
  try {
    const outcome = await outcomeOf(() => (i % 2 === 0 ? stored(bytes) : embedded(bytes)));
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  } catch (error) {
    const which = `image ${i} of seed ${run.seed}, ${name}: ${bytes.toString('base64')}`;
    throw new Error(which, { cause: error });
  }
}

async function outcomeOf(look: () => Promise<void>): Promise<string> {
  try {
    await look();
    return 'image';
  } catch (error) {
    if (error instanceof RejectedError && REASONS.has(error.reason)) return error.reason;
    if (error instanceof RetryableError && ['timeout', 'internal'].includes(error.reason)) return error.reason;
    throw error;
  }
}

/** As the crawl job looks at an image. */
async function stored(bytes: Buffer): Promise<void> {
  const { phash, thumbnail, ...facts } = await processImage(bytes, LIMITS);
  const small = await sharp(thumbnail).metadata();
  const side = Math.min(256, Math.max(facts.width, facts.height));
  if (/^[0-9a-f]{16}$/.test(phash) && small.format === 'jpeg' && Math.max(small.width, small.height) === side) return;
  throw new Error(`not sound: ${JSON.stringify(facts)}, ${phash}, a thumbnail of ${small.width} x ${small.height}`);
}

/** As the embedding job looks at it, reduced so far that decoders shrink while they load. */
async function embedded(bytes: Buffer): Promise<void> {
  const { data, width, height } = await decodePixels(bytes, { ...LIMITS, maxSide: 12 });
  if (data.length === width * height * 3 && Math.max(width, height) <= 12) return;
  throw new Error(`not sound: ${data.length} bytes of ${width} x ${height} pixels`);
}
