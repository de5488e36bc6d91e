/** What README.md tells its reader to run, is run; what it shows, is true. A new command or snippet has to be added here. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { Queue } from 'bullmq';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { parse } from 'yaml';
import { toConfig, VARIABLE_NAMES } from '../src/config.js';
import * as library from '../src/index.js';
import { interruptAt, type Running, runCommand, startCommand, startWithNpm } from './support/command.js';
import { samplePhoto } from './support/images.js';
import { type OwnStack, startOwnStack } from './support/own-stack.js';
import { Site } from './support/site.js';
import { until } from './support/until.js';

const run = promisify(execFile);
const MINUTES = 60_000;

const readme = readFileSync('README.md', 'utf8');
const { scripts } = JSON.parse(readFileSync('package.json', 'utf8')) as { scripts: Record<string, string> };
const ajv = new Ajv2020({ strict: false, allErrors: true });

/** Indented blocks, without their indentation. */
const blocks = [...readme.matchAll(/\n\n((?: {4}.*\n|\n(?= {4}))+)/g)].map(([, block = '']) =>
  block.replace(/^ {4}/gm, '').trim(),
);
/** What stands between backticks outside of the blocks. */
const spans = [...readme.replace(/^ {4}.*$/gm, '').matchAll(/`([^`\n]+)`/g)].map(([, span = '']) => span);

/** The one block that begins like this. */
function block(beginning: string): string {
  const found = blocks.filter((one) => one.startsWith(beginning));
  expect(found, beginning).toHaveLength(1);
  return found[0] ?? '';
}

/** What a script of package.json has the command line do, its build left out: others read what it would build anew. */
function commandOf(command: string): string[] {
  const [, name = ''] = /^npm (?:run )?([\w:]+)$/.exec(command) ?? [];
  const [, args = ''] =
    /^(?:exec |npm run build --silent && )?node dist\/src\/cli\.js (.*)$/.exec(scripts[name] ?? '') ?? [];
  expect(args, command).not.toBe('');
  return args.split(' ');
}

let stack: OwnStack;
let folder: string;
let env: Record<string, string>;
let service: Running;
let address: string;

beforeAll(async () => {
  stack = await startOwnStack();
  folder = await mkdtemp(join(tmpdir(), 'hc-readme-'));
  env = {
    ...stack.servers.env,
    STORAGE_URL: `file:${folder}/objects`,
    PORT: '0',
    METRICS_PORT: '0',
    FETCH_ALLOW: '127.0.0.1/32:*',
    FETCH_DENY: 'example.com',
  };
  for (const command of block('npm run db:migrate').split('\n').slice(0, -1)) {
    expect(await runCommand(commandOf(command), env)).toMatchObject({ code: 0 });
  }
  service = startCommand(commandOf('npm start'), env, null);
  address = await addressOf(service);
}, 2 * MINUTES);

afterAll(async () => {
  await service?.[Symbol.asyncDispose]();
  await stack?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

function addressOf(running: Running): Promise<string> {
  return until('the service to be up', () => /"address":"([^"]+)"/.exec(running.out())?.[1], 2 * MINUTES);
}

/** Ends as an operator ends it: with 0. */
async function stopped(running: Running): Promise<void> {
  running.process.kill('SIGTERM');
  expect(await running.ended).toMatchObject({ code: 0 });
}

describe('every block is one of these:', () => {
  const KNOWN = [
    'npm ci && npm run demo\n',
    'npm ci\nnpm start\n',
    'import { readFile }',
    'npm start',
    'npm run db:migrate\nnpm start',
    'curl ',
    'npx hybrid-cache enqueue',
    '{ "v": 1',
    '{ "outcome"',
  ];

  test('nothing else, and nothing is missing', () => {
    const matches = (one: string) =>
      KNOWN.filter((known) => (known === 'npm start' ? one === known : one.startsWith(known)));
    expect(blocks.filter((one) => matches(one).length !== 1)).toEqual([]);
    expect(blocks).toHaveLength(KNOWN.length);
  });

  test('the two commands of a fresh machine, which CI reads here and runs', async () => {
    const commands = block('npm ci && npm run demo').split('\n');
    expect(commands).toEqual(['npm ci && npm run demo', 'npm ci && npm test']);
    const [, reading = ''] = /mapfile -t commands < <\((.*)\)/.exec(readFileSync('.ci/run', 'utf8')) ?? [];
    const { stdout } = await run('bash', ['-c', reading]);
    expect(stdout.trim().split('\n')).toEqual(commands);
  });

  test('the library, used', async () => {
    // Inside of the checkout the package is found by its own name.
    const inside = await mkdtemp(join(resolve('.local'), 'readme-'));
    onTestFinished(() => rm(inside, { recursive: true }));
    await writeFile(join(inside, 'portrait.jpg'), await samplePhoto(1));
    const seen = '\nconsole.log(JSON.stringify({ faces, shouldSkip, rawKey }));\n';
    await writeFile(join(inside, 'program.mjs'), block('import { readFile }') + seen);
    const { stdout } = await run(process.execPath, ['program.mjs'], { cwd: inside, env: { ...env } });
    expect(JSON.parse(stdout)).toEqual({
      faces: [{ bbox: [10, 20, 110, 150], embedding: [0.12, -0.7, 0.33], det_score: 0.99 }],
      shouldSkip: false,
      rawKey: null,
    });
  });

  test(
    'one’s own images, with the servers that the service brings: from their URLs to page, dashboard, metric and explanation',
    async () => {
      const [install, start = '', enqueue = '', explain = '', metric = ''] = block('npm ci\nnpm start').split('\n');
      expect([install, start]).toEqual(['npm ci', block('npm start')]);
      const bare = await mkdtemp(join(tmpdir(), 'hc-readme-bare-'));
      await mkdir(join(bare, '.local'));
      await symlink(resolve('.local/redis-server'), join(bare, '.local/redis-server')).catch(() => undefined);
      await using site = await new Site().listen();
      const url = site.put('/portrait.jpg', { body: await samplePhoto(1) });
      await writeFile(join(bare, 'urls.txt'), `${url}\n`);
      // The site is on this machine.
      await using running = startCommand(commandOf(start), { PORT: '0', FETCH_ALLOW: '127.0.0.1/32:*' }, null, bare);
      const own = await addressOf(running);
      const printed = async (command: string) => {
        const words = command.replace('https://example.com/portrait.jpg', url).split(' ');
        expect(words.slice(0, 2)).toEqual(['npx', 'hybrid-cache']);
        return (await startCommand(words.slice(2), {}, '', bare).ended).out;
      };
      expect(await printed(enqueue)).toMatch(/\nstored +1\n$/);
      expect(await printed(explain)).toMatch(/^wouldSkip +true$/m);
      const [, section = ''] = /\n## Your own images[^]*?\n([^]*?)\n## /.exec(readme) ?? [];
      const paths = [...section.matchAll(/http:\/\/127\.0\.0\.1:3000(\/\w*)/g)].map(([, path = '']) => path);
      expect(paths).toEqual(['/metrics', '/', '/dashboard']);
      for (const path of paths) expect((await fetch(own + path)).status).toBe(200);
      const { stdout } = await run('sh', ['-c', metric.replace('http://127.0.0.1:3000', own)]);
      expect(stdout).toMatch(/^crawl_images_total\{outcome="stored",reason=""\} 1$/m);
      await stopped(running);
      await rm(bare, { recursive: true });
    },
    4 * MINUTES,
  );

  test('SIGTERM to npm reaches the service, which drains', async () => {
    await using running = startWithNpm(env);
    await addressOf(running);
    await stopped(running);
    expect(running.out()).toContain('service stopped');
  });

  test('Ctrl-C reaches it twice under npm, and it drains', async () => {
    await using running = startWithNpm(env, 'terminal');
    await addressOf(running);
    const { code, out } = await interruptAt(running, /service started/);
    expect(out).toContain('service stopped');
    expect(code).toBe(0);
  });

  test('a request, with the curl of this machine', async () => {
    const command = block('curl ').replace('http://127.0.0.1:3000', address);
    expect(command).toContain(address);
    const { stdout } = await run('sh', ['-c', `curl --version >&2 || exit 1; ${command}`]);
    const [, body = ''] = /-d '([^]*)'$/.exec(command) ?? [];
    const urls = JSON.parse(body).images.map(({ url }: { url: string }) => url);
    const { accepted, rejected } = JSON.parse(stdout);
    expect(accepted.map(({ url }: { url: string }) => url)).toEqual(urls);
    expect(rejected).toEqual([]);
    // Refused here, where it is not to be fetched; so it has an outcome.
    const job = await until('its outcome', async () => {
      const response = await fetch(`${address}/v1/jobs/crawl/${accepted[0].jobId}`);
      const view = (await response.json()) as { state: string; outcome: unknown };
      return view.state === 'completed' ? view : null;
    });
    expect(job.outcome).toMatchObject({ outcome: 'rejected', reason: 'blocked-address' });
  });

  test('a list, waited for', async () => {
    await using site = await new Site().listen();
    const urls = [
      site.put('/1.jpg', { body: await samplePhoto(1) }),
      site.put('/2.jpg', { body: await samplePhoto(2) }),
    ];
    const [, file = '', args = ''] =
      /^npx hybrid-cache enqueue (\S+) (.*)$/.exec(block('npx hybrid-cache enqueue')) ?? [];
    await writeFile(join(folder, file), urls.join('\n'));
    const { code, out } = await startCommand(['enqueue', file, ...args.split(' ')], env, '', folder).ended;
    expect(out).toMatch(/\nenqueued +2\n\noutcome +reason +count\nstored +2\n$/);
    expect(code).toBe(0);
  });

  test('a payload, from any BullMQ client', async () => {
    const payload = JSON.parse(block('{ "v": 1'));
    expect(ajv.validate(JSON.parse(readFileSync('schemas/crawl-job.json', 'utf8')), payload), ajv.errorsText()).toBe(
      true,
    );
    const { hostname, port, password } = new URL(env.REDIS_URL ?? '');
    const queue = new Queue('crawl', { connection: { host: hostname, port: Number(port), password } });
    onTestFinished(() => queue.close());
    const job = await queue.add('crawl', payload);
    await until('its outcome', async () => (await job.getState()) === 'completed');
  });

  test('outcomes, as the API describes them', () => {
    const { components } = JSON.parse(readFileSync('openapi.json', 'utf8'));
    const outcomes = block('{ "outcome"')
      .split('\n')
      .map((line) => JSON.parse(line.replace('"contentHash": "…"', `"contentHash": "${'ab'.repeat(32)}"`)));
    expect(outcomes.map(({ outcome }) => outcome)).toEqual(['stored', 'skipped', 'rejected']);
    for (const outcome of outcomes) {
      expect(ajv.validate({ ...components.schemas.Outcome, components }, outcome), ajv.errorsText()).toBe(true);
    }
  });
});

describe('every command within the text', () => {
  const commands = [...new Set(spans.filter((span) => /^(npx|npm|docker|echo|curl|apt-get|node|bash|sh) /.test(span)))];
  const named = (beginning: string) => commands.filter((command) => command.startsWith(beginning));

  /** Where it is run: here, or by what is named. */
  const ELSEWHERE: Record<string, string> = {
    'npm run demo -- --keep': 'test/demo.test.ts',
    'npm run examples': 'test/examples.test.ts',
    'npm pack': 'test/package.test.ts',
    'npm install': 'test/package.test.ts',
    'npm run bench': 'test/bench.test.ts',
    'npm run check': '.ci/run',
    'npm test': '.ci/run',
    'apt-get install -y --no-install-recommends prometheus chromium python3-minimal curl openssl': '.ci/run',
    // This runs what other lines run.
    'npm start': 'test/readme.test.ts',
    'npm start | npx pino-pretty': 'test/logger.test.ts',
    'npm run dev': 'test/scripts.test.ts',
    'npm run chaos': '.ci/run',
    'npm run db:generate': 'test/scripts.test.ts',
    'npm run openapi': 'test/scripts.test.ts',
    'npm run schemas': 'test/scripts.test.ts',
  };
  const HERE = /^(npx hybrid-cache |docker compose |echo |node --env-file)/;

  test('is run here, or by what is named', () => {
    expect(commands.filter((command) => !HERE.test(command) && !ELSEWHERE[command])).toEqual([]);
    for (const [command, where] of Object.entries(ELSEWHERE)) {
      expect(existsSync(where), where).toBe(true);
      const [, script] = /^npm (?:run )?([\w:]+)/.exec(command) ?? [];
      const isOfNpm = script === 'pack' || script === 'install';
      if (script && !isOfNpm) expect(Object.keys(scripts)).toContain(script);
    }
  });

  test('npx finds the command', async () => {
    const { stdout } = await run('npx', ['hybrid-cache', '--version']);
    expect(stdout.trim()).toBe(JSON.parse(readFileSync('package.json', 'utf8')).version);
  });

  test.each(named('npx hybrid-cache ').filter((command) => !/ (start|serve|worker)\b/.test(command)))(
    '%s',
    async (command) => {
      const args = command.replace('<url>', 'https://example.com/portrait.jpg').split(' ').slice(2);
      const { code, out, err } = await runCommand(args, env);
      expect([code, err, out], out).toEqual([0, expect.any(String), expect.any(String)]);
      if (args[0] === 'migrate') return;
      const asked = await runCommand([...args, '--json'], env);
      expect([asked.code, typeof JSON.parse(asked.out)]).toEqual([0, 'object']);
    },
  );

  test.each(named('npx hybrid-cache ').filter((command) => / (start|serve|worker)\b/.test(command)))(
    '%s',
    async (command) => {
      await using running = startCommand(command.split(' ').slice(2), env, null);
      expect((await fetch(`${await addressOf(running)}/readyz`)).status).toBe(200);
      await stopped(running);
    },
    2 * MINUTES,
  );

  test('containers: what is named exists, since there may be no engine here', async () => {
    const compose = parse(readFileSync('docker-compose.yml', 'utf8'), { merge: true });
    const services = Object.entries<{ profiles?: string[]; build?: string; ports?: unknown }>(compose.services);
    const others = named('docker compose ').filter((command) => !command.startsWith('docker compose run '));
    expect(others).toEqual(['docker compose up -d --build']);
    expect(services.some(([, { build }]) => build === '.') && existsSync('Dockerfile')).toBe(true);
    const flags = spans.filter((span) => /^--(profile|scale) /.test(span));
    const profiles = flags.flatMap((flag) => /^--profile (\w+)$/.exec(flag)?.[1] ?? []);
    expect(profiles.sort()).toEqual([...new Set(services.flatMap(([, { profiles = [] }]) => profiles))].sort());
    const [, scaled = ''] = /^--scale (\w+)=\d+$/.exec(flags.find((flag) => flag.startsWith('--scale')) ?? '') ?? [];
    // Two of them could not share a port.
    expect(compose.services[scaled]).toMatchObject({ command: ['worker'] });
    expect(compose.services[scaled].ports).toBeUndefined();
  });

  test.each(named('docker compose run '))('%s', async (command) => {
    await using site = await new Site().listen();
    const url = site.put('/3.jpg', { body: await samplePhoto(3) });
    const [, flags, name = '', words = '', list] =
      /^docker compose run --rm( -T)? (\w+) (.+?)(?: < (\S+))?$/.exec(command) ?? [];
    // Its words are the entry point's, as those of every service are; a list comes through no terminal.
    const { services } = parse(readFileSync('docker-compose.yml', 'utf8'), { merge: true });
    expect(services[name]).toMatchObject({ command: ['serve'] });
    expect(readFileSync('Dockerfile', 'utf8')).toContain('ENTRYPOINT ["node", "dist/src/cli.js"]\n');
    expect(flags === ' -T').toBe(list !== undefined);
    const { code, out } = await runCommand(words.replace('<url>', url).split(' '), env, `${url}\n`);
    expect(out).toMatch(list ? /\nstored +1\n/ : /^wouldSkip +false$/m);
    expect(code).toBe(0);
  });

  test.each(named('node --env-file'))('%s', async (command) => {
    const bare = await mkdtemp(join(tmpdir(), 'hc-readme-env-'));
    onTestFinished(() => rm(bare, { recursive: true }));
    await symlink(resolve('dist'), join(bare, 'dist'));
    const example = readFileSync('.env.example', 'utf8');
    const filled = example.replace(/^(\w+)=.*$/gm, (line, name) => (env[name] ? `${name}=${env[name]}` : line));
    await writeFile(join(bare, '.env'), filled);
    const child = spawn('sh', ['-c', `exec ${command}`], { cwd: bare, env: { PATH: process.env.PATH } });
    const exited = once(child, 'exit');
    let out = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (out += chunk));
    try {
      const up = await until('the service to be up', () => /"address":"([^"]+)"/.exec(out)?.[1], MINUTES);
      expect((await fetch(`${up}/readyz`)).status).toBe(200);
      // Those of the file, and none that it would have brought.
      expect(existsSync(join(bare, '.local')), out).toBe(false);
    } finally {
      child.kill('SIGTERM');
    }
    expect((await exited)[0], out).toBe(0);
  });

  test('the token for the containers is one', async () => {
    const [command = '', ...others] = named('echo ');
    expect(others).toEqual([]);
    await run('sh', ['-c', command], { cwd: folder });
    const [, value = ''] = /^API_TOKENS=(.*)\n$/.exec(readFileSync(join(folder, '.env'), 'utf8')) ?? [];
    const { tokens } = toConfig({ ...env, HOST: '0.0.0.0', API_TOKENS: value }).http;
    expect(tokens).toHaveLength(1);
  });
});

describe('what is said beside them', () => {
  test('with API_TOKENS set, the curl above wants its header', async () => {
    const [header = '', ...others] = spans.filter((span) => span.startsWith('-H '));
    expect(others).toEqual([]);
    const token = 'a=token=of=this=test';
    await using running = startCommand(['serve'], { ...env, API_TOKENS: `${token}=acme` }, null);
    const command = block('curl ').replace('http://127.0.0.1:3000', await addressOf(running));
    const asked = async (line: string) => {
      const { stdout } = await run('sh', ['-c', line], { env: { PATH: process.env.PATH, TOKEN: token } });
      return JSON.parse(stdout);
    };
    expect(await asked(command)).toMatchObject({ status: 401 });
    expect(await asked(`${command} ${header}`)).toMatchObject({ accepted: [{}], rejected: [] });
    await stopped(running);
  });

  test(
    'images of one’s own machine are refused, and fetched with FETCH_ALLOW and --force',
    async () => {
      const [, address = '', name = ''] = /`FETCH_ALLOW='([^']+)' npm start`, or\s+`([^`]+)`/.exec(readme) ?? [];
      expect(spans).toContain('--force');
      await using site = await new Site().listen();
      const url = site.put('/mine.jpg', { body: await samplePhoto(4) });
      const outcomes = async (FETCH_ALLOW: string, list: string, ...more: string[]) => {
        // The service of all tests takes no job of these queues, and knows what they know.
        const settings = { ...env, QUEUE_BACKEND: 'postgres', FETCH_ALLOW };
        await using running = startCommand(['worker', 'crawl'], settings, null);
        await addressOf(running);
        const words = ['enqueue', '-', '--tenant', 'acme', '--wait', '--json', ...more];
        const { out } = await runCommand(words, settings, list);
        await stopped(running);
        return JSON.parse(out).outcomes;
      };
      const refused = [{ outcome: 'rejected', reason: 'blocked-address', count: 1 }];
      expect(await outcomes('', url)).toEqual(refused);
      expect(await outcomes(address, url)).toEqual(refused);
      expect(await outcomes(address, url, '--force')).toMatchObject([{ outcome: 'stored', count: 1 }]);
      const named = url.replace('127.0.0.1', 'localhost');
      expect(await outcomes(name, named)).toMatchObject([{ outcome: 'skipped', reason: 'content', count: 1 }]);
    },
    3 * MINUTES,
  );

  test('the page is where the text says', () => {
    const { host, port } = toConfig({}).http;
    expect(readme).toContain(` http://${host}:${port}/,`);
  });
});

