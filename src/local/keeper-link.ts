/**
 * The owner's end of the line to its keeper. Holds the owner's process open only while an answer is awaited, so that a
 * program which forgets to close its stack still ends, and the keeper with it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync } from 'node:fs';
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { ChildExit, KeeperAnswer, KeeperRequest } from './keeper.js';

interface Waiting {
  resolve(value: number | null): void;
  reject(error: Error): void;
}

export class KeeperLink {
  readonly pid: number;
  readonly #process: ChildProcess;
  readonly #answers: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #exited = new Set<number>();
  #nextId = 1;
  /** Hears of each process of the keeper's that has ended. */
  onExit: (pid: number) => void = () => undefined;
  #ended = false;

  private constructor(child: ChildProcess) {
    this.#process = child;
    this.pid = child.pid as number;
    // Both are sockets, whatever their declared type says; only a socket can be kept from holding the process open.
    this.#answers = child.stdout as Socket;
    (child.stdin as Socket).unref();
    this.#answers.unref();
    child.unref();
    // Writing to a keeper that was killed: the answers below end, and that is where it is reported.
    child.stdin?.on('error', () => undefined);
    createInterface({ input: this.#answers })
      .on('line', (line) => this.#take(JSON.parse(line)))
      .on('close', () => this.#end());
  }

  /** Starts a keeper in a session of its own, with its own errors in `logFile`. */
  static async start(folder: string, logFile: string): Promise<KeeperLink> {
    const log = openSync(logFile, 'a', 0o600);
    try {
      const child = spawn(process.execPath, [keeperFile(), folder], {
        cwd: '/',
        // None of ours: NODE_OPTIONS may hold an inspector's port, PG* variables would reach the server.
        env: {},
        detached: true,
        stdio: ['pipe', 'pipe', log],
      });
      await new Promise((resolve, reject) => child.once('spawn', resolve).once('error', reject));
      return new KeeperLink(child);
    } finally {
      closeSync(log);
    }
  }

  request(request: KeeperRequest): Promise<number | null> {
    if (this.#ended) return Promise.reject(keeperEnded());
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#answers.ref();
      this.#process.stdin?.write(`${JSON.stringify({ id, ...request })}\n`);
    });
  }

  hasExited(pid: number): boolean {
    return this.#exited.has(pid) || this.#ended;
  }

  #take(message: KeeperAnswer | ChildExit): void {
    if ('exited' in message) {
      this.#exited.add(message.exited);
      this.onExit(message.exited);
      return;
    }
    const waiting = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (this.#waiting.size === 0) this.#answers.unref();
    if ('error' in message) waiting?.reject(new Error(message.error));
    else waiting?.resolve(message.value);
  }

  #end(): void {
    this.#ended = true;
    for (const waiting of this.#waiting.values()) waiting.reject(keeperEnded());
    this.#waiting.clear();
  }
}

function keeperEnded(): Error {
  return new Error("the local stack's keeper process has ended, so its servers can no longer be told anything");
}

/** The keeper is run by Node itself, so it must be JavaScript: from a TypeScript source (tests) the built one is taken. */
function keeperFile(): string {
  const fromSource = import.meta.url.endsWith('.ts');
  const file = fileURLToPath(new URL(fromSource ? '../../dist/src/local/keeper.js' : './keeper.js', import.meta.url));
  if (!existsSync(file)) throw new Error(`${file} is missing: run "npm run build" first`);
  return file;
}
