/** A worker process of a run. It says when it works, and tells its figures when it is asked. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { readEnv, toConfig } from '../../src/config.js';
import { onShutdownSignal } from '../../src/lifecycle.js';
import { QUEUE_NAMES } from '../../src/queues/contract.js';
import { run } from '../../workers/main.js';
import { DIE_AT, openChaosApp, type Step } from './app.js';

/** What a worker process tells its parent. */
export type FromWorker =
  | { readonly say: 'working'; readonly address: string }
  | { readonly say: 'figures'; readonly figures: WorkerFigures };

export interface WorkerFigures {
  /** Of the event loop since the last question, in milliseconds. */
  readonly lagP99Ms: number;
  readonly lagMaxMs: number;
  readonly rssBytes: number;
  /** In the text format. */
  readonly metrics: string;
}

const env = readEnv();
const names = QUEUE_NAMES.filter((name) => (env.CHAOS_QUEUES ?? QUEUE_NAMES.join()).split(',').includes(name));
const app = openChaosApp(toConfig(env), { retryBaseMs: 200 }, env[DIE_AT] as Step | undefined);
const delays = monitorEventLoopDelay({ resolution: 5 });
delays.enable();

process.on('message', async () => {
  const figures: WorkerFigures = {
    lagP99Ms: delays.percentile(99) / 1e6,
    lagMaxMs: delays.max / 1e6,
    rssBytes: process.memoryUsage.rss(),
    metrics: await app.metrics.registry.metrics(),
  };
  delays.reset();
  tell({ say: 'figures', figures });
});
// A run that is gone wants no workers.
process.on('disconnect', () => process.exit(1));

const running = await run(app, { workers: names, api: false });
onShutdownSignal(() => running.stop().then(() => 0));
tell({ say: 'working', address: running.address });

function tell(message: FromWorker): void {
  process.send?.(message, () => undefined);
}