describe('what is named', () => {
  test('methods are the library’s', () => {
    const methods = Object.getOwnPropertyNames(library.HybridCacheService.prototype);
    const called = spans.flatMap((span) => /^([a-z]\w+)\(.*\)$/.exec(span)?.[1] ?? []);
    expect(called.length).toBeGreaterThan(12);
    for (const name of called) expect(methods).toContain(name);
  });

  test('variables are those of the configuration', () => {
    const others = ['POSTGRES_PASSWORD_FILE'].filter((name) => !VARIABLE_NAMES.some((known) => known === name));
    const variables = spans.flatMap((span) => /^([A-Z]+(?:_[A-Z]+)+)(?:=\S+)?$/.exec(span)?.[1] ?? []);
    const example = readFileSync('.env.example', 'utf8');
    expect(variables.length).toBeGreaterThan(10);
    for (const name of variables) if (!others.includes(name)) expect(VARIABLE_NAMES).toContain(name);
    for (const name of variables) expect(example).toContain(`${name}=`);
  });

  test('files are there', () => {
    const files = [...readme.matchAll(/\]\(([^)#]+)(?:#[\w-]+)?\)/g)].flatMap(([, file = '']) =>
      file.startsWith('http') ? [] : [file],
    );
    for (const file of files) expect(existsSync(file), file).toBe(true);
  });

  test('addresses answer', async () => {
    const { paths } = JSON.parse(readFileSync('openapi.json', 'utf8'));
    const watched = readme.slice(readme.indexOf('## Watch'), readme.indexOf('## Work on it'));
    const cells = watched.split('\n').flatMap((line) => /^\| (`.*?) +\|/.exec(line)?.[1] ?? []);
    const named = cells.flatMap((cell) => [...cell.matchAll(/`([^`]+)`/g)].map(([, span = '']) => span));
    for (const path of named.filter((one) => one.startsWith('/'))) {
      expect((await fetch(`${address}${path}`)).status, path).toBe(200);
    }
    const templates = Object.keys(paths).map((path) => new RegExp(`^GET ${path.replace(/\{\w+\}/g, '[\\w:]+')}$`));
    for (const path of named.filter((one) => one.startsWith('GET '))) {
      expect(
        templates.some((template) => template.test(path)),
        path,
      ).toBe(true);
    }
    for (const path of named.filter((one) => one.startsWith('deploy/'))) expect(existsSync(path), path).toBe(true);
  });
});
