/** A worker process: workers and, on a port of their own, metrics and health. */
import { performance } from 'node:perf_hooks';
import type { FastifyInstance } from 'fastify';
import type { App } from '../src/app.js';
import { closeServer, createServer } from '../src/http/server.js';
import { Closer, type Periodic, within } from '../src/lifecycle.js';
import type { QueueName } from '../src/queues/contract.js';
import { watchQueueStore } from './queue-watch.js';
import { startWorkers, type Workers } from './start.js';
import { watchTiers } from './tier-watch.js';

/** The end of the deadline, in which answers under way are sent and everything is closed; a quarter of it where it is short. */
const CLOSING_MS = 1_000;

export interface Running {
  readonly address: string;
  /** Drains and closes within the configured time, whatever is deaf to it then. */
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
  const watches = [watchQueueStore(app), watchTiers(app)];
  app.log.info({ address, workers: names, api }, 'service started');
  return { address, stop: () => stop(app, { workers, server, watches }) };
}

interface Parts {
  readonly workers: Workers;
  readonly server: FastifyInstance;
  readonly watches: readonly Periodic[];
}

/** Each part has what is left of the one deadline, less what those behind it need. */
async function stop(app: App, { workers, server, watches }: Parts): Promise<void> {
  app.log.info('service stopping');
  const { shutdownTimeoutMs } = app.config;
  const end = performance.now() + shutdownTimeoutMs;
  const closingMs = Math.min(CLOSING_MS, shutdownTimeoutMs / 4);
  const leftMs = (forOthers: number) => Math.max(0, end - performance.now() - forOthers);
  const closer = new Closer();
  closer.add('app', app, (one) => within(leftMs(0), one.close(), undefined));
  closer.add('server', server, (one) => closeServer(one, leftMs(closingMs / 2)));
  const stopped = (all: readonly Periodic[]) => Promise.all(all.map((one) => one.stop()));
  closer.add('watches', watches, async (all) => void (await within(leftMs(closingMs), stopped(all), undefined)));
  closer.add('workers', workers, (one) => within(leftMs(closingMs), one.stop(leftMs(closingMs)), undefined));
  await closer.close();
  app.log.info('service stopped');
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
