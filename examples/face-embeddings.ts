/** Face embeddings: computed once, found again by the image's bytes or by their hash. */
import { closeCacheService, type FaceEmbedding, getHybridCacheService } from 'hybrid-cache-service';

const cache = getHybridCacheService();
const image = Buffer.from('stands for the bytes of an image');

console.log('before:', await cache.getCachedFaceEmbeddings(image, 'example')); // null: nobody knows

const faces: FaceEmbedding[] = [
  { bbox: [120, 80, 260, 250], det_score: 0.98, embedding: Array.from({ length: 512 }, (_, i) => Math.sin(i)) },
];
console.log('stored:', await cache.cacheFaceEmbeddings(image, 'example', faces)); // true: it is in PostgreSQL

const found = await cache.getCachedFaceEmbeddings(image, 'example');
console.log('found:', found?.length, 'face of', found?.[0]?.embedding.length, 'numbers');

await cache.cacheFaceEmbeddings('0'.repeat(64), 'example', []);
console.log('no faces:', await cache.getCachedFaceEmbeddings('0'.repeat(64), 'example')); // []: known to show none

await closeCacheService();
