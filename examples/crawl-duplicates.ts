/** A crawler that fetches nothing twice: by URL before the download, by content after it. */
import { closeCacheService, getHybridCacheService } from 'hybrid-cache-service';

const cache = getHybridCacheService();
const url = 'https://example.com/photo.jpg';
const bytes = Buffer.from('stands for the bytes of an image');

console.log('new URL:', await cache.shouldSkipUrl(url, 'example')); // shouldSkip: false

// Objects first, then the record: whoever finds the record finds the objects.
const stored = await cache.storeCrawledImage(url, bytes, { rawKey: 'raw/photo.jpg' }, 'example');
console.log('stored:', stored);

console.log('same URL:', await cache.shouldSkipUrl(url, 'example')); // reason: 'url'
const copy = 'https://mirror.example.com/copy.jpg';
console.log('same bytes:', await cache.shouldSkipCrawledImage(copy, bytes, 'example')); // reason: 'content'
console.log('the copy from now on:', await cache.shouldSkipUrl(copy, 'example')); // reason: 'url'

await closeCacheService();
