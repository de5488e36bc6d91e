/** Looks at the memory of workers over time: what grows on and on is told from what goes up and down. */
import { setTimeout as pause } from 'node:timers/promises';
import type { WorkerProcess } from '../worker-process.js';

const LOOK_MS = 1_000;
const MIB = 2 ** 20;

export interface MemoryWatch {
  /** @returns MiB by which the median of the last quarter is above that of the first, of whoever grew most */
  stop(): Promise<number>;
}

export function watchMemory(workers: readonly WorkerProcess[]): MemoryWatch {
  const samples = workers.map((): number[] => []);
  const stopping = new AbortController();
  const watching = (async () => {
    while (!stopping.signal.aborted) {
      const bytes = await Promise.all(workers.map((worker) => worker.rssBytes()));
      for (const [i, rss] of bytes.entries()) samples[i]?.push(rss / MIB);
      await pause(LOOK_MS, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
  })();
  watching.catch(() => undefined); // heard by whoever stops it; where a run breaks before that, its workers are killed
  return {
    stop: async () => {
      stopping.abort();
      await watching;
      return Math.max(...samples.map(growth));
    },
  };
}

function growth(samples: readonly number[]): number {
  const quarter = Math.ceil(samples.length / 4);
  return median(samples.slice(-quarter)) - median(samples.slice(0, quarter));
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}
