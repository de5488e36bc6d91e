/** Decoding shares libuv's threads with files: it leaves one. */
import sharp from 'sharp';
import { expect, it } from 'vitest';
import { processImage } from '../../src/images/image.js';
import { samplePhoto } from '../support/images.js';

/** Queued and in work; an image that goes from one to the other between the two readings would count twice. */
function atOnce(): number {
  const { queue, process } = sharp.counters();
  const again = sharp.counters();
  return queue === again.queue && process === again.process ? queue + process : atOnce();
}

it('images that are decoded at once leave a thread for files, and all of them are', async () => {
  const photo = await samplePhoto(1);
  let most = 0;
  sharp.queue.on('change', () => {
    most = Math.max(most, atOnce());
  });
  const broken = Buffer.from('no image');
  const images = Array.from({ length: 12 }, (_, n) => processImage(n % 3 === 0 ? broken : photo, { maxPixels: 1e8 }));
  const ends = await Promise.allSettled(images);
  expect(ends.map(({ status }) => status)).toEqual(images.map((_, n) => (n % 3 === 0 ? 'rejected' : 'fulfilled')));
  expect(most).toBeGreaterThan(1);
  expect(most).toBeLessThanOrEqual(3);
});
