/** A worker process to be killed: takes crawl jobs, says each one's id in a line, and never ends one. */
import { connect } from '../../src/app.js';
import { toConfig } from '../../src/config.js';
import { createLogger } from '../../src/logger.js';
import { startWork } from '../support/queue-work.js';

const { env, queueNamespace, concurrency } = JSON.parse(process.argv[2] ?? '{}');
const app = connect(toConfig(env), { logger: createLogger('silent'), ...(queueNamespace ? { queueNamespace } : {}) });
const work = (_: unknown, run: { jobId: string }) => {
  process.stdout.write(`${run.jobId}\n`);
  return new Promise<never>(() => undefined);
};
startWork(app, work, { concurrency });
