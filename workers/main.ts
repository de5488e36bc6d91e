/** A worker process: workers and, on a port of their own, metrics and health. */
import type { App } from '../src/app.js';
import { createServer } from '../src/http/server.js';
import type { QueueName } from '../src/queues/contract.js';
import { startWorkers } from './start.js';

export interface Running {
  readonly address: string;
  /** Drains within the configured time, then closes. */
  stop(): Promise<void>;
}

/** `workers` may be empty: then the process serves the API alone. */
export async function run(
  app: App,
  { workers: names, api }: { workers: readonly QueueName[]; api: boolean },
): Promise<Running> {
  const server = await createServer(app, { api });
  const { host, port } = app.config.http;
  const address = await server.listen(api ? { host, port } : { host, port: app.config.metricsPort });
  const workers = startWorkers(app, names);
  app.log.info({ address, workers: names, api }, 'service started');
  return {
    address,
    stop: async () => {
      app.log.info('service stopping');
      await workers.stop(app.config.shutdownTimeoutMs);
      await server.close();
      await app.close();
      app.log.info('service stopped');
    },
  };
}
