// to come
export type CacheStatistics = Record<string, unknown>;
export async function readStatistics(_: unknown): Promise<CacheStatistics> { return {}; }
