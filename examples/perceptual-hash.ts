/** Perceptual hashes: exact by image, and by likeness within a tenant. */
import { closeCacheService, getHybridCacheService } from 'hybrid-cache-service';

const cache = getHybridCacheService();
const original = Buffer.from('stands for the bytes of an image');
const resized = Buffer.from('stands for the same picture, half as large');

await cache.cachePerceptualHash(original, 'example', 'c3a1f0e49b5d2678');
await cache.cachePerceptualHash(resized, 'example', 'c3a1f0e49b5d267b'); // 2 of 64 bits differ

console.log('hash:', await cache.getCachedPerceptualHash(original, 'example'));

const near = await cache.findNearDuplicates('c3a1f0e49b5d2678', 'example');
console.log('near-duplicates:', near.map(({ phash, distance }) => `${phash} at distance ${distance}`).join(', '));

await closeCacheService();
