/** A worker process of a run, as its parent has it. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Env } from '../../src/config.js';
import { within } from '../../src/lifecycle.js';
import { DIE_AT, type Step } from './app.js';
import { type FromWorker, SERVES_API, type ToWorker, WORKS_ON, type WorkerFigures } from './worker-messages.js';

export interface WorkerOptions {
  /** Dies at this step, at the first job that comes to it. */
  readonly dieAt?: Step;
  readonly queues?: readonly ('crawl' | 'embedding')[];
  /** Serves the whole API, and not health and metrics alone. */
  readonly api?: boolean;
  readonly env?: Env;
  /** Of Node itself, such as `--import` with what is loaded before everything else. */
  readonly execArgv?: readonly string[];
  /** Gets each line that it logs; `LOG_LEVEL` of `env` says which there are. */
  readonly onLine?: (line: string) => void;
}

const WORKER = fileURLToPath(new URL('./worker.js', import.meta.url));
const START_MS = 180_000;
const LATE = Symbol('late');

export class WorkerProcess {
  /** Resolves when it takes jobs, with where it serves its health; rejects when it ends before that. */
  readonly working: Promise<string>;
  /** Exit code, or the signal that ended it; everything that it said is heard by then. */
  readonly ended: Promise<number | string>;
  /** The text of its metrics when it had stopped; `undefined` of one that was killed. */
  lastMetrics: string | undefined;

  constructor(private readonly child: ChildProcess) {
    const silent = once(child, 'disconnect');
    this.ended = once(child, 'exit').then(async ([code, signal]) => {
      await silent;
      return code ?? signal;
    });
    const said = new Promise<string>((resolve) => {
      child.on('message', (message: FromWorker) => {
        if (message.say === 'working') resolve(message.address);
        if (message.say === 'stopped') this.lastMetrics = message.metrics;
      });
    });
    const died = this.ended.then((end) => {
      throw new Error(`a worker process ended (${end}) before it worked`);
    });
    this.working = within(START_MS, Promise.race([said, died]), LATE).then((address) => {
      if (address === LATE) throw new Error(`a worker process did not work within ${START_MS} ms`);
      return address;
    });
    this.working.catch(() => undefined); // heard by whoever waits
  }

  static spawn(env: Env, { dieAt, queues, api, env: own, execArgv = [], onLine }: WorkerOptions): WorkerProcess {
    const child = fork(WORKER, {
      env: {
        PATH: process.env.PATH,
        ...env,
        ...own,
        ...(dieAt ? { [DIE_AT]: dieAt } : {}),
        ...(queues ? { [WORKS_ON]: queues.join() } : {}),
        ...(api ? { [SERVES_API]: 'yes' } : {}),
      },
      execArgv: [...execArgv],
      stdio: ['ignore', onLine ? 'pipe' : 'inherit', 'inherit', 'ipc'],
    });
    if (onLine && child.stdout) createInterface(child.stdout).on('line', onLine);
    return new WorkerProcess(child);
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  get isAlive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.ended;
  }

  /** SIGTERM. @returns how it ended */
  async stop(): Promise<number | string> {
    this.child.kill('SIGTERM');
    return this.ended;
  }

  /** What it measured since the last time it was asked this. */
  figures(): Promise<WorkerFigures> {
    return this.#told('figures');
  }

  /** The text of its metrics. */
  async metrics(): Promise<string> {
    return (await this.#told('metrics')).metrics;
  }

  async rssBytes(): Promise<number> {
    return (await this.#told('metrics')).rssBytes;
  }

  async #told(question: ToWorker): Promise<WorkerFigures> {
    const told = new Promise<WorkerFigures>((resolve, reject) => {
      const hear = (message: FromWorker) => {
        if (message.say !== 'figures') return;
        this.child.off('message', hear);
        resolve(message.figures);
      };
      this.child.on('message', hear);
      this.child.send(question, (error) => error && reject(error));
    });
    const ended = this.ended.then((end) => {
      throw new Error(`a worker process ended (${end}) when it was asked for ${question}`);
    });
    return Promise.race([told, ended]);
  }
}
