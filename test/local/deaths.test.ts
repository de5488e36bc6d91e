/** What is left when one of the processes of a stack is killed, and what a terminal's signals reach. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { findRunningStack, startLocalStack } from '../../src/local/stack.js';
import { allPids, isRunning, ownerOf, query, SHARED_CACHE, temporaryFolder, until, untilGone } from './support.js';

const TIMEOUT = 60_000;

test('an owner that is killed takes its servers and its ephemeral folder with it', { timeout: TIMEOUT }, async () => {
  const folder = join(temporaryFolder(), 'demo');
  const { child, said } = await ownerOf({ folder, ephemeral: true, cacheFolder: SHARED_CACHE });
  expect(allPids(said).every(isRunning)).toBe(true);
  child.kill('SIGKILL');
  await untilGone(said);
  expect(existsSync(folder)).toBe(false);
});

test('an owner that is killed while its servers start leaves nothing either', { timeout: TIMEOUT }, async () => {
  const folder = join(temporaryFolder(), 'demo');
  const unsaid = ownerOf({ folder, ephemeral: true, redis: 'none' }).catch((error) => error.message);
  const stateFile = join(folder, 'stack.json');
  // At this moment the data folder is being made.
  await until('initdb runs', () => existsSync(join(folder, 'postgres.new', 'global')));
  const state = JSON.parse(readFileSync(stateFile, 'utf8'));
  process.kill(state.owner.pid, 'SIGKILL');
  expect(await unsaid).toBe('the owner ended without a word');
  await until('the keeper is gone', () => !isRunning(state.keeper.pid));
  expect(existsSync(folder)).toBe(false);
});

test('the next start takes over at once from an owner that was killed', { timeout: TIMEOUT }, async () => {
  const folder = temporaryFolder();
  const { child, said } = await ownerOf({ folder, redis: 'none', owner: { url: 'http://127.0.0.1:1' } });
  await query(said.env, 'CREATE TABLE kept AS SELECT 42 AS n');
  expect((await findRunningStack(folder))?.ownerPid).toBe(child.pid);
  child.kill('SIGKILL');
  await until('the owner is gone', () => !isRunning(child.pid as number));
  expect(await findRunningStack(folder)).toBeNull();
  await using next = await startLocalStack({ folder, redis: 'none' });
  expect(allPids(said).filter(isRunning)).toEqual([]);
  expect(await query(next.env, 'SELECT n FROM kept')).toEqual([{ n: 42 }]);
});

test('an ephemeral folder is used again at once after its owner was killed', { timeout: TIMEOUT }, async () => {
  const folder = join(temporaryFolder(), 'demo');
  const { child, said } = await ownerOf({ folder, ephemeral: true, redis: 'none' });
  child.kill('SIGKILL');
  await until('the owner is gone', () => !isRunning(child.pid as number));
  await using next = await startLocalStack({ folder, ephemeral: true, redis: 'none' });
  expect(allPids(said).filter(isRunning)).toEqual([]);
  expect(await query(next.env, 'SELECT 1 AS n')).toEqual([{ n: 1 }]);
  expect(existsSync(join(folder, 'stack.lock'))).toBe(true);
});

test('servers whose keeper and owner were killed are ended by the next start', { timeout: TIMEOUT }, async () => {
  const folder = temporaryFolder();
  const { child, said } = await ownerOf({ folder, cacheFolder: SHARED_CACHE });
  await query(said.env, 'CREATE TABLE kept AS SELECT 42 AS n');
  process.kill(said.pids.keeper, 'SIGKILL');
  child.kill('SIGKILL');
  await until('keeper and owner are gone', () => ![said.pids.keeper, child.pid as number].some(isRunning));
  expect([said.pids.postgres, said.pids.redis as number].every(isRunning)).toBe(true);

  await using next = await startLocalStack({ folder, cacheFolder: SHARED_CACHE });
  expect(allPids(said).filter(isRunning)).toEqual([]);
  expect(await query(next.env, 'SELECT n FROM kept')).toEqual([{ n: 42 }]);
});

test('closing a stack whose keeper was killed ends its servers all the same', { timeout: TIMEOUT }, async () => {
  const folder = join(temporaryFolder(), 'demo');
  const stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: SHARED_CACHE });
  const pids = allPids(stack);
  process.kill(stack.pids.keeper, 'SIGKILL');
  await until('the keeper is gone', () => !isRunning(stack.pids.keeper));
  await expect(stack.restart('redis')).rejects.toThrow(/keeper process has ended/);
  await stack.close();
  expect(pids.filter(isRunning)).toEqual([]);
  expect(existsSync(folder)).toBe(false);
});

test('Ctrl-C reaches the owner alone, which drains against living servers', { timeout: TIMEOUT }, async () => {
  const folder = temporaryFolder();
  const { child, said, heard } = await ownerOf({ folder, ephemeral: true, cacheFolder: SHARED_CACHE });
  // What a terminal does: a signal to the whole foreground process group.
  process.kill(-(child.pid as number), 'SIGINT');
  await until('the owner has had it', () => heard.includes('"SIGINT"'));
  expect(await query(said.env, 'SELECT 1 AS n')).toEqual([{ n: 1 }]);
  expect(allPids(said).every(isRunning)).toBe(true);
  // And SIGTERM, which ends the owner: now the keeper ends the rest.
  process.kill(-(child.pid as number), 'SIGTERM');
  await untilGone(said);
});
