/** `npm run demo` as a user runs it: a process of its own, with real faces, judged by what it prints and leaves. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, test } from 'vitest';
import type { PassResult } from '../src/demo/pass.js';
import { parseExposition, valueOf } from './support/exposition.js';
import { until } from './support/until.js';

const CLI = resolve('dist/src/cli.js');
const MINUTES = 60_000;

/** 19 distinct images (6 photographs in 3 forms, 1 without a face), 6 twins, 8 bad files and one that robots.txt closes, for 2 tenants. */
const FIRST_PASS = {
  jobs: 68,
  stored: 38,
  skippedByUrl: 0,
  skippedByContent: 12,
  rejected: { 'blocked-address': 2, corrupt: 2, forbidden: 2, gone: 4, 'not-an-image': 4, robots: 2, unsupported: 2 },
  failed: 0,
  downloads: 66,
};
const SECOND_PASS = {
  ...FIRST_PASS,
  stored: 0,
  skippedByUrl: 50,
  skippedByContent: 0,
  faces: 0,
  downloads: 0,
};

interface DemoRun extends AsyncDisposable {
  readonly process: ChildProcess;
  readonly out: () => string;
  readonly err: () => string;
}

function startDemo(args: string[], options: { cwd?: string; env?: Record<string, string> } = {}): DemoRun {
  const env = { PATH: process.env.PATH, PORT: '0', ...options.env };
  const child = spawn(process.execPath, [CLI, 'demo', '--json', ...args], { cwd: options.cwd, env, detached: true });
  let out = '';
  let err = '';
  child.stdout.on('data', (chunk) => (out += chunk));
  child.stderr.on('data', (chunk) => (err += chunk));
  return {
    process: child,
    out: () => out,
    err: () => err,
    [Symbol.asyncDispose]: async () => void child.kill('SIGKILL'),
  };
}

/** The folders of demos, with the processes that name them on their command lines or work in them. */
async function remains(cwd: string): Promise<string[]> {
  const folders = (await readdir(join(cwd, '.local')).catch(() => [])).filter((name) => name.startsWith('demo-'));
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')));
  return [...folders, ...lines.filter((line) => line.includes(join(cwd, '.local', 'demo-')))];
}

test(
  'tells the whole story twice, its metrics equal its table, and Ctrl-C ends everything with 0',
  async () => {
    const cwd = await mkdtemp(join(tmpdir(), 'hc-demo-'));
    await mkdir(join(cwd, '.local'));
    await symlink(resolve('.local/redis-server'), join(cwd, '.local/redis-server')).catch(() => undefined);
    await using demo = startDemo(['--keep'], { cwd });
    const address = await until(
      'the demo to be up',
      () => /Metrics +(\S+)\/metrics/.exec(demo.err())?.[1],
      5 * MINUTES,
    );
    for (const path of ['/', '/dashboard']) expect(demo.err()).toMatch(new RegExp(` ${address}${path}\n`));
    const { passes } = JSON.parse(demo.out()) as { passes: [PassResult, PassResult] };
    expect(passes[0]).toMatchObject(FIRST_PASS);
    expect(passes[1]).toMatchObject(SECOND_PASS);
    expect(passes[0].faces).toBe(2 * 3 * 22);
    expect(passes[0].nearDuplicates).toBeGreaterThanOrEqual(2 * 6 * 2 - 12);
    expect(passes[1].redisHits).toBeGreaterThanOrEqual(50);

    const families = parseExposition(await (await fetch(`${address}/metrics`)).text());
    const counted = (name: string, labels: Record<string, string>) => valueOf(families, name, labels);
    const sum = (pick: (pass: PassResult) => number) => passes.reduce((total, pass) => total + pick(pass), 0);
    expect(counted('crawl_images_total', { outcome: 'stored' })).toBe(sum((pass) => pass.stored));
    expect(counted('crawl_images_total', { reason: 'url' })).toBe(sum((pass) => pass.skippedByUrl));
    expect(counted('crawl_images_total', { reason: 'content' })).toBe(sum((pass) => pass.skippedByContent));
    for (const reason of Object.keys(FIRST_PASS.rejected)) {
      const rejected = counted('crawl_images_total', { outcome: 'rejected', reason });
      expect([reason, rejected]).toEqual([reason, sum((pass) => pass.rejected[reason] ?? 0)]);
    }
    expect(counted('hybrid_cache_requests_total', { result: 'redis_hit' })).toBe(sum((pass) => pass.redisHits));
    expect(counted('embedding_faces_total', {})).toBe(sum((pass) => pass.faces));
    expect(counted('bullmq_job_count', { queue: 'crawl', state: 'completed' })).toBe(sum((pass) => pass.jobs));

    // As a terminal does it: to the whole process group.
    process.kill(-(demo.process.pid ?? 0), 'SIGINT');
    expect(await once(demo.process, 'exit')).toEqual([0, null]);
    await until('nothing to remain', async () => (await remains(cwd)).length === 0);
    await rm(cwd, { recursive: true });
  },
  8 * MINUTES,
);

test(
  'runs with its queues on PostgreSQL where no Redis can be had, and says so',
  async () => {
    const cwd = await mkdtemp(join(tmpdir(), 'hc-demo-'));
    const bare = await mkdtemp(join(tmpdir(), 'hc-path-'));
    await using demo = startDemo([], { cwd, env: { PATH: bare } });
    const [code] = await once(demo.process, 'exit');
    expect([code, demo.err()]).toEqual([0, expect.stringMatching(/redis/i)]);
    const { passes } = JSON.parse(demo.out()) as { passes: [PassResult, PassResult] };
    expect(passes[0]).toMatchObject(FIRST_PASS);
    expect(passes[1]).toMatchObject(SECOND_PASS);
    expect([passes[0].redisHits, passes[1].redisHits]).toEqual([0, 0]);
    expect(passes[1].postgresHits).toBeGreaterThanOrEqual(50);
    expect(await remains(cwd)).toEqual([]);
    await Promise.all([rm(cwd, { recursive: true }), rm(bare, { recursive: true })]);
  },
  8 * MINUTES,
);

test(
  'leaves nothing behind when it is killed with -9 in the middle',
  async () => {
    const cwd = await mkdtemp(join(tmpdir(), 'hc-demo-'));
    await using demo = startDemo([], { cwd, env: { PATH: '' } });
    await until('the first pass', () => demo.err().includes('pass 1'), MINUTES);
    expect((await remains(cwd)).length).toBeGreaterThan(0);
    demo.process.kill('SIGKILL');
    await until('nothing to remain', async () => (await remains(cwd)).length === 0);
    await rm(cwd, { recursive: true });
  },
  2 * MINUTES,
);
