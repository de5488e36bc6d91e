/** Images by the thousand, in a process of their own: none ends it, each ends as it should, and no memory stays behind. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { expect, it, onTestFinished } from 'vitest';
import type { Report, Run } from './fuzzer.js';

/** Half a minute of one core each; others may want it too. */
const PATIENCE = { timeout: 600_000 };

it('10,000 damaged images end as pictures or with a reason, in bounded memory', PATIENCE, async () => {
  const { outcomes, rss } = await fuzzed({ seed: 1, images: 10_000, width: 48, damage: true });
  const { image = 0, corrupt = 0 } = outcomes;
  expect(Object.values(outcomes).reduce((sum, count) => sum + count, 0)).toBe(10_000);
  // Neither was the damage too slight to matter nor so great that only signatures were looked at.
  expect(image).toBeGreaterThan(1_000);
  expect(corrupt).toBeGreaterThan(5_000);
  // 140 MB; before images had a longest side, other seeds met one that took 900.
  expect(Math.max(...rss)).toBeLessThan(512);
});

// MEMORY_IMAGES=20000 npx vitest run test/images/fuzz.test.ts
const IMAGES = Number(process.env.MEMORY_IMAGES ?? 4_000);

it(`memory is flat over ${IMAGES} images`, PATIENCE, async () => {
  const { outcomes, rss } = await fuzzed({ seed: 1, images: IMAGES, width: 192, damage: false });
  expect(outcomes).toEqual({ image: IMAGES });
  const quarter = Math.floor(rss.length / 4);
  // Of 20,000: 147 MB in the first quarter, 153 in the last. One raster left behind by each would be 1,400.
  expect(median(rss.slice(-quarter)) - median(rss.slice(0, quarter))).toBeLessThan(48);
});

async function fuzzed(run: Run): Promise<Report> {
  const script = fileURLToPath(new URL('./fuzzer.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', 'tsx', script, JSON.stringify(run)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const [report, said, [code, signal]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'exit'),
  ]);
  if (code === 0) return JSON.parse(report);
  const last = said.match(/^\d+$/gm)?.at(-1);
  throw new Error(`seed ${run.seed} ended with ${signal ?? code} after image ${last}: ${said.replace(/^\d+\n/gm, '')}`);
}

function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;
}
