/** The demo's result as a table: a row a figure, a column a pass. */
import type { PassResult } from './pass.js';

export function tableOf(passes: readonly PassResult[]): string {
  const reasons = [...new Set(passes.flatMap((pass) => Object.keys(pass.rejected)))].sort();
  const figures: [string, (pass: PassResult) => number | string][] = [
    ['jobs', (pass) => pass.jobs],
    ['stored', (pass) => pass.stored],
    ['skipped by URL', (pass) => pass.skippedByUrl],
    ['skipped by content', (pass) => pass.skippedByContent],
    ['near-duplicates', (pass) => pass.nearDuplicates],
    ...reasons.map((reason): [string, (pass: PassResult) => number] => [
      `rejected: ${reason}`,
      (pass) => pass.rejected[reason] ?? 0,
    ]),
    ['failed', (pass) => pass.failed],
    ['faces found', (pass) => pass.faces],
    ['cache hits in Redis', (pass) => pass.redisHits],
    ['cache hits in PostgreSQL', (pass) => pass.postgresHits],
    ['requests to the site', (pass) => pass.downloads],
    ['images per second', (pass) => pass.imagesPerSecond.toFixed(1)],
  ];
  const head = ['', ...passes.map((_, i) => `pass ${i + 1}`)];
  const rows = figures.map(([label, figure]) => [label, ...passes.map((pass) => String(figure(pass)))]);
  return [head, ...rows].map(([label = '', ...cells]) => label.padEnd(26) + cells.map(cell).join('')).join('\n');
}

function cell(text: string): string {
  return text.padStart(10);
}
