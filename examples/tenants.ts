/** Tenants: the same image, known to one and unknown to the other; and forgetting one of them. */
import { closeCacheService, getHybridCacheService } from 'hybrid-cache-service';

const cache = getHybridCacheService();
const image = Buffer.from('stands for the bytes of an image that both have');

await cache.cachePerceptualHash(image, 'tenant-a', '0123456789abcdef');
await cache.cachePerceptualHash(image, 'tenant-b', 'fedcba9876543210');
console.log('a:', await cache.getCachedPerceptualHash(image, 'tenant-a'));
console.log('b:', await cache.getCachedPerceptualHash(image, 'tenant-b'));

console.log('forgotten of a:', await cache.invalidateTenantCache('tenant-a'));
console.log('a:', await cache.getCachedPerceptualHash(image, 'tenant-a')); // null
console.log('b:', await cache.getCachedPerceptualHash(image, 'tenant-b')); // untouched

await closeCacheService();
