/** A worker process to be killed: takes crawl jobs, says each one's id in a line, and never ends one, or puts it off. */
import { connect } from '../../src/app.js';
import { toConfig } from '../../src/config.js';
import { DeferredError } from '../../src/errors.js';
import { createLogger } from '../../src/logger.js';
import { startWork } from '../support/queue-work.js';

const { env, namespace, concurrency, putOffMs } = JSON.parse(process.argv[2] ?? '{}');
const config = toConfig(env);
const queueNamespace = config.queue.backend === 'redis' ? { queueNamespace: namespace } : {};
const app = connect(config, { logger: createLogger('silent'), ...queueNamespace });
const work = async (_: unknown, run: { jobId: string }) => {
  process.stdout.write(`${run.jobId}\n`);
  if (putOffMs !== undefined) throw new DeferredError(putOffMs, 'as it was told');
  return new Promise<never>(() => undefined);
};
startWork(app, work, { concurrency });
