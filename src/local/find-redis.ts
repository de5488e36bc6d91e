/** Finding a Redis server to run: on the PATH, else among Debian's packages, which are unpacked and never installed. */
import { execFile } from 'node:child_process';
import { readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { reasonOf } from '../errors.js';
import { unpackDebianPackages } from './debian-packages.js';
import { exists } from './folders.js';

export interface RedisServer {
  path: string;
  /** For the dynamic linker, where the server's libraries were unpacked beside it. */
  libraryPath?: string;
  source: 'path' | 'fetched';
  /** Such as `7.0.15`. */
  version: string;
}

type Announce = (line: string) => void;

const run = promisify(execFile);
const NAMES = ['redis-server', 'valkey-server'] as const;
/** Debian splits the server: the program itself is in the tools' package. */
const PACKAGES = NAMES.map((name) => [name, name.replace('server', 'tools')]);

/**
 * A server that runs here, else `null`, with the reason announced. Fetched packages are kept in `cacheFolder`.
 */
export async function findRedisServer(cacheFolder: string, announce: Announce): Promise<RedisServer | null> {
  const home = resolve(cacheFolder, 'redis-server');
  try {
    return (await onPath()) ?? (await serverIn(home).catch(() => null)) ?? (await fetchedInto(home, announce));
  } catch (error) {
    announce(`no Redis could be fetched: ${reasonOf(error)}`);
    return null;
  }
}

async function onPath(): Promise<RedisServer | null> {
  for (const name of NAMES) {
    const path = await which(name);
    const version = path && (await versionOf(path).catch(() => null));
    if (path && version) return { path, source: 'path', version };
  }
  return null;
}

async function fetchedInto(home: string, announce: Announce): Promise<RedisServer | null> {
  if (!(await which('apt-get')) || !(await which('dpkg-deb'))) return null;
  announce("fetching Redis' Debian packages with apt-get download (nothing is installed)");
  await unpackDebianPackages(PACKAGES, home);
  return serverIn(home);
}

/** Rejects with the linker's own words when what was unpacked does not run. */
async function serverIn(root: string): Promise<RedisServer> {
  const libraryPath = (await libraryFolders(root)).join(':');
  for (const name of NAMES) {
    const path = join(root, 'usr/bin', name);
    if (!(await exists(path))) continue;
    return { path, libraryPath, source: 'fetched', version: await versionOf(path, libraryPath) };
  }
  throw new Error(`${root} holds no Redis server`);
}

async function versionOf(path: string, libraryPath?: string): Promise<string> {
  const env = libraryPath ? { LD_LIBRARY_PATH: libraryPath } : {};
  const { stdout } = await run(path, ['--version'], { env, timeout: 10_000 });
  const version = /v=(\d+\.\d+\.\d+)/.exec(stdout)?.[1];
  if (!version) throw new Error(`${path} --version says nothing that we understand`);
  return version;
}

async function libraryFolders(root: string): Promise<string[]> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  const libraries = entries.filter((entry) => /\.so(\.|$)/.test(entry.name));
  return [...new Set(libraries.map((entry) => entry.parentPath))];
}

async function which(name: string): Promise<string | null> {
  const found = await run('/bin/sh', ['-c', `command -v ${name}`]).catch(() => null);
  return found?.stdout.trim() || null;
}
