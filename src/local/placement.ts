/**
 * Who runs Postgres, and where its data can lie. Postgres refuses to run as root, so for root it runs as a user with
 * fewer rights, and that user must be able to reach its binaries and its data: not below `/root`, nor below a
 * folder of mode 700.
 */
import { createHash } from 'node:crypto';
import type { Stats } from 'node:fs';
import { chmod, mkdir, mkdtemp, readFile, realpath, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

/** The user that Postgres runs as. */
export interface ServerUser {
  name: string;
  uid: number;
  gid: number;
}

export interface Placement {
  /** Holds the servers' data. */
  home: string;
  /** Holds a copy of Postgres's binaries where those of the package cannot be used in place. */
  binariesHome: string;
  /** True where the data cannot lie in the folder that was asked for. */
  elsewhere: boolean;
}

/** Data of root's stacks that cannot lie where they were asked for. */
const ROOTS_DATA = '/var/lib/hybrid-cache';

const READ = 4;
const ENTER = 1;

/** `null`: run as ourselves. */
export async function serverUser(): Promise<ServerUser | null> {
  if (process.getuid?.() !== 0) return null;
  const users = (await readFile('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':'));
  const found = ['postgres', 'nobody'].map((name) => users.find((user) => user[0] === name)).find(Boolean);
  if (found) return { name: String(found[0]), uid: Number(found[2]), gid: Number(found[3]) };
  throw new Error(
    'Postgres refuses to run as root, and /etc/passwd has neither "postgres" nor "nobody": run this as another user, ' +
      'or set DATABASE_URL',
  );
}

/** Postgres accepts a data folder from its owner alone: data that another user has made is served as that user. */
export async function userOfData(dataFolder: string, user: ServerUser | null): Promise<ServerUser | null> {
  const stats = user && (await stat(dataFolder).catch(() => null));
  return stats && stats.uid !== 0 ? { name: `uid ${stats.uid}`, uid: stats.uid, gid: stats.gid } : user;
}

/** Decides where a stack's data lies, and makes that folder. */
export async function place(options: {
  folder: string;
  cacheFolder: string;
  ephemeral: boolean;
  user: ServerUser | null;
}): Promise<Placement> {
  const { folder, cacheFolder, ephemeral, user } = options;
  await mkdir(cacheFolder, { recursive: true });
  if (!user || (await canUse(folder, user))) {
    const binariesHome = !user || (await canUse(cacheFolder, user)) ? cacheFolder : folder;
    return { home: folder, binariesHome, elsewhere: false };
  }
  const home = ephemeral ? await temporaryHome(user) : await lastingHome(folder, user);
  return { home, binariesHome: ephemeral ? home : dirname(home), elsewhere: true };
}

/** Whether the user can list this folder and enter it and every folder above it, by owner, group and mode. */
export async function canUse(folder: string, user: ServerUser): Promise<boolean> {
  let path = await realpath(folder).catch(() => null);
  if (path === null || !allows(await stat(path), user, READ | ENTER)) return false;
  while (path !== dirname(path)) {
    path = dirname(path);
    if (!allows(await stat(path), user, ENTER)) return false;
  }
  return true;
}

/** Whether the mode of a file or folder gives the user these rights. Access lists are not looked at. */
export function allows(stats: Stats, user: ServerUser, rights: number): boolean {
  const shift = stats.uid === user.uid ? 6 : stats.gid === user.gid ? 3 : 0;
  return ((stats.mode >> shift) & rights) === rights;
}

async function temporaryHome(user: ServerUser): Promise<string> {
  for (const parent of [tmpdir(), '/tmp', '/var/tmp']) {
    if (!(await canUse(parent, user))) continue;
    const home = await mkdtemp(join(parent, 'hybrid-cache-'));
    await chmod(home, 0o755);
    return home;
  }
  throw new Error(
    `user ${user.name}, which runs Postgres for root, can enter neither ${tmpdir()} nor /tmp nor /var/tmp`,
  );
}

async function lastingHome(folder: string, user: ServerUser): Promise<string> {
  const name = createHash('sha256')
    .update(await realpath(folder))
    .digest('hex')
    .slice(0, 16);
  const home = join(ROOTS_DATA, name);
  await mkdir(home, { recursive: true });
  // Said again because of the umask, which may keep others out.
  await chmod(ROOTS_DATA, 0o755);
  await chmod(home, 0o755);
  if (await canUse(home, user)) return home;
  throw new Error(`user ${user.name}, which runs Postgres for root, can enter neither ${folder} nor ${home}`);
}
