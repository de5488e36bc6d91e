/** Postgres's programs as npm may leave them: without links, without execute bits, out of the server user's reach. */
import { execFileSync } from 'node:child_process';
import { chmodSync, cpSync, lstatSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { serverUser } from '../../src/local/placement.js';
import { postgresPrograms, type ShippedPostgres, shippedPostgres } from '../../src/local/postgres-binaries.js';
import { AS_ROOT, temporaryFolder } from './support.js';

/** A package whose install script was not run, as npm unpacks it: no links, and here no execute bits either. */
async function unfinishedPackage(mode: number): Promise<ShippedPostgres> {
  const { native, version } = await shippedPostgres();
  const copy = join(temporaryFolder(mode), 'native');
  cpSync(native, copy, { recursive: true, verbatimSymlinks: true });
  for (const name of readdirSync(join(copy, 'lib'))) {
    if (lstatSync(join(copy, 'lib', name)).isSymbolicLink()) rmSync(join(copy, 'lib', name));
  }
  for (const name of readdirSync(join(copy, 'bin'))) chmodSync(join(copy, 'bin', name), 0o644);
  return { native: copy, version };
}

function versionBy(programs: string, user: { uid: number; gid: number } | null): string {
  const as = user ? { uid: user.uid, gid: user.gid } : {};
  return execFileSync(join(programs, 'postgres'), ['--version'], { encoding: 'utf8', cwd: '/', ...as });
}

test('an unfinished package that is ours is finished where it is', { timeout: 60_000 }, async () => {
  const shipped = await unfinishedPackage(0o755);
  const user = await serverUser();
  const programs = await postgresPrograms(user, temporaryFolder(), shipped);
  expect(programs).toBe(join(shipped.native, 'bin'));
  expect(versionBy(programs, user)).toContain('PostgreSQL');
});

test.runIf(AS_ROOT)("what the server's user cannot reach is copied, once", { timeout: 60_000 }, async () => {
  const shipped = await unfinishedPackage(0o700);
  const user = await serverUser();
  const home = temporaryFolder();
  const [programs] = await Promise.all([postgresPrograms(user, home, shipped), postgresPrograms(user, home, shipped)]);
  expect(programs).toBe(join(home, `postgres-${shipped.version}`, 'bin'));
  expect(versionBy(programs, user)).toContain('PostgreSQL');
  expect(readdirSync(home)).toEqual([`postgres-${shipped.version}`]);
});
