#!/usr/bin/env node
/**
 * The command line. The one file of `src/` that knows the workers; nothing imports it. A command loads what it needs when
 * it runs: help is there at once.
 */
import { resolve } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import type { App } from './app.js';
import { addCacheCommands } from './cache-commands.js';
import { type Config, type Env, namesNoServer, readEnv, toConfig } from './config.js';
import { addDoctorCommand } from './doctor-command.js';
import { addEnqueueCommand } from './enqueue.js';
import { ArgumentError, ConfigError, reasonOf } from './errors.js';
import { addFailedCommands } from './failed-commands.js';
import { Closer, onShutdownSignal } from './lifecycle.js';
import { causeOf, createLogger } from './logger.js';
import { examples, print } from './output.js';
import { packageVersion } from './package.js';
import { QUEUE_NAMES, type QueueName } from './queues/contract.js';

const LOCAL = resolve('.local');
/** The exit code for arguments that are wrong. */
const MISUSE = 2;
const load = {
  app: () => import('./app.js'),
  demo: () => import('./demo/demo.js'),
  migrate: () => import('./db/migrate.js'),
  stack: () => import('./local/stack.js'),
  workers: () => import('../workers/main.js'),
};
const say = (line: string) => process.stderr.write(`${line}\n`);

// Whoever reads has seen enough, as `head` has: the command goes on to its end, and says no more.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
}

const program = new Command('hybrid-cache')
  .description('Crawls images, finds faces, and remembers every fact in one hybrid Redis + PostgreSQL cache.')
  .version(packageVersion())
  // A command that was not understood is told from one that failed by its exit code; subcommands inherit both settings.
  .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : MISUSE))
  .showHelpAfterError();

program
  .command('start')
  .description('serve the API and run all workers; brings its own servers where none is configured')
  .action(() => service({ workers: QUEUE_NAMES, api: true, bringServers: true }));

program
  .command('serve')
  .description('serve the API alone')
  .action(() => service({ workers: [], api: true, bringServers: false }));

program
  .command('worker')
  .description('run workers alone, with metrics and health on METRICS_PORT')
  .argument('[queues...]', `of ${QUEUE_NAMES.join(', ')}; all where none is named`)
  .addHelpText('after', examples('hybrid-cache worker', 'hybrid-cache worker crawl'))
  .action((queues: string[]) => service({ workers: queueNames(queues), api: false, bringServers: false }));

program
  .command('migrate')
  .description('bring the database up to date; safe to run at any time, also by several at once')
  .option('--rename-python-tables', 'move what the Python service left under our names aside, to python_<name>')
  .option('--json', 'print JSON')
  .action(async ({ renamePythonTables = false, json }: { renamePythonTables?: boolean; json?: boolean }) => {
    const config = await configured();
    const { migrate } = await load.migrate();
    const queueOnPostgres = config.queue.backend === 'postgres';
    const renamed = await migrate(config.postgres, { queueOnPostgres, renamePythonTables });
    if (json) return print(json, { upToDate: true, renamed }, '');
    for (const one of renamed) say(`Renamed ${one}.`);
    say('The database is up to date.');
  });

// Standard output is for what was asked for.
const logger = createLogger('warn', process.stderr);
const open = async () => disposable((await load.app()).connect(await configured(), { logger }));
addEnqueueCommand(program, open);
addCacheCommands(program, open);
addFailedCommands(program, open);
addDoctorCommand(program, configured);

program
  .command('demo')
  .description('the whole story on this machine, with real photographs, leaving nothing behind')
  .option('--keep', 'leave the service up until Ctrl-C')
  .addHelpText('after', examples('hybrid-cache demo --keep'))
  .option('--json', 'print the figures as JSON')
  .action(async ({ keep = false, json = false }: { keep?: boolean; json?: boolean }) => {
    const { demo } = await load.demo();
    const stop = new AbortController();
    let interrupted = false;
    const story = demo({ keep, json, env: readEnv(), run: runAll, signal: stop.signal });
    onShutdownSignal(async () => {
      interrupted = !keep;
      stop.abort();
      await story;
      return interrupted ? 130 : 0;
    });
    await story;
  });

program.parseAsync().then(
  () => process.exit(),
  (error: unknown) => {
    say(error instanceof ConfigError ? error.message : `hybrid-cache: ${reasonOf(error)}${outageOf(error)}`);
    process.exit(error instanceof InvalidArgumentError || error instanceof ArgumentError ? MISUSE : 1);
  },
);

