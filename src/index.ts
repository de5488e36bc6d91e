/** The library's public names. Importing it does no I/O and loads neither the HTTP server nor a face model. */

export type { Content } from './cache/arguments.js';
export type { CacheConfig, CacheConnection } from './cache/connect.js';
export type { LookupStatistics, ServiceStatistics } from './cache/lookup-counts.js';
export type { NearDuplicate } from './cache/near-duplicates.js';
export { type HybridCacheOptions, HybridCacheService, type ModelOption, type StoredKeys } from './cache/service.js';
export {
  closeCacheService,
  getHybridCacheService,
  getHybridCacheService as getCacheService,
  resetCacheStats,
} from './cache/shared.js';
export type { SkipAnswer } from './cache/skip.js';
export type { CacheStatistics, NoStatistics, PostgresStatistics, RedisStatistics } from './cache/statistics.js';
export { ArgumentError, ConfigError, type TierName, TierUnavailableError } from './errors.js';
export type { FaceDetection, FaceEmbedding } from './kinds/faces.js';
export type { FaceModels } from './kinds/models.js';
export type { SearchResults } from './kinds/search-results.js';
export type { KindName, Metrics } from './metrics.js';
