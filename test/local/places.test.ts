/** Where a stack can live and what it is made of: as root, as another user, with and without a Redis at hand. */
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { canUse } from '../../src/local/placement.js';
import { findRedisServer, startLocalStack } from '../../src/local/stack.js';
import {
  AS_ROOT,
  allPids,
  isRunning,
  ownerOf,
  query,
  redisDo,
  SHARED_CACHE,
  temporaryFolder,
  untilGone,
} from './support.js';

const TIMEOUT = 120_000;
const NOBODY = { name: 'nobody', uid: 65534, gid: 65534 };
/** Another user needs to read this checkout to run a program out of it. */
const NOBODY_CAN_RUN = AS_ROOT && (await canUse(import.meta.dirname, NOBODY));

function uidOf(pid: number): number {
  return Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}

function strayHomes(): string[] {
  return readdirSync(tmpdir()).filter((name) => name.startsWith('hybrid-cache-'));
}

test.runIf(AS_ROOT)('for root, Postgres runs as a user with fewer rights', { timeout: TIMEOUT }, async () => {
  await using stack = await startLocalStack({ folder: temporaryFolder(), ephemeral: true, redis: 'none' });
  expect(uidOf(stack.pids.postgres)).not.toBe(0);
});

test.runIf(AS_ROOT)(
  'for root, below a folder of mode 700, the data goes elsewhere and is removed',
  { timeout: TIMEOUT },
  async () => {
    const before = strayHomes();
    const closed = temporaryFolder(0o700);
    const stack = await startLocalStack({
      folder: join(closed, 'demo'),
      ephemeral: true,
      cacheFolder: join(closed, 'cache'),
    });
    expect(uidOf(stack.pids.postgres)).not.toBe(0);
    expect(await query(stack.env, 'SELECT 1 AS n')).toEqual([{ n: 1 }]);
    await stack.close();
    expect(strayHomes()).toEqual(before);

    const { child, said } = await ownerOf({ folder: join(closed, 'demo'), ephemeral: true, redis: 'none' });
    expect(strayHomes().length).toBe(before.length + 1);
    child.kill('SIGKILL');
    await untilGone(said);
    expect(strayHomes()).toEqual(before);
  },
);

test.runIf(AS_ROOT)(
  'for root, below a folder of mode 700, kept data is found again',
  { timeout: TIMEOUT },
  async () => {
    const folder = join(temporaryFolder(0o700), 'kept');
    const lines: string[] = [];
    const options = { folder, redis: 'none', announce: (line: string) => lines.push(line) } as const;
    const first = await startLocalStack(options);
    const data = /lies in (\S+):/.exec(lines.join())?.[1] ?? '';
    try {
      await query(first.env, 'CREATE TABLE kept AS SELECT 42 AS n');
      await first.close();
      await using second = await startLocalStack(options);
      expect(await query(second.env, 'SELECT n FROM kept')).toEqual([{ n: 42 }]);
      expect(statSync(join(data, 'secrets.json')).mode & 0o077).toBe(0);
    } finally {
      await first.close();
      expect(dirname(data)).toBe('/var/lib/hybrid-cache');
      rmSync(data, { recursive: true });
    }
  },
);

test.runIf(NOBODY_CAN_RUN)(
  'another user than root runs and fetches everything as itself',
  { timeout: TIMEOUT },
  async () => {
    const folder = temporaryFolder();
    chownSync(folder, NOBODY.uid, NOBODY.gid);
    const { uid, gid } = NOBODY;
    const { child, said } = await ownerOf({ folder: join(folder, 'demo'), ephemeral: true }, { uid, gid });
    expect(said.message).toBeUndefined();
    expect(allPids(said).map(uidOf)).toEqual([uid, uid, uid]);
    expect(await query(said.env, 'SELECT 1 AS n')).toEqual([{ n: 1 }]);
    expect(await redisDo(said.env, (redis) => redis.ping())).toBe('PONG');
    child.kill('SIGKILL');
    await untilGone(said);
    expect(existsSync(join(folder, 'demo'))).toBe(false);
  },
);

test.runIf(NOBODY_CAN_RUN)(
  'a folder that is not ours to write is refused with its name',
  { timeout: TIMEOUT },
  async () => {
    const { uid, gid } = NOBODY;
    const folder = join(temporaryFolder(), 'demo');
    const { said } = await ownerOf({ folder, ephemeral: true }, { uid, gid });
    expect(said.message).toContain(`cannot keep a local stack in ${folder}`);
  },
);

test('a Redis on the PATH is preferred, and a broken one passed over', { timeout: TIMEOUT }, async () => {
  const found = await findRedisServer(SHARED_CACHE, () => undefined);
  if (!found) throw new Error('no Redis can be had here: apt-get install redis-server');
  const folder = temporaryFolder();
  const bin = join(folder, 'bin');
  mkdirSync(bin);
  writeFileSync(join(bin, 'redis-server'), '#!/bin/sh\nexit 127\n');
  writeFileSync(
    join(bin, 'valkey-server'),
    `#!/bin/sh\nLD_LIBRARY_PATH='${found.libraryPath ?? ''}' exec '${found.path}' "$@"\n`,
  );
  for (const name of readdirSync(bin)) chmodSync(join(bin, name), 0o755);
  const { said } = await ownerOf({ folder: join(folder, 'demo'), ephemeral: true }, { env: { PATH: bin } });
  expect(said.redis.source).toBe('path');
  expect(said.redis.detail).toContain(join(bin, 'valkey-server'));
  expect(await redisDo(said.env, (redis) => redis.ping())).toBe('PONG');
});

test('where no Redis can be had the stack starts without one and says what to do', { timeout: TIMEOUT }, async () => {
  const folder = join(temporaryFolder(), 'demo');
  const { said } = await ownerOf({ folder, ephemeral: true }, { env: { PATH: '/nowhere' } });
  expect(said.env.REDIS_URL).toBe('none');
  expect(said.pids.redis).toBeNull();
  expect(said.redis.source).toBe('none');
  expect(said.redis.detail).toContain('apt-get install redis-server');
  expect(isRunning(said.pids.postgres)).toBe(true);
});
