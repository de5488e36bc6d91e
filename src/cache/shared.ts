/** The service that a whole process shares. */
import { HybridCacheService } from './service.js';

let shared: HybridCacheService | undefined;

/** The process's own service, configured by the environment and made at the first call. */
export function getHybridCacheService(): HybridCacheService {
  shared ??= new HybridCacheService();
  return shared;
}

/** Begins the counts of the process's own service anew. */
export function resetCacheStats(): void {
  shared?.resetCacheStats();
}

/** Closes what `getHybridCacheService` made; the next call makes a new one. */
export async function closeCacheService(): Promise<void> {
  const closing = shared;
  shared = undefined;
  await closing?.close();
}
