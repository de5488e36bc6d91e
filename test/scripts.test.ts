/** What those who work on the project run, in a copy of it: what writes files writes none of ours. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from './support/until.js';

const run = promisify(execFile);
const MINUTES = 60_000;
const LEFT_OUT = ['.git', '.local', 'dist', 'node_modules'];

let copy: string;

beforeAll(async () => {
  copy = await mkdtemp(join(tmpdir(), 'hc-scripts-'));
  for (const name of await readdir('.')) {
    if (!LEFT_OUT.includes(name)) await cp(name, join(copy, name), { recursive: true });
  }
  await symlink(resolve('node_modules'), join(copy, 'node_modules'));
  await mkdir(join(copy, '.local'));
  await chmod(copy, 0o755); // PostgreSQL may run as another user
  await symlink(resolve('.local/redis-server'), join(copy, '.local/redis-server')).catch(() => undefined);
});

afterAll(() => rm(copy, { recursive: true, force: true }));

const npm = (script: string) => run('npm', ['run', script], { cwd: copy });
const textsOf = async (folder: string) => {
  const names = await readdir(folder);
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name), 'utf8')])),
  );
};

test('npm run openapi and npm run schemas write what is there', { timeout: 3 * MINUTES }, async () => {
  await rm(join(copy, 'openapi.json'));
  await rm(join(copy, 'schemas'), { recursive: true });
  await npm('openapi');
  await npm('schemas');
  expect(await readFile(join(copy, 'openapi.json'), 'utf8')).toBe(await readFile('openapi.json', 'utf8'));
  expect(await textsOf(join(copy, 'schemas'))).toEqual(await textsOf('schemas'));
});

test('npm run db:generate writes a migration where the schema has changed, and none where it has not', async () => {
  const migrations = async () => (await readdir(join(copy, 'drizzle'))).filter((name) => name.endsWith('.sql'));
  const before = await migrations();
  await npm('db:generate');
  expect(await migrations()).toEqual(before);
  await appendFile(join(copy, 'src/db/schema.ts'), "\nexport const pets = pgTable('pets', { name: text('name') });\n");
  await npm('db:generate');
  const [added = '', ...others] = (await migrations()).filter((name) => !before.includes(name));
  expect(others).toEqual([]);
  expect(await readFile(join(copy, 'drizzle', added), 'utf8')).toMatch(/^CREATE TABLE "pets" \(/);
});

test('npm run dev starts anew at a change, and leaves nothing behind', { timeout: 5 * MINUTES }, async () => {
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, PORT: '0', METRICS_PORT: '0' };
  const child = spawn('npm', ['run', 'dev'], { cwd: copy, env, detached: true });
  const exited = once(child, 'exit');
  let out = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (out += chunk));
  const addresses = () => [...out.matchAll(/"address":"([^"]+)"/g)].map(([, address = '']) => address);
  try {
    await until('the service to be up', () => addresses().length === 1, 2 * MINUTES);
    const [first = ''] = addresses();
    expect((await fetch(`${first}/readyz`)).status).toBe(200);
    await appendFile(join(copy, 'src/cli.ts'), '\nconsole.log("changed");\n');
    await until('another one to be up', () => addresses().length === 2, 2 * MINUTES);
    expect((await fetch(`${addresses()[1]}/readyz`)).status).toBe(200);
    expect(out).toContain('changed');
    child.kill('SIGTERM');
    await exited;
    await until('all that it started to have ended', () => !isAlive(child.pid as number));
  } finally {
    if (isAlive(child.pid as number)) process.kill(-(child.pid as number), 'SIGKILL');
  }
});

/** Whether any process of the group still is. */
function isAlive(group: number): boolean {
  try {
    process.kill(-group, 0);
    return true;
  } catch {
    return false;
  }
}