/** What a server that is away says itself, and who says more: an operator may have configured the wrong one. */
function outageOf(error: unknown): string {
  const isOutage = error instanceof Error && ['QueueUnavailableError', 'TierUnavailableError'].includes(error.name);
  if (!isOutage) return '';
  const { cause } = causeOf(error);
  return `${cause === undefined ? '' : ` (${cause})`}; \`hybrid-cache doctor\` says what is wrong`;
}

async function runAll(app: App) {
  const { run } = await load.workers();
  return run(app, { workers: QUEUE_NAMES, api: true });
}

interface ServiceOptions {
  readonly workers: readonly QueueName[];
  readonly api: boolean;
  readonly bringServers: boolean;
}

/** Runs until a signal; then drains, and ends its own servers last. */
async function service({ workers, api, bringServers }: ServiceOptions): Promise<never> {
  const closer = new Closer();
  let running: { readonly address: string } | undefined;
  onShutdownSignal(() => closer.close().then(() => 0));
  try {
    const brings = bringServers && namesNoServer(readEnv());
    // Whatever else is wrong is said before servers are started for nothing.
    if (brings) toConfig({ ...readEnv(), DATABASE_URL: 'postgres://to-come', REDIS_URL: 'redis://to-come' });
    const [{ connect }, { run }, { migrate }] = await Promise.all([load.app(), load.workers(), load.migrate()]);
    const own = brings ? await ownServers(closer) : null;
    const config = own ? toConfig(own.env) : await configured();
    if (own) await migrate(config.postgres, { queueOnPostgres: config.queue.backend === 'postgres' });
    else await refuseUnmigrated(config);
    // The service closes it, within its time; where there is none, its clients still close before our servers.
    const app = closer.add('app', connect(config), (one) => (running ? undefined : one.close()));
    // Told to stop before it is up, it drains once it is: by then it may have taken jobs.
    const starting = run(app, { workers, api });
    closer.add('service', starting, (one) =>
      one.then(
        (up) => up.stop(),
        () => undefined,
      ),
    );
    running = await starting;
    if (own) await (await load.stack()).setOwnerAddress(own.stack, running.address);
    return await new Promise<never>(() => undefined);
  } catch (error) {
    await closer.close();
    throw error;
  }
}

/** Where jobs and objects lie: who joins from another terminal has to look in the same places. */
const CHOSEN = ['QUEUE_BACKEND', 'STORAGE_URL'];

async function ownServers(closer: Closer) {
  const { startLocalStack } = await load.stack();
  const env = withLocalStore({});
  const chosen = Object.fromEntries(CHOSEN.map((name) => [name, env[name] ?? '']));
  const options = { folder: LOCAL, announce: say, chosen };
  const stack = closer.add('local stack', await startLocalStack(options), (one) => one.close());
  say(stack.redis.detail);
  return { stack, env: withLocalStore({ ...stack.env }) };
}

/** The configured servers, or those of the stack that `start` runs in this folder. */
async function configured(): Promise<Config> {
  if (!namesNoServer(readEnv())) return toConfig(readEnv());
  const { findRunningStack } = await load.stack();
  const stack = await findRunningStack(LOCAL);
  if (stack) return toConfig(withLocalStore({ ...stack.env }));
  throw new ConfigError([
    'no server is configured, and none runs in this folder: set DATABASE_URL and REDIS_URL (see .env.example), or run `npm start` here first',
  ]);
}

function withLocalStore(servers: Env): Env {
  const env = readEnv();
  return { ...env, STORAGE_URL: env.STORAGE_URL || `file:${resolve(LOCAL, 'objects')}`, ...servers };
}

/** A database that cannot be asked may come up later; one that was never migrated does not get better by waiting. */
async function refuseUnmigrated(config: Config): Promise<void> {
  const { isMigrated } = await load.migrate();
  const migrated = await isMigrated(config.postgres, { queueOnPostgres: config.queue.backend === 'postgres' }).catch(
    () => true,
  );
  if (!migrated)
    throw new Error('the database is not up to date: run `npm run db:migrate` (hybrid-cache migrate) first');
}

function queueNames(given: readonly string[]): QueueName[] {
  const names = QUEUE_NAMES.filter((name) => given.length === 0 || given.includes(name));
  const unknown = given.find((name) => !QUEUE_NAMES.some((known) => known === name));
  if (unknown !== undefined)
    throw new InvalidArgumentError(`unknown queue ${unknown}: name ${QUEUE_NAMES.join(' or ')}`);
  return names;
}

function disposable(app: App): App & AsyncDisposable {
  return { ...app, [Symbol.asyncDispose]: () => app.close() };
}
