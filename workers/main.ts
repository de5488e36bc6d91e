/** A worker process: workers and, on a port of their own, metrics and health. */
import type { FastifyInstance } from 'fastify';
import type { App } from '../src/app.js';
import { createServer } from '../src/http/server.js';
import { Closer } from '../src/lifecycle.js';
import type { QueueName } from '../src/queues/contract.js';
import { watchQueueStore } from './queue-watch.js';
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
  const address = await listen(server, host, api ? { PORT: port } : { METRICS_PORT: app.config.metricsPort });
  const workers = startWorkers(app, names);
  const watch = watchQueueStore(app);
  app.log.info({ address, workers: names, api }, 'service started');
  return {
    address,
    stop: async () => {
      app.log.info('service stopping');
      await using closer = new Closer();
      closer.add('app', app, (one) => one.close());
      closer.add('server', server, (one) => one.close());
      closer.add('queue watch', watch, (one) => one.stop());
      await workers.stop(app.config.shutdownTimeoutMs);
      await closer.close();
      app.log.info('service stopped');
    },
  };
}

async function listen(server: FastifyInstance, host: string, named: Record<string, number>): Promise<string> {
  const [[variable, port] = ['PORT', 0]] = Object.entries(named);
  try {
    return await server.listen({ host, port });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
    throw new Error(`${host}:${port} is in use: set ${variable} to another port`, { cause: error });
  }
}
