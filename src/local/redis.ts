/** The local Redis: settings that a job queue can rely on, and the question whether it answers. */
import { mkdir } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import type { RedisServer } from './find-redis.js';
import type { ChildCommand } from './keeper.js';
import type { Server } from './servers.js';

interface RedisPlan {
  program: RedisServer;
  home: string;
  /** Holds the log. */
  folder: string;
  password: string;
}

export function redisUrl(port: number, password: string): string {
  return `redis://:${password}@127.0.0.1:${port}/0`;
}

export async function prepareRedis(plan: RedisPlan): Promise<Server> {
  const data = join(plan.home, 'redis');
  await mkdir(data, { recursive: true, mode: 0o700 });
  return {
    name: 'redis',
    command: (port) => serverCommand(plan, data, port),
    answers: (port) => answersOn(port, plan.password),
  };
}

function serverCommand({ program, folder, password }: RedisPlan, data: string, port: number): ChildCommand {
  const env: Record<string, string> = { LC_ALL: 'C' };
  if (program.libraryPath) env.LD_LIBRARY_PATH = program.libraryPath;
  return {
    name: 'redis',
    file: program.path,
    args: ['-'],
    env,
    logFile: join(folder, 'redis.log'),
    // On standard input, since `ps` shows every user the arguments.
    input: settings(data, port, password),
    stopSignal: 'SIGTERM',
  };
}

function settings(data: string, port: number, password: string): string {
  return [
    'bind 127.0.0.1',
    `port ${port}`,
    'protected-mode yes',
    `requirepass ${password}`,
    `dir ${JSON.stringify(data)}`,
    'daemonize no',
    'save ""',
    // Jobs must outlive the server, and none may be evicted to make room for a cache entry.
    'appendonly yes',
    'appendfsync everysec',
    'maxmemory-policy noeviction',
    '',
  ].join('\n');
}

/** Asks by hand: a client library would go on trying on its own, and log. */
function answersOn(port: number, password: string): Promise<boolean> {
  return new Promise((resolve) => {
    let heard = '';
    const socket = connect({ port, host: '127.0.0.1', timeout: 2_000 });
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.on('connect', () => socket.write(`AUTH ${password}\r\nPING\r\n`));
    socket.on('data', (chunk) => {
      heard += chunk.toString('latin1');
      // It answers -LOADING while it still reads its data.
      if (heard === '+OK\r\n+PONG\r\n') end(true);
      else if (heard.includes('-')) end(false);
    });
    socket.on('error', () => end(false));
    socket.on('timeout', () => end(false));
    socket.on('close', () => end(false));
  });
}
