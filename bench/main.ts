/** `npm run bench`: ours beside the raw clients and the peers, in turns, on servers of its own; `--json` for a machine. */
import { randomBytes } from 'node:crypto';
import { resolve } from 'node:path';
import { performance } from 'node:perf_hooks';
import { toConfig } from '../src/config.js';
import { migrate } from '../src/db/migrate.js';
import { startLocalStack } from '../src/local/stack.js';
import type { Row } from './compare.js';
import { crowdRows } from './crowd.js';
import { fairnessRows } from './fairness.js';
import { hitRows, memoryRows } from './hits.js';
import { imageRows } from './images.js';
import { invalidationRows } from './invalidation.js';
import { nearDuplicateRows } from './near-duplicates.js';
import { outageRows } from './outage.js';
import { permanentRows } from './permanent.js';
import { createRawTables } from './raw.js';
import { sizesOf, sizingRows } from './sizing.js';
import { tableOf } from './table.js';
import { openWorld, remember } from './world.js';
import { writeRows } from './writes.js';

const local = resolve('.local');
const folder = `${local}/bench-${randomBytes(4).toString('hex')}`;
await using stack = await startLocalStack({ folder, ephemeral: true, durable: true, cacheFolder: local });
if (stack.redis.source === 'none') throw new Error(`The bench needs a Redis server. ${stack.redis.detail}`);
const config = toConfig({ ...stack.env });
await migrate(config.postgres, { queueOnPostgres: false });

// Words after the command choose subjects: `npm run bench -- hits writes --json`.
const chosen = process.argv.slice(2).filter((word) => !word.startsWith('--'));
/** What takes many minutes runs only when it is chosen. */
const ON_REQUEST = ['near-duplicates', 'fairness', 'sizing'];
const rows = await measured();
process.stdout.write(process.argv.includes('--json') ? `${JSON.stringify(rows, null, 2)}\n` : tableOf(rows));

async function measured(): Promise<Row[]> {
  await using world = openWorld(config, stack.env);
  // A rewrite of the log starts a second process on its own, in the middle of somebody's slice.
  await world.raw.redis.config('SET', 'auto-aof-rewrite-percentage', '0');
  await createRawTables(world.raw);
  await remember(world);
  const subjects: [string, () => Promise<Row[]>][] = [
    ['hits', () => hitRows(world)],
    ['permanent', () => permanentRows(world)],
    ['writes', () => writeRows(world, stack.env)],
    ['memory', () => memoryRows(world)],
    ['invalidation', () => invalidationRows(world, stack.env)],
    ['outage', () => outageRows(world, stack)],
    ['images', () => imageRows(config.embedding.threads)],
    ['crowd', () => crowdRows(world.app, stack.env, `${folder}/objects`)],
    ['near-duplicates', () => nearDuplicateRows(world, stack.env)],
    ['fairness', () => fairnessRows(stack.env)],
    ['sizing', () => sizingRows(stack, folder, sizesOf(process.argv))],
  ];
  const unknown = chosen.filter((word) => !subjects.some(([subject]) => subject === word));
  if (unknown.length > 0)
    throw new Error(`${unknown.join(', ')}: expected ${subjects.map(([name]) => name).join(', ')}`);
  const rows: Row[] = [];
  for (const [subject, measure] of subjects) {
    if (chosen.length > 0 ? !chosen.includes(subject) : ON_REQUEST.includes(subject)) continue;
    const started = performance.now();
    try {
      rows.push(...(await measure()));
      process.stderr.write(`${subject}: ${Math.round((performance.now() - started) / 1000)} s\n`);
    } catch (error) {
      // What the others measured is told all the same.
      process.stderr.write(`${subject}: ${error instanceof Error ? error.stack : error}\n`);
      process.exitCode = 1;
    }
  }
  return rows;
}
