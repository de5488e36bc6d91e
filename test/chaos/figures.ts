/** What processes count, read off the text of their metrics. */
import type { WorkerProcess } from './worker-process.js';

/** The text of the metrics of those that live. */
export async function metricsOf(workers: Iterable<WorkerProcess>): Promise<string[]> {
  const alive = [...workers].filter(({ isAlive }) => isAlive);
  return Promise.all(alive.map((worker) => worker.metrics()));
}

/**
 * The sum of all series of this name that have these labels, over all texts.
 *
 * @param labels as `tier="postgres"`
 */
export function counted(texts: readonly string[], name: string, ...labels: readonly string[]): number {
  const lines = texts.flatMap((text) => text.split('\n')).filter((line) => /^\w+/.exec(line)?.[0] === name);
  const meant = lines.filter((line) => labels.every((label) => line.includes(label)));
  return meant.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}
