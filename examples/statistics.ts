/** What the cache holds, and how its look-ups were answered. */
import { closeCacheService, getHybridCacheService } from 'hybrid-cache-service';

const cache = getHybridCacheService();
await cache.getCachedPerceptualHash(Buffer.from('stands for the bytes of an image'), 'example');

const { redisStats, postgresStats, redisEnabled, postgresEnabled, service } = await cache.getCacheStats();
console.log('enabled:', { redis: redisEnabled, postgres: postgresEnabled });

// A tier that is away says why in the place of its figures.
if ('error' in redisStats) console.log('Redis:', redisStats.error);
else console.log('Redis:', redisStats.usedMemoryHuman, 'used,', redisStats.connectedClients, 'clients');

if ('error' in postgresStats) console.log('PostgreSQL:', postgresStats.error);
else console.log('PostgreSQL:', postgresStats.faceEmbeddingsCacheCount, 'images with known faces');

console.log('this process:', service.totalRequests, 'look-ups,', service.hitRate, '% of them hits');

await closeCacheService();
