/**
 * The local stack: a private Postgres and, where one can be had, a private Redis on free loopback ports, for a machine
 * that has neither. One folder holds one stack.
 *
 * Three processes deep: we own it, a keeper in a session of its own starts and ends the servers, and the servers know
 * nothing of either. What happens when one of us is killed is told in `keeper.ts` and `state.ts`.
 */
import { rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { findRedisServer } from './find-redis.js';
import { removeFolder } from './folders.js';
import { identify, identifySelf, isAlive } from './identity.js';
import { KeeperLink } from './keeper-link.js';
import { claimFolder, type Lock } from './lock.js';
import { type Placement, place, type ServerUser, serverUser } from './placement.js';
import { createDatabase, postgresData, postgresUrl, preparePostgres } from './postgres.js';
import { postgresPrograms } from './postgres-binaries.js';
import { prepareRedis, redisUrl } from './redis.js';
import { type LocalStack, RunningStack, type StackEnv } from './running-stack.js';
import { loadSecrets, readState, type Secrets } from './state.js';

export { findRedisServer } from './find-redis.js';
export { StackRunningError } from './lock.js';
export type { LocalStack } from './running-stack.js';

type Announce = (line: string) => void;
type RedisAnswer = { url: string; found: LocalStack['redis'] };

const LOGS = ['keeper.log', 'initdb.log', 'postgres.log', 'redis.log'];
const HOW_TO_GET_REDIS = 'install redis-server (apt-get install redis-server), or set REDIS_URL';

export interface StackOptions {
  /** Made when missing; of an ephemeral stack it must be missing or empty. */
  folder: string;
  /** All of the stack, its folder included, is removed when it closes or when this process dies. Default false. */
  ephemeral?: boolean;
  /** Whether data must outlive a crash of the machine. Default: unless it is ephemeral; measuring wants it either way. */
  durable?: boolean;
  /** Where a fetched Redis is kept, for several stacks to share. Default `folder`. */
  cacheFolder?: string;
  /** `none`: neither look for a Redis nor start one. Default `private`. */
  redis?: 'private' | 'none';
  /** Gets lines for the user about what takes time or lies elsewhere than expected. */
  announce?: (line: string) => void;
  /** Variables of the owner's that whoever joins has to have as well. */
  chosen?: Record<string, string>;
  /** What a second start in this folder is told, where it is known already; else see setOwnerAddress. */
  owner?: { url?: string };
}

/**
 * Starts the servers and resolves when both answer. Rejects with StackRunningError when a living process has a stack in
 * that folder. A Redis that cannot be had is no error: `redis.source` is then `none`.
 */
export async function startLocalStack(options: StackOptions): Promise<LocalStack> {
  const folder = resolve(options.folder);
  const lock = await claimFolder(folder, options.ephemeral ?? false);
  // Absolute, since the keeper works in another folder than we do.
  const cacheFolder = resolve(options.cacheFolder ?? folder);
  return openStack({ ...options, folder, cacheFolder }, lock);
}

/** Tells later starts in the same folder, and those who join, where the owner of this stack serves. */
export async function setOwnerAddress(stack: LocalStack, url: string): Promise<void> {
  if (!(stack instanceof RunningStack)) throw new TypeError('setOwnerAddress: not a stack that startLocalStack gave');
  stack.update({ address: url });
}

/**
 * The stack that another process runs in this folder, for a command that joins it. `null` when there is none: not yet
 * ready, its owner dead, or all of its servers dead. A stack with one dead server is still a running one.
 */
export async function findRunningStack(
  folder: string,
): Promise<{ env: StackEnv & Record<string, string>; ownerPid: number; address: string | null } | null> {
  const state = readState(resolve(folder));
  if (!state?.env || !(await isAlive(state.owner))) return null;
  const servers = [state.postgres, state.redis].filter((server) => server !== null);
  const alive = await Promise.all(servers.map(isAlive));
  const { env, chosen, owner, address } = state;
  return alive.includes(true) ? { env: { ...chosen, ...env }, ownerPid: owner.pid, address } : null;
}

/** A step that fails takes everything back. */
async function openStack(options: StackOptions, lock: Lock): Promise<LocalStack> {
  const stack = await startKeeper(options, lock);
  try {
    const announce = options.announce ?? (() => undefined);
    const { user, placement, secrets } = await settle(stack, options, announce);
    // Both to the end, also when one fails: what is still being fetched must not land in a folder that is removed.
    const [postgres, redis] = await Promise.allSettled([
      startPostgres(stack, options, { user, placement, secrets }),
      startRedis(stack, options, { placement, secrets, announce }),
    ]);
    if (postgres.status === 'rejected') throw postgres.reason;
    if (redis.status === 'rejected') throw redis.reason;
    stack.redis = redis.value.found;
    stack.update({ env: { DATABASE_URL: postgres.value, REDIS_URL: redis.value.url } });
    return stack;
  } catch (error) {
    await stack.close();
    throw error;
  }
}

/** The keeper comes first, and is told what to remove, so that from here on our own death leaves nothing behind. */
async function startKeeper(
  { folder, ephemeral, owner, chosen = {}, announce = () => undefined }: StackOptions,
  lock: Lock,
): Promise<RunningStack> {
  let keeper: KeeperLink | undefined;
  try {
    // Logs are of the last run only: a stack that is kept would gather them for ever.
    await Promise.all(LOGS.map((log) => rm(join(folder, log), { force: true })));
    keeper = await KeeperLink.start(folder, join(folder, 'keeper.log'));
    return new RunningStack(
      folder,
      lock,
      keeper,
      {
        owner: await identifySelf(),
        keeper: await identify(keeper.pid),
        postgres: null,
        redis: null,
        dataFolder: postgresData(folder),
        removeAtEnd: ephemeral ? [folder] : [],
        env: null,
        address: owner?.url ?? null,
        chosen,
      },
      announce,
    );
  } catch (error) {
    await keeper?.request({ do: 'stop' }).catch(() => undefined);
    await lock.release();
    if (ephemeral) await removeFolder(folder);
    throw error;
  }
}

interface Settled {
  user: ServerUser | null;
  placement: Placement;
  secrets: Secrets;
}

/** Decides who runs Postgres and where the data lies. */
async function settle(stack: RunningStack, options: StackOptions, announce: Announce): Promise<Settled> {
  const { folder, ephemeral = false, cacheFolder = folder } = options;
  await stack.removeAtEnd(ephemeral ? [folder] : []);
  const user = await serverUser();
  const placement = await place({ folder, cacheFolder, ephemeral, user });
  if (placement.elsewhere) {
    if (ephemeral) await stack.removeAtEnd([placement.home, folder]);
    else
      announce(
        `the data lies in ${placement.home}: user ${user?.name}, which runs Postgres for root, cannot enter ${folder}`,
      );
  }
  const dataFolder = postgresData(placement.home);
  stack.update({ dataFolder });
  return { user, placement, secrets: await loadSecrets(placement.home, dataFolder) };
}

async function startPostgres(stack: RunningStack, options: StackOptions, settled: Settled): Promise<string> {
  const { user, placement, secrets } = settled;
  const server = await preparePostgres(stack.keeper, {
    programs: await postgresPrograms(user, placement.binariesHome),
    user,
    home: placement.home,
    folder: options.folder,
    password: secrets.postgres,
    ephemeral: options.ephemeral ?? false,
    durable: options.durable ?? !options.ephemeral,
  });
  const port = await stack.start(server);
  await createDatabase(port, secrets.postgres);
  return postgresUrl(port, secrets.postgres);
}

async function startRedis(
  stack: RunningStack,
  { folder, cacheFolder = folder, redis = 'private' }: StackOptions,
  { placement, secrets, announce }: { placement: Placement; secrets: Secrets; announce: Announce },
): Promise<RedisAnswer> {
  if (redis === 'none') return { url: 'none', found: { source: 'none', detail: 'No local Redis was asked for.' } };
  const program = await findRedisServer(cacheFolder, announce);
  if (!program) {
    return { url: 'none', found: { source: 'none', detail: `There is no Redis server here: ${HOW_TO_GET_REDIS}.` } };
  }
  const server = await prepareRedis({ program, home: placement.home, folder, password: secrets.redis });
  const port = await stack.start(server);
  const origin = program.source === 'path' ? 'the PATH' : "Debian's packages, unpacked and not installed";
  const detail = `Redis ${program.version} from ${origin} (${program.path}).`;
  return { url: redisUrl(port, secrets.redis), found: { source: program.source, detail } };
}
