/**
 * The keeper: a process of its own, in a session of its own, that starts the local servers and outlives whoever asked
 * for them just long enough to end them. Ctrl-C and a SIGTERM to the owner reach neither it nor the servers, so the
 * owner drains against living servers; and its standard input ends when the owner does, even by `kill -9`.
 * It never starts a dead server again by itself: that is for the owner to say.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { removeFolder } from './folders.js';

// What it and its owner say to each other: JSON lines over its standard input and output.

export type ServerName = 'postgres' | 'redis';
export type ChildName = ServerName | 'initdb';

/** A process that the keeper is to start. It gets this environment and no other. */
export interface ChildCommand {
  name: ChildName;
  file: string;
  args: string[];
  env: Record<string, string>;
  /** The user to run as; absent: as the keeper itself. */
  user?: { uid: number; gid: number };
  logFile: string;
  /** Given on standard input, where `ps` does not show it. */
  input?: string;
  /** The signal that ends it cleanly. */
  stopSignal: NodeJS.Signals;
}

export type KeeperRequest =
  /** Answers with the pid. */
  | { do: 'start'; command: ChildCommand }
  /** Answers once the signal is sent, after SIGKILL once the process is gone. */
  | { do: 'signal'; name: ServerName; signal: NodeJS.Signals }
  /** Ends one server cleanly, by force where it does not obey in time; answers when it is gone. */
  | { do: 'end'; name: ServerName }
  /** Answers with the exit code (`null`: ended by a signal). */
  | { do: 'await-exit'; name: ChildName }
  /** Paths to remove when the keeper ends. */
  | { do: 'remove-at-end'; paths: string[] }
  /** Ends every child, removes what is to be removed, answers, and ends the keeper. */
  | { do: 'stop' };

export type KeeperAnswer = { id: number; value: number | null } | { id: number; error: string };
/** Said unasked when a child is gone. */
export type ChildExit = { exited: number };

/** How long a server may take to end cleanly. */
const STOP_DEADLINE_MS = 10_000;

interface Child {
  process: ChildProcess;
  stopSignal: NodeJS.Signals;
  exited: Promise<number | null>;
}

const children = new Map<ChildName, Child>();
let removeAtEnd: string[] = [];
let stopping: Promise<void> | undefined;

// The owner is gone: nobody is left to read, and the write error is not worth dying of before the servers are ended.
process.stdout.on('error', () => undefined);
createInterface({ input: process.stdin })
  .on('line', (line) => void take(JSON.parse(line)))
  .on('close', () => void stop().then(() => process.exit(0)));
process.on('SIGTERM', () => void stop().then(() => process.exit(0)));
process.on('SIGINT', () => void stop().then(() => process.exit(0)));

async function take({ id, ...request }: KeeperRequest & { id: number }): Promise<void> {
  try {
    say({ id, value: await carryOut(request) });
  } catch (error) {
    say({ id, error: error instanceof Error ? error.message : String(error) });
  }
  if (request.do === 'stop') process.stdout.end(() => process.exit(0));
}

async function carryOut(request: KeeperRequest): Promise<number | null> {
  switch (request.do) {
    case 'start':
      return start(request.command);
    case 'signal':
      return signal(request.name, request.signal);
    case 'end':
      await end([children.get(request.name)].filter(isRunning));
      return null;
    case 'await-exit':
      return (await children.get(request.name)?.exited) ?? null;
    case 'remove-at-end':
      removeAtEnd = request.paths;
      return null;
    case 'stop':
      await stop();
      return null;
  }
}

async function start(command: ChildCommand): Promise<number> {
  if (stopping) throw new Error('the stack is stopping');
  if (isRunning(children.get(command.name))) throw new Error(`${command.name} is already running`);
  const child = launch(command);
  if (child.pid === undefined) return new Promise((_, reject) => child.once('error', reject));
  const pid = child.pid;
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
  children.set(command.name, { process: child, stopSignal: command.stopSignal, exited });
  void exited.then(() => say({ exited: pid }));
  return pid;
}

function launch({ file, args, env, user, logFile, input }: ChildCommand): ChildProcess {
  const log = openSync(logFile, 'a', 0o600);
  try {
    const child = spawn(file, args, {
      cwd: '/',
      env,
      stdio: [input === undefined ? 'ignore' : 'pipe', log, log],
      ...user,
    });
    child.on('error', () => undefined);
    child.stdin?.on('error', () => undefined).end(input);
    return child;
  } finally {
    closeSync(log);
  }
}

async function signal(name: ChildName, wanted: NodeJS.Signals): Promise<null> {
  const child = children.get(name);
  if (!child || !isRunning(child)) throw new Error(`${name} is not running`);
  if (wanted === 'SIGSTOP') await stand(child);
  // Postgres serves each connection with a process of its own: a frozen server is one whose every process stands.
  if (['SIGSTOP', 'SIGCONT', 'SIGKILL'].includes(wanted)) for (const pid of descendants(child)) send(pid, wanted);
  child.process.kill(wanted);
  if (wanted === 'SIGKILL') await child.exited;
  return null;
}

/** Ends every child, cleanly where it obeys in time, and removes what was given to be removed. Runs once. */
function stop(): Promise<void> {
  stopping ??= end([...children.values()].filter(isRunning)).then(removeAll);
  return stopping;
}

async function end(running: Child[]): Promise<void> {
  for (const child of running) {
    child.process.kill(child.stopSignal);
    for (const pid of descendants(child)) send(pid, 'SIGCONT');
    child.process.kill('SIGCONT');
  }
  const allGone = Promise.all(running.map((child) => child.exited));
  await Promise.race([allGone, delay(STOP_DEADLINE_MS, null, { ref: false })]);
  for (const child of running.filter(isRunning)) child.process.kill('SIGKILL');
  await allGone;
}

async function removeAll(): Promise<void> {
  for (const path of removeAtEnd) await removeFolder(path).catch(console.error);
}

function isRunning(child: Child | undefined): child is Child {
  return child !== undefined && child.process.exitCode === null && child.process.signalCode === null;
}

/** Resolves once the process stands: until then it may start another, which no list of its children would have. */
async function stand(child: Child): Promise<void> {
  child.process.kill('SIGSTOP');
  while (isRunning(child) && !['', 'T'].includes(stateOf(child.process.pid))) await delay(1);
}

/** A letter, behind the name in parentheses: proc_pid_stat(5). Empty where there is none, or no Linux. */
function stateOf(pid: number | undefined): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.charAt(stat.lastIndexOf(')') + 2);
  } catch {
    return '';
  }
}

function descendants(child: Child): number[] {
  const pid = child.process.pid;
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

function send(pid: number, wanted: NodeJS.Signals): void {
  try {
    process.kill(pid, wanted);
  } catch {
    // It ended between our look and our signal.
  }
}

function say(message: KeeperAnswer | ChildExit): void {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}
