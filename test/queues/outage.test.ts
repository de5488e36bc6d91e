/** The queue's store is killed, frozen and brought back, on servers of this file's own. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { crawlQueue } from '../../src/queues/crawl.js';
import { HostSchedule } from '../../src/queues/host-schedule.js';
import { QueueUnavailableError } from '../../src/queues/index.js';
import { type OwnStack, startOwnStack } from '../support/own-stack.js';
import { enqueueOne, gate, image, startWork, untilState } from '../support/queue-work.js';
import { until } from '../support/until.js';

const DONE = { outcome: 'stored' };

let stack: OwnStack;

beforeAll(async () => {
  stack = await startOwnStack();
});

afterAll(async () => {
  await stack?.[Symbol.asyncDispose]();
});

describe.each(['redis', 'postgres'] as const)('a queue on %s', (server) => {
  let tests = 0;
  /** Each test has queues of its own on Redis; on PostgreSQL, jobs of other tests are told apart by their URLs. */
  const appOf = (options: { namespace?: string } = {}): App => {
    if (server === 'postgres') return stack.app({ REDIS_URL: 'none' }, { retryBaseMs: 1 });
    return stack.app({}, { retryBaseMs: 1, queueNamespace: options.namespace ?? `outage-${++tests}` });
  };

  const untilBack = (app: App, n: string) =>
    until('the queue takes jobs again', () => enqueueOne(app, image(`${server}-${n}`)));

  test('refuses jobs while its store is dead, and takes them once it is back, without a restart', async () => {
    const app = appOf();
    await enqueueOne(app, image(`${server}-before`));
    await stack.servers.kill(server, 'SIGKILL');
    await expect(enqueueOne(app)).rejects.toThrow(QueueUnavailableError);
    await expect(app.queues.enqueue(crawlQueue, [image(1), image(2)])).rejects.toThrow(QueueUnavailableError);
    await expect(app.queues.job('crawl', 'any')).rejects.toThrow(QueueUnavailableError);
    await expect(app.queues.counts('crawl')).rejects.toThrow(QueueUnavailableError);
    expect(await app.queues.isUp()).toBe(false);
    await stack.servers.restart(server);
    await untilBack(app, 'after');
    expect(await app.queues.isUp()).toBe(true);
  });

  test('works from its store’s first moment on where the store was dead before', async () => {
    await stack.servers.kill(server, 'SIGKILL');
    const app = appOf();
    await expect(enqueueOne(app)).rejects.toThrow(QueueUnavailableError);
    expect(await app.queues.isUp()).toBe(false);
    await stack.servers.restart(server);
    await untilBack(app, 'late-start');
  });

  test('refuses jobs while its store is frozen, and takes them once it is thawed', async () => {
    const app = appOf();
    await enqueueOne(app, image(`${server}-warm`));
    await stack.servers.kill(server, 'SIGSTOP');
    try {
      await expect(enqueueOne(app)).rejects.toThrow(QueueUnavailableError);
      expect(await app.queues.isUp()).toBe(false);
    } finally {
      await stack.servers.kill(server, 'SIGCONT');
    }
    await untilBack(app, 'thawed');
  });

  test('keeps its jobs over a kill of its store, and the same worker goes on with them', async () => {
    const app = appOf();
    const names = Array.from({ length: 20 }, (_, n) => `${server}-kept-${n}`);
    const ids = await app.queues.enqueue(
      crawlQueue,
      names.map((name) => image(name)),
    );
    const held = gate();
    let running = 0;
    const worker = startWork(
      app,
      async () => {
        running += 1;
        await held.opened;
        return DONE;
      },
      { concurrency: 4 },
    );
    await until('four jobs run', () => running >= 4);
    await stack.servers.kill(server, 'SIGKILL');
    held.open();
    await stack.servers.restart(server);
    const ended = await until('every job has ended', async () => {
      const jobs = await Promise.all(ids.map((id) => app.queues.job('crawl', id)));
      return jobs.every((job) => job?.state === 'completed' || job?.state === 'failed') ? jobs : null;
    });
    for (const job of ended) expect(job).toMatchObject({ state: 'completed', outcome: DONE, error: null });
    expect(worker.isRunning()).toBe(true);
    await worker.close();
  });

  test('spends no attempt where its store dies while the end of a job is being recorded', async () => {
    const app = appOf();
    const held = gate();
    let runs = 0;
    const worker = startWork(app, async () => {
      runs += 1;
      await held.opened;
      return DONE;
    });
    const id = await enqueueOne(app, image(`${server}-recorded`));
    await until('the job runs', () => runs === 1);
    await stack.servers.kill(server, 'SIGSTOP');
    held.open();
    // The worker has by then asked the frozen store to record the end.
    for (let turn = 0; turn < 50; turn++) await nextTurn();
    await stack.servers.kill(server, 'SIGKILL');
    await stack.servers.restart(server);
    const job = await untilState(app, id, 'completed', 'failed');
    expect(job).toMatchObject({ state: 'completed', outcome: DONE, attempts: 1 });
    await worker.close();
  });

  test('gives its jobs to a worker that was started while its store was dead, and does not flood the log', async () => {
    const namespace = `outage-worker-${server}`;
    const producer = appOf({ namespace });
    const id = await enqueueOne(producer, image(`${server}-early`));
    await stack.servers.kill(server, 'SIGKILL');
    stack.logs.length = 0;
    const app = appOf({ namespace });
    const worker = startWork(app, async () => DONE);
    await expect(app.queues.counts('crawl')).rejects.toThrow(QueueUnavailableError);
    await stack.servers.restart(server);
    await until('the job is completed', async () => (await app.queues.job('crawl', id))?.state === 'completed');
    // A loop that does not pause between its attempts logs thousands.
    expect(stack.logs.filter(({ msg }) => msg === 'queue connection error').length).toBeLessThan(300);
    await worker.close();
  });

  test('wakes whom a frozen store has given a permit, once it is thawed', async () => {
    const app = appOf();
    const schedule = new HostSchedule(app.backend.state, app.queues.get('crawl'));
    const rules = { most: 1, gapMs: 0, leaseMs: 600_000 };
    const host = `${server}.example`;
    const permit = await schedule.enter(host, 'holder', 'acme', rules);
    const worker = startWork(app, async (_, { id }) => {
      await (await schedule.enter(host, id, 'acme', rules)).leave(rules);
      return DONE;
    });
    const id = await enqueueOne(app, image(`${server}-woken`));
    await untilState(app, id, 'delayed');
    await stack.servers.kill(server, 'SIGSTOP');
    try {
      await expect(permit.leave(rules)).rejects.toThrow(QueueUnavailableError);
    } finally {
      await stack.servers.kill(server, 'SIGCONT');
    }
    await until('the job is completed', async () => (await app.queues.job('crawl', id))?.state === 'completed');
    await worker.close();
  });

  test('lets an app close while its store is dead', async () => {
    const app = appOf();
    await enqueueOne(app, image(`${server}-closing`));
    startWork(app, async () => DONE);
    await stack.servers.kill(server, 'SIGKILL');
    try {
      await app.close();
    } finally {
      await stack.servers.restart(server);
    }
  });
});

test('with queues on PostgreSQL, a worker whose questions nobody answers gives them up, and asks anew', async () => {
  const app = stack.app({ REDIS_URL: 'none' });
  const worker = startWork(app, async () => DONE);
  await untilState(app, await enqueueOne(app, image('before-silence')), 'completed');
  const errors = new Set<string>();
  worker.on('error', ({ message }) => errors.add(message));
  await stack.servers.kill('postgres', 'SIGSTOP');
  try {
    await until('a question to be given up', () => errors.has('Query read timeout'), 50_000);
  } finally {
    await stack.servers.kill('postgres', 'SIGCONT');
  }
  await untilState(app, await enqueueOne(app, image('after-silence')), 'completed');
  await worker.close();
});
