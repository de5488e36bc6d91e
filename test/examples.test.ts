/** The five examples of the Python service, as a user runs them, against real servers. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createWorld, type World } from './support/world.js';

const run = promisify(execFile);

let world: World;
let said: string;

beforeAll(async () => {
  world = await createWorld();
  const env = { PATH: process.env.PATH, DATABASE_URL: world.databaseUrl, REDIS_URL: world.redisUrl };
  const { stdout } = await run(process.execPath, ['dist/examples/main.js'], { env });
  said = stdout;
});

afterAll(() => world[Symbol.asyncDispose]());

/** What the example of this name printed. */
function output(name: string): string[] {
  const [, after = ''] = said.split(`== examples/${name}.ts\n`);
  return (after.split('\n== ')[0] ?? '').trim().split('\n');
}

test('embeddings are stored, found again, and "no faces" is an answer [M51, M20, M21]', () => {
  expect(output('face-embeddings')).toEqual([
    'before: null',
    'stored: true',
    'found: 1 face of 512 numbers',
    'no faces: []',
  ]);
});

test('a perceptual hash is found by its image, and its near-duplicates by likeness [M51, M22, M9]', () => {
  expect(output('perceptual-hash')).toEqual([
    'hash: c3a1f0e49b5d2678',
    'near-duplicates: c3a1f0e49b5d2678 at distance 0, c3a1f0e49b5d267b at distance 2',
  ]);
});

test('a crawl skips by URL and by content [M51, M24, M25]', () => {
  const skipped = (reason: string) => `{ shouldSkip: true, rawKey: 'raw/photo.jpg', reason: '${reason}' }`;
  expect(output('crawl-duplicates')).toEqual([
    'new URL: { shouldSkip: false, rawKey: null, reason: null }',
    'stored: true',
    `same URL: ${skipped('url')}`,
    `same bytes: ${skipped('content')}`,
    `the copy from now on: ${skipped('url')}`,
  ]);
});

test('statistics tell what both tiers hold [M51, M27]', () => {
  expect(output('statistics')).toEqual([
    'enabled: { redis: true, postgres: true }',
    expect.stringMatching(/^Redis: \d.* used, \d+ clients$/),
    'PostgreSQL: 2 images with known faces',
    'this process: 1 look-ups, 100 % of them hits',
  ]);
});

test('tenants do not see each other, and one is forgotten alone [M51, M26]', () => {
  expect(output('tenants')).toEqual([
    'a: 0123456789abcdef',
    'b: fedcba9876543210',
    'forgotten of a: 1',
    'a: null',
    'b: fedcba9876543210',
  ]);
});
