/** The command line as a user runs it: a process of its own, in a pipe or on a terminal. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { resolve } from 'node:path';
import { until } from './until.js';

const CLI = resolve('dist/src/cli.js');

export interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

export interface Running extends AsyncDisposable {
  readonly process: ChildProcess;
  /** Standard output so far; on a terminal both. */
  out(): string;
  err(): string;
  readonly ended: Promise<Ended>;
}

type Env = Readonly<Record<string, string | undefined>>;

/** Runs `hybrid-cache` with exactly this environment beside the PATH; `null` leaves its standard input open. */
export function startCommand(args: readonly string[], env: Env, input: string | null = '', cwd?: string): Running {
  return start(process.execPath, [CLI, ...args], env, input, cwd);
}

/** As `npm start` does, but without building first; in a pipe or on a terminal. */
export function startWithNpm(env: Env, where: 'pipe' | 'terminal' = 'pipe'): Running {
  const words = ['npm', 'start', '--ignore-scripts'] as const;
  return where === 'pipe' ? start('npm', words.slice(1), env, null) : onTerminal(words, env);
}

export function runCommand(args: readonly string[], env: Env, input?: string): Promise<Ended> {
  return startCommand(args, env, input).ended;
}

/** The same on a terminal; what is written to the process is typed. */
export function startOnTerminal(args: readonly string[], env: Env): Running {
  return onTerminal([process.execPath, CLI, ...args], env);
}

function onTerminal(words: readonly string[], env: Env): Running {
  const command = `exec ${words.map((word) => `'${word}'`).join(' ')}`;
  return start(
    'script',
    ['--quiet', '--return', '--command', command, '/dev/null'],
    { TERM: 'xterm-256color', ...env },
    null,
  );
}

/** As Ctrl-C, once the terminal shows what it is waited for. */
export async function interruptAt(running: Running, shown: RegExp): Promise<Ended> {
  await until(`the terminal to show ${shown}`, () => shown.test(running.out()));
  running.process.stdin?.write('\u0003');
  return running.ended;
}

function start(file: string, args: readonly string[], env: Env, input: string | null, cwd?: string): Running {
  const child = spawn(file, args, { env: { PATH: process.env.PATH, ...env }, cwd });
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (chunk) => (out += chunk));
  child.stderr.setEncoding('utf8').on('data', (chunk) => (err += chunk));
  child.stdin.on('error', () => undefined); // it may end before it has read everything
  if (input !== null) child.stdin.end(input);
  const ended = once(child, 'close').then(([code]): Ended => ({ code, out, err }));
  return {
    process: child,
    out: () => out,
    err: () => err,
    ended,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL');
      await ended;
    },
  };
}
