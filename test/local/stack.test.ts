/** One stack, from its start to its closing, on real servers. */
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { findRunningStack, StackRunningError, setOwnerAddress, startLocalStack } from '../../src/local/stack.js';
import { until } from '../support/until.js';
import { allPids, isRunning, query, redisDo, SHARED_CACHE, temporaryFolder } from './support.js';

const TIMEOUT = 60_000;

test('an ephemeral stack answers, and closing it leaves no process and no folder', { timeout: TIMEOUT }, async () => {
  const folder = join(temporaryFolder(), 'demo-1');
  const stack = await startLocalStack({ folder, ephemeral: true, cacheFolder: SHARED_CACHE });
  const [row] = await query<{ db: string; who: string; encoding: string }>(
    stack.env,
    "SELECT current_database() AS db, current_user AS who, current_setting('server_encoding') AS encoding",
  );
  expect(row).toEqual({ db: 'mordeaux', who: 'mordeaux', encoding: 'UTF8' });
  const settings = await redisDo(stack.env, async (redis) => [
    await redis.config('GET', 'maxmemory-policy'),
    await redis.config('GET', 'appendonly'),
  ]);
  expect(settings.flat()).toEqual(['maxmemory-policy', 'noeviction', 'appendonly', 'yes']);
  expect(stack.redis.source).not.toBe('none');
  expect(allPids(stack).every(isRunning)).toBe(true);

  await Promise.all([stack.close(), stack.close()]);
  expect(allPids(stack).filter(isRunning)).toEqual([]);
  expect(existsSync(folder)).toBe(false);
});

test('passwords are asked for, and are in no argument of a process', { timeout: TIMEOUT }, async () => {
  await using stack = await startLocalStack({ folder: temporaryFolder(), ephemeral: true, cacheFolder: SHARED_CACHE });
  const { DATABASE_URL, REDIS_URL } = stack.env;
  const wrong = { DATABASE_URL: DATABASE_URL.replace(/:[0-9a-f]{48}@/, ':wrong@'), REDIS_URL };
  await expect(query(wrong, 'SELECT 1')).rejects.toThrow(/password/);
  const open = REDIS_URL.replace(/:[0-9a-f]{48}@/, '');
  await expect(redisDo({ DATABASE_URL, REDIS_URL: open }, (redis) => redis.get('key'))).rejects.toThrow(/NOAUTH/);
  for (const pid of allPids(stack)) {
    const shown = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    for (const url of [DATABASE_URL, REDIS_URL]) expect(shown).not.toContain(new URL(url).password);
  }
});

test('a stack that is kept has its data again after a restart, in files for its owner only', {
  timeout: TIMEOUT,
}, async () => {
  const folder = temporaryFolder();
  {
    await using first = await startLocalStack({ folder, cacheFolder: SHARED_CACHE });
    await query(first.env, 'CREATE TABLE kept AS SELECT 42 AS n');
    await redisDo(first.env, (redis) => redis.set('kept', '42'));
    for (const file of ['stack.json', 'secrets.json']) expect(statSync(join(folder, file)).mode & 0o077).toBe(0);
  }
  expect(readdirSync(folder)).not.toContain('stack.json');
  await using second = await startLocalStack({ folder, cacheFolder: SHARED_CACHE });
  expect(await query(second.env, 'SELECT n FROM kept')).toEqual([{ n: 42 }]);
  expect(await redisDo(second.env, (redis) => redis.get('kept'))).toBe('42');
});

test('a second start is refused with the address of the first, and another command joins it', {
  timeout: TIMEOUT,
}, async () => {
  const folder = temporaryFolder();
  expect(await findRunningStack(folder)).toBeNull();
  const chosen = { QUEUE_BACKEND: 'postgres' };
  const stack = await startLocalStack({ folder, redis: 'none', chosen });
  expect((await findRunningStack(folder))?.address).toBeNull();
  await setOwnerAddress(stack, 'http://127.0.0.1:3000');

  const refusal = await startLocalStack({ folder, redis: 'none' }).catch((error) => error);
  expect(refusal).toBeInstanceOf(StackRunningError);
  expect(refusal.address).toBe('http://127.0.0.1:3000');
  expect(refusal.message).toContain('http://127.0.0.1:3000');
  const joined = await findRunningStack(folder);
  expect(joined).toEqual({ env: { ...stack.env, ...chosen }, ownerPid: process.pid, address: 'http://127.0.0.1:3000' });
  expect(stack.env.REDIS_URL).toBe('none');

  await stack.close();
  expect(await findRunningStack(folder)).toBeNull();
});

