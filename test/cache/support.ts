/** What the tests of the cache have in common: tenants of their own, and looks at what was counted and logged. */
import { randomBytes } from 'node:crypto';
import { Claims } from '../../src/cache/claims.js';
import { type CacheConnection, connectCache } from '../../src/cache/connect.js';
import { CrawlRecords } from '../../src/cache/crawl-records.js';
import { HybridCacheService } from '../../src/cache/service.js';
import type { Config } from '../../src/config.js';
import { Events } from '../../src/events.js';
import { createLogger } from '../../src/logger.js';
import { createMetrics, type Metrics } from '../../src/metrics.js';

export interface OpenCache extends AsyncDisposable {
  readonly connection: CacheConnection;
  readonly service: HybridCacheService;
  readonly records: CrawlRecords;
  readonly claims: Claims;
  readonly metrics: Metrics;
  /** Lines that were logged, parsed. */
  readonly logs: Record<string, unknown>[];
}

/** A cache of its own, with its own metrics and log. */
export function openCache(config: Config, prefix: string): OpenCache {
  const logs: Record<string, unknown>[] = [];
  const log = createLogger('debug', { write: (line: string) => void logs.push(JSON.parse(line)) });
  const metrics = createMetrics();
  const connection = connectCache(config, log, new Events(metrics, log), { prefix });
  return {
    connection,
    service: new HybridCacheService({ connection }),
    records: new CrawlRecords(connection.hybrid),
    claims: new Claims(connection.query),
    metrics,
    logs,
    [Symbol.asyncDispose]: () => connection.close(),
  };
}

/** A tenant that nobody has written for. */
export function freshTenant(): string {
  return `tenant-${randomBytes(6).toString('hex')}`;
}

/** The value of a counter or gauge for exactly these labels; 0 where it was never touched. */
export async function counted(
  metric: Metrics['cacheRequests'] | Metrics['tierErrors'] | Metrics['cacheBackfills'] | Metrics['tierUp'],
  labels: Record<string, string>,
): Promise<number> {
  const { values } = await metric.get();
  const wanted = Object.entries(labels);
  const matching = values.filter((one) =>
    wanted.every(([name, value]) => (one.labels as Record<string, unknown>)[name] === value),
  );
  return matching.reduce((sum, { value }) => sum + value, 0);
}

/** The messages of log lines, in order. */
export function messages(logs: readonly Record<string, unknown>[]): string[] {
  return logs.map(({ msg }) => String(msg));
}
