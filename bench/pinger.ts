/** Another client of Redis, in a thread of its own: answers every message with its slowest ping since the last one. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { Redis } from 'ioredis';

const redis = new Redis(workerData as string);
redis.on('error', () => undefined);
const NEVER = Number.POSITIVE_INFINITY;
let slowest = 0;
/** When the ping under way was sent. */
let sent = NEVER;

parentPort?.on('message', () => {
  parentPort?.postMessage(Math.max(slowest, performance.now() - sent));
  slowest = 0;
});

for (;;) {
  sent = performance.now();
  await redis.ping();
  slowest = Math.max(slowest, performance.now() - sent);
  sent = NEVER;
  await pause(1);
}
