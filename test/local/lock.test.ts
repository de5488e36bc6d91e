/** One holder a lock, whoever has died, and no signal to a process that only has the pid of another. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { endProcess, identify, identifySelf } from '../../src/local/identity.js';
import { takeLock } from '../../src/local/lock.js';
import { isRunning, temporaryFolder } from './support.js';

test('a lock has one holder, who is named, and is free again after its release', async () => {
  const path = join(temporaryFolder(), 'lock');
  const lock = await takeLock(path);
  if ('heldBy' in lock) throw new Error('held before anybody took it');
  expect(await takeLock(path)).toEqual({ heldBy: await identifySelf() });
  await lock.release();
  expect(await lock.isHeld()).toBe(false);
  expect(await takeLock(path)).not.toHaveProperty('heldBy');
});

test('of many who find the lock of a dead holder exactly one takes it over', async () => {
  const folder = temporaryFolder();
  const path = join(folder, 'lock');
  // Our own pid with another start time: a holder that died, and whose pid was given to us.
  writeFileSync(path, JSON.stringify({ pid: process.pid, started: '1' }));
  // The right to replace it may have been left behind by a crash as well.
  writeFileSync(`${path}.over-${process.pid}-1`, JSON.stringify({ pid: process.pid, started: '2' }));
  const taken = await Promise.all(Array.from({ length: 20 }, () => takeLock(path)));
  expect(taken.filter((lock) => !('heldBy' in lock))).toHaveLength(1);
  expect(readdirSync(folder)).toEqual(['lock']);
});

test('a process is ended when it is the one that was meant, and left alone when it only has its pid', async () => {
  const child = spawn('/bin/sh', ['-c', 'exec sleep 60']);
  onTestFinished(() => void child.kill('SIGKILL'));
  await once(child, 'spawn');
  const identity = await identify(child.pid as number);
  if (!identity) throw new Error('not running');
  await endProcess({ ...identity, started: '1' }, 'SIGKILL', 0);
  expect(isRunning(identity.pid)).toBe(true);
  await endProcess(identity, 'SIGTERM', 5_000);
  expect(isRunning(identity.pid)).toBe(false);
});
