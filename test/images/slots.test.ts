/** Decoding shares libuv's threads with files: it leaves one. */
import sharp from 'sharp';
import { expect, it } from 'vitest';
import { processImage } from '../../src/images/image.js';
import { samplePhoto } from '../support/images.js';

it('images that are decoded at once leave a thread for files, and all of them are', async () => {
  const photo = await samplePhoto(1);
  let most = 0;
  sharp.queue.on('change', () => {
    const { queue, process } = sharp.counters();
    most = Math.max(most, queue + process);
  });
  const broken = Buffer.from('no image');
  const images = Array.from({ length: 12 }, (_, n) => processImage(n % 3 === 0 ? broken : photo, { maxPixels: 1e8 }));
  const ends = await Promise.allSettled(images);
  expect(ends.map(({ status }) => status)).toEqual(images.map((_, n) => (n % 3 === 0 ? 'rejected' : 'fulfilled')));
  expect(most).toBeGreaterThan(1);
  expect(most).toBeLessThanOrEqual(3);
});