test('a server that ends by itself is told of, and not one that is restarted or ended with the stack', {
  timeout: TIMEOUT,
}, async () => {
  const said: string[] = [];
  const announce = (line: string) => void said.push(line);
  const stack = await startLocalStack({ folder: temporaryFolder(), redis: 'none', ephemeral: true, announce });
  said.splice(0);
  await stack.restart('postgres');
  expect(said).toEqual([]);
  await stack.kill('postgres', 'SIGKILL');
  await until('it to be told', () => said.length > 0);
  await stack.restart('postgres');
  await stack.close();
  expect(said).toEqual(['The local postgres has ended: stop this command and start it again to have it back.']);
});

test('of many starts at once in one folder exactly one wins', { timeout: TIMEOUT }, async () => {
  const folder = temporaryFolder();
  const starts = Array.from({ length: 8 }, () => startLocalStack({ folder, redis: 'none', ephemeral: true }));
  const ended = await Promise.allSettled(starts);
  const stacks = ended.flatMap((start) => (start.status === 'fulfilled' ? [start.value] : []));
  await Promise.all(stacks.map((stack) => stack.close()));
  const refusals = ended.flatMap((start) => (start.status === 'rejected' ? [start.reason] : []));
  expect(stacks).toHaveLength(1);
  expect(refusals.map((error) => error.name)).toEqual(Array(7).fill('StackRunningError'));
  expect(refusals[0].message).toContain(`is being started (process ${process.pid})`);
});

test('an ephemeral stack does not take a folder that holds something', { timeout: TIMEOUT }, async () => {
  const folder = temporaryFolder();
  writeFileSync(join(folder, 'thesis.txt'), 'do not remove');
  await expect(startLocalStack({ folder, ephemeral: true })).rejects.toThrow(/holds thesis\.txt/);
  expect(readdirSync(folder)).toEqual(['thesis.txt']);
});

test('killed servers stay dead until they are restarted, on the same port with their data', {
  timeout: TIMEOUT,
}, async () => {
  await using stack = await startLocalStack({ folder: temporaryFolder(), ephemeral: true, cacheFolder: SHARED_CACHE });
  const { env, pids } = stack;
  await query(env, 'CREATE TABLE kept AS SELECT 42 AS n');
  await redisDo(env, (redis) => redis.set('kept', '42'));

  await Promise.all([stack.kill('redis', 'SIGKILL'), stack.kill('postgres', 'SIGKILL')]);
  expect([pids.redis as number, pids.postgres].filter(isRunning)).toEqual([]);
  await expect(query(env, 'SELECT 1')).rejects.toThrow(/ECONNREFUSED/);
  await expect(stack.kill('redis', 'SIGTERM')).rejects.toThrow('redis is not running');
  await Promise.all([stack.restart('redis'), stack.restart('postgres')]);

  expect(stack.env).toEqual(env);
  expect(stack.pids.redis).not.toBe(pids.redis);
  expect(await query(env, 'SELECT n FROM kept')).toEqual([{ n: 42 }]);
  expect(await redisDo(env, (redis) => redis.get('kept'))).toBe('42');
});

test('frozen servers thaw, and do not hold up the closing', { timeout: TIMEOUT }, async () => {
  const stack = await startLocalStack({ folder: temporaryFolder(), ephemeral: true, cacheFolder: SHARED_CACHE });
  await stack.kill('postgres', 'SIGSTOP');
  await stack.kill('postgres', 'SIGCONT');
  expect(await query(stack.env, 'SELECT 1 AS n')).toEqual([{ n: 1 }]);
  await Promise.all([stack.kill('postgres', 'SIGSTOP'), stack.kill('redis', 'SIGSTOP')]);
  await stack.close();
  expect(allPids(stack).filter(isRunning)).toEqual([]);
});

test('a server that does not start is quoted, and what was started is taken back', { timeout: TIMEOUT }, async () => {
  const folder = temporaryFolder();
  const first = await startLocalStack({ folder, redis: 'none' });
  await first.close();
  writeFileSync(join(folder, 'postgres', 'PG_VERSION'), '9\n');
  await expect(startLocalStack({ folder, redis: 'none' })).rejects.toThrow(/initialized by PostgreSQL version 9/);
  expect(readdirSync(folder)).not.toContain('stack.lock');
  writeFileSync(join(folder, 'postgres', 'PG_VERSION'), '18\n');
  await using again = await startLocalStack({ folder, redis: 'none' });
  expect(await query(again.env, 'SELECT 1 AS n')).toEqual([{ n: 1 }]);
});
