/** The library's public names. Importing it does no I/O and loads neither the HTTP server nor a face model. */
export type { NearDuplicate } from './cache/near-duplicates.js';
export {
  type Content,
  closeCacheService,
  getHybridCacheService,
  getHybridCacheService as getCacheService,
  type HybridCacheOptions,
  HybridCacheService,
  type ModelOption,
  type SkipAnswer,
  type StoredKeys,
} from './cache/service.js';
export { ArgumentError, ConfigError } from './errors.js';
export type { FaceDetection, FaceEmbedding } from './kinds/faces.js';
