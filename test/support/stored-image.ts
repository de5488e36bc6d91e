/** An image as a crawl leaves it: both objects and the record, without a crawl. */
import type { App } from '../../src/app.js';
import { UNKNOWN_VERSION } from '../../src/cache/crawl-records.js';
import { processImage } from '../../src/images/image.js';
import { sha256 } from '../../src/kinds/identity.js';
import { rawKey, thumbnailKey } from '../../src/storage/object-store.js';
import { noiseImage } from './images.js';

/** A PNG of noise, the same for the same `seed`. */
export async function storeSampleImage(app: App, tenantId: string, seed = 1): Promise<{ contentHash: string }> {
  const bytes = await noiseImage(64, 48, seed);
  const contentHash = sha256(bytes);
  const image = await processImage(bytes, { maxPixels: app.config.images.maxPixels });
  const content = {
    rawKey: rawKey(tenantId, contentHash, image.mimeType),
    thumbnailKey: thumbnailKey(tenantId, contentHash),
    mimeType: image.mimeType,
    byteSize: bytes.length,
    width: image.width,
    height: image.height,
    jobId: null,
    storedAt: Date.now(),
  };
  await app.objects.put(content.rawKey, bytes);
  await app.objects.put(content.thumbnailKey, image.thumbnail);
  const url = `https://example.com/${seed}.png`;
  await app.records.store(tenantId, {
    url,
    sourceUrl: null,
    contentHash,
    content,
    validators: UNKNOWN_VERSION,
    phash: image.phash,
  });
  return { contentHash };
}
