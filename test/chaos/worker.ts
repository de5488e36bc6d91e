/** A worker process of a run. It says when it works, and tells its figures when it is asked. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { readEnv, toConfig } from '../../src/config.js';
import { onShutdownSignal } from '../../src/lifecycle.js';
import { QUEUE_NAMES } from '../../src/queues/contract.js';
import { run } from '../../workers/main.js';
import { DIE_AT, openChaosApp, type Step } from './app.js';
import { type FromWorker, SERVES_API, type ToWorker, WORKS_ON, type WorkerFigures } from './worker-messages.js';

const env = readEnv();
const names = QUEUE_NAMES.filter((name) => (env[WORKS_ON] ?? QUEUE_NAMES.join()).split(',').includes(name));
const app = openChaosApp(toConfig(env), { retryBaseMs: 200 }, env[DIE_AT] as Step | undefined);
const delays = monitorEventLoopDelay({ resolution: 5 });
delays.enable();

process.on('message', async (question: ToWorker) => {
  const figures: WorkerFigures = {
    lagP99Ms: delays.percentile(99) / 1e6,
    lagMaxMs: delays.max / 1e6,
    rssBytes: process.memoryUsage.rss(),
    metrics: await app.metrics.registry.metrics(),
  };
  if (question === 'figures') delays.reset();
  await tell({ say: 'figures', figures });
});
// A run that is gone wants no workers.
process.on('disconnect', () => process.exit(1));

const running = await run(app, { workers: names, api: env[SERVES_API] !== undefined });
onShutdownSignal(async () => {
  await running.stop();
  await tell({ say: 'stopped', metrics: await app.metrics.registry.metrics() });
  return 0;
});
await tell({ say: 'working', address: running.address });

/** Resolves when it is on its way. */
function tell(message: FromWorker): Promise<void> {
  return new Promise((resolve) => {
    if (process.send) process.send(message, () => resolve());
    else resolve();
  });
}
