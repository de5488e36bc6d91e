/** BullMQ's Redis backend, going by the server's clock. */
import { createRedisBackend } from 'bullmq';
import { ServerClock } from '../server-clock.js';

interface Commands {
  readonly queue: { readonly client: Promise<{ time(): Promise<[seconds: string, micros: string]> }> };
  /** Runs one of BullMQ's scripts: `args` are its keys, and then its arguments. */
  execCommand(client: unknown, script: string, args: unknown[]): Promise<unknown>;
  /** Waits for a job, or for the moment in which the next delayed one is due. */
  waitForJob(seconds: number): Promise<{ readonly member: string; readonly score: number } | null>;
}

/** Of BullMQ's scripts: where among `args` the time is, in milliseconds since the epoch. */
const TIME: Readonly<Record<string, number>> = {
  moveToActive: 12,
  moveToFinished: 15,
  moveToDelayed: 12,
  retryJob: 12,
  changeDelay: 5,
};

/** What those that take the next job answer: its fields one after the other, and when the next delayed one is due. */
type Next = [fields: string[] | 0 | null, id: unknown, limitedMs: unknown, dueAt: number | string];

export const createTimelyRedis: typeof createRedisBackend = (...args) => {
  const backend = createRedisBackend(...args);
  goByServerClock(backend as unknown as Commands);
  return backend;
};

/**
 * BullMQ 6.7 says by its own clock when a delayed job is due, and whether it is. What a worker that is ten minutes fast had
 * put off, all others left alone for ten minutes; one that is slow took it up at once, again and again. So whatever it says
 * of times is put right on its way, and on its way back when the next one is due, and when a job began: it renews locks by
 * that.
 */
function goByServerClock(backend: Commands): void {
  const clock = new ServerClock(async () => {
    const [seconds, micros] = await (await backend.queue.client).time();
    return Number(seconds) + Number(micros) / 1e6;
  });
  const run = backend.execCommand.bind(backend);
  // Not `async`: within a transaction BullMQ expects no promise.
  backend.execCommand = (client, script, args) => {
    const at = TIME[script];
    return at === undefined ? run(client, script, args) : runAt(at, client, script, args);
  };
  async function runAt(at: number, client: unknown, script: string, args: unknown[]): Promise<unknown> {
    const aheadMs = await clock.aheadMs();
    const result = await run(client, script, args.with(at, Number(args[at]) + aheadMs));
    return Array.isArray(result) ? asOurs(result as Next, aheadMs) : result;
  }
  const wait = backend.waitForJob.bind(backend);
  backend.waitForJob = async (seconds) => {
    const marker = await wait(seconds);
    return marker && marker.score > 0 ? { ...marker, score: marker.score - (await clock.aheadMs()) } : marker;
  };
}

function asOurs([fields, id, limitedMs, dueAt]: Next, aheadMs: number): Next {
  const ours = (at: unknown) => Number(at) - aheadMs;
  const isTime = (i: number, all: readonly string[]) => i % 2 === 1 && all[i - 1] === 'processedOn';
  const job = Array.isArray(fields)
    ? fields.map((value, i, all) => (isTime(i, all) ? String(ours(value)) : value))
    : fields;
  return [job, id, limitedMs, Number(dueAt) > 0 ? ours(dueAt) : dueAt];
}
