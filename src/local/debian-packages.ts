/**
 * Debian packages without installing them: `apt-get download` and `dpkg-deb -x` work as any user and change nothing
 * outside of our folder. Where apt has no package lists, or old ones, lists of our own are fetched and thrown away:
 * that works as any user too, and leaves the machine's as they are.
 */
import { execFile } from 'node:child_process';
import { mkdir, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { unlessThere } from './folders.js';

const run = promisify(execFile);
/** For all of one apt command; without it a firewall that drops packets would hold the start for minutes. */
const COMMAND_TIMEOUT_MS = 120_000;
const POLITE = ['-o', 'APT::Sandbox::User=root', '-o', 'Acquire::Retries=1', '-o', 'Acquire::http::Timeout=20'];
/** Packages that must match the running system, and that every Debian has. */
const NEVER = /^(libc6|libc-bin|libcrypt1|libgcc-s1)\b/;

/**
 * Unpacks the first of the `choices` (sets of package names) that the package lists know, with whatever it needs that
 * is not installed, into the folder `target`, which is replaced, and appears when it is complete.
 */
export async function unpackDebianPackages(choices: readonly string[][], target: string): Promise<void> {
  await removeDrafts(target);
  // The caller has found it of no use. Now and not at the end, when another process may have just finished.
  await rm(target, { recursive: true, force: true });
  const draft = `${target}.new-${drafts++}-${process.pid}`;
  try {
    for (const folder of ['root', 'debs', 'lists/partial', 'cache/archives/partial']) {
      await mkdir(join(draft, folder), { recursive: true });
    }
    await download(choices, draft);
    await unpack(draft);
    await rename(join(draft, 'root'), target).catch(unlessThere);
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
}

let drafts = 0;

async function download(choices: readonly string[][], draft: string): Promise<void> {
  const known = await downloadFirst(choices, draft, []).catch(() => false);
  if (known) return;
  const ours = ['-o', `Dir::State::Lists=${join(draft, 'lists')}`, '-o', `Dir::Cache=${join(draft, 'cache')}`];
  // One source that cannot be reached fails the update, and need not be the one that we want.
  await apt(draft, ['update', ...ours]).catch(() => undefined);
  await downloadFirst(choices, draft, ours);
}

async function downloadFirst(choices: readonly string[][], draft: string, options: string[]): Promise<true> {
  let failure: unknown;
  for (const names of choices) {
    try {
      const needed = await missing(names, draft, options);
      await apt(join(draft, 'debs'), ['download', ...options, ...needed]);
      return true;
    } catch (error) {
      failure ??= error;
    }
  }
  throw new Error(`apt-get download ${choices[0]?.join(' ')}: ${lastLine(failure)}`, { cause: failure });
}

/** The packages themselves and what apt says an installation would add; what it would upgrade is there already. */
async function missing(names: string[], draft: string, options: string[]): Promise<string[]> {
  const simulation = await apt(draft, ['install', '--simulate', '--no-install-recommends', ...options, ...names]);
  const added = [...simulation.matchAll(/^Inst (\S+) \(/gm)].map((match) => String(match[1]));
  return [...new Set([...names, ...added.filter((name) => !NEVER.test(name))])];
}

async function unpack(draft: string): Promise<void> {
  for (const file of await readdir(join(draft, 'debs'))) {
    if (file.endsWith('.deb')) await run('dpkg-deb', ['-x', join(draft, 'debs', file), join(draft, 'root')]);
  }
}

/** Through `env`, which adds to the environment (proxies, the PATH) instead of replacing it. */
async function apt(cwd: string, args: string[]): Promise<string> {
  const command = ['LC_ALL=C', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', ...POLITE, ...args];
  const { stdout } = await run('/usr/bin/env', command, { cwd, timeout: COMMAND_TIMEOUT_MS });
  return stdout;
}

function lastLine(error: unknown): string {
  const text = (error as { stderr?: string }).stderr?.trim() || String(error);
  return text.split('\n').at(-1) ?? text;
}

/** What a process that was killed in the middle left behind. */
async function removeDrafts(target: string): Promise<void> {
  await mkdir(dirname(target), { recursive: true });
  for (const name of await readdir(dirname(target))) {
    const pid = Number(name.startsWith(`${basename(target)}.new-`) ? name.split('-').at(-1) : Number.NaN);
    if (pid && !isRunning(pid)) await rm(join(dirname(target), name), { recursive: true, force: true });
  }
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
