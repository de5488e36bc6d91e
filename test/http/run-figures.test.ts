/** Figures of a window that all tenants share: a tenant's tell nothing of the others. */
import { expect, test } from 'vitest';
import type { EndedJob, EndedJobs } from '../../src/http/ended-jobs.js';
import { runOf } from '../../src/http/run-figures.js';

const AT = 1_800_000_000_000;
const POINTS = 30;

const job = (tenantId: string, secondsAgo: number): EndedJob => ({
  ...{ tenantId, queue: 'crawl', at: AT - 1000 * secondsAgo, outcome: 'stored', reason: null, faces: 0 },
  ...{ subject: 'example.com/1.jpg', detail: null },
});

const windowOf = (jobs: readonly EndedJob[], more: boolean): EndedJobs => ({
  jobs: jobs.toSorted((a, b) => b.at - a.at),
  more,
});

const others = (jobs: number, secondsAgo: number) =>
  Array.from({ length: jobs }, (_, n) => job('globex', (secondsAgo * (n + 1)) / jobs));

const OWN = [1, 3, 30, 59, 61, 300].map((secondsAgo) => job('acme', secondsAgo));
const LAST_MINUTE = OWN.slice(0, 4);

test('all jobs that are kept are counted where the window holds them', () => {
  const run = runOf(windowOf([...OWN, ...others(500, 10)], false), ['acme'], AT);
  expect(run).toMatchObject({ jobs: 6, more: false, since: AT - 300_000, overSeconds: 60, perSecond: 4 / 60 });
  expect(run.curve.filter((point) => point === 0.5)).toHaveLength(4);
});

test('a tenant’s figures are those of the last minute where older jobs are kept, whatever others do', () => {
  const runs = [61, 100, 3_600].map((reach) => {
    const visible = OWN.filter(({ at }) => at >= AT - 1000 * reach);
    return runOf(windowOf([...visible, ...others(990, reach)], true), ['acme'], AT);
  });
  for (const run of runs) expect(run).toEqual(runs[0]);
  expect(runs[0]).toMatchObject({ jobs: 4, more: true, since: LAST_MINUTE.at(-1)?.at, perSecond: 4 / 60 });
  expect(runs[0]?.outcomes).toEqual([{ outcome: 'stored', reason: null, jobs: 4 }]);
  expect(runs[0]?.curve).toHaveLength(POINTS);
  expect(runs[0]?.curve).not.toContain(null);
});

test.each([
  { overSeconds: 10, jobs: 2, reaches: [10, 11, 30, 59] },
  { overSeconds: 1, jobs: 0, reaches: [0.2, 1, 5, 9.9] },
])('of a window of less than a minute a tenant is told the last $overSeconds s', ({ overSeconds, jobs, reaches }) => {
  const told = reaches.map((reach) => {
    const visible = OWN.filter(({ at }) => at >= AT - 1000 * reach);
    return runOf(windowOf([...visible, ...others(990, reach)], true), ['acme'], AT);
  });
  for (const one of told) expect(one).toEqual(told[0]);
  expect(told[0]).toMatchObject({ jobs, more: true, overSeconds, perSecond: jobs / overSeconds });
  expect(told[0]?.curve.filter((point) => point !== null)).toHaveLength(Math.floor(overSeconds / 2));
});

test('who sees all tenants is told how far the window goes back', () => {
  const run = runOf(windowOf(others(1_000, 10), true), null, AT);
  expect(run).toMatchObject({ jobs: 1_000, more: true, since: AT - 10_000, overSeconds: 10 });
  expect(run.curve.slice(0, 25)).toEqual(Array(25).fill(null));
  expect(run.curve.slice(25)).not.toContain(null);
});
