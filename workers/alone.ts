/**
 * Jobs under which workers died. Whoever killed those workers, the job goes on alone in a process of its own: should it
 * be the killer, it takes nobody with it. Only a child that dies while its worker lives counts against its job, and the
 * third one ends it, as `poison`.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { App } from '../src/app.js';
import { DeferredError, PoisonError } from '../src/errors.js';
import type { QueueName } from '../src/queues/contract.js';
import { fromWire, type ToChild, type ToParent, toWire } from './alone-wire.js';
import type { Run } from './run.js';

/**
 * A job whose worker died this often runs alone. BullMQ counts runs whose lock ended: an outage of the queue's store may be
 * among them, and then a job runs alone for nothing, which costs it a second of starting.
 */
export const DEATHS_BEFORE_ALONE = 2;
const DEATHS_OF_POISON = 3;
/** Between two tries: what killed the child (memory that was short, say) may pass. */
const NEXT_TRY_MS = 1_000;

interface Outcome {
  readonly outcome: string;
}

export class Alone {
  readonly #children = new Set<ChildProcess>();

  constructor(private readonly app: App) {}

  /**
   * Runs the job as the worker itself would, one at a time: a crowd of processes could use up the memory of the machine, and
   * would die for that.
   *
   * @throws what the job throws; `PoisonError`; `DeferredError` where another one runs
   */
  async run(queue: QueueName, payload: unknown, run: Run): Promise<Outcome> {
    if (this.#children.size > 0) throw new DeferredError(NEXT_TRY_MS, 'another job runs alone');
    const deaths = typeof run.remembered.childDeaths === 'number' ? run.remembered.childDeaths : 0;
    try {
      return await this.#inChild(queue, payload, run);
    } catch (error) {
      if (!(error instanceof ChildDiedError)) throw error;
      run.signal.throwIfAborted(); // we ended it ourselves
      const last = deaths + 1 >= DEATHS_OF_POISON;
      // Who retries a poisoned job gives it all of its chances again.
      await run.remember({ childDeaths: last ? 0 : deaths + 1 });
      if (!last) throw new DeferredError(NEXT_TRY_MS, `the process that ran it alone died (${error.how})`);
      throw new PoisonError(`it killed the process that ran it alone, ${DEATHS_OF_POISON} times (${error.how})`);
    }
  }

  /** Ends what still runs. */
  close(): void {
    for (const child of this.#children) child.kill('SIGKILL');
  }

  #inChild(queue: QueueName, payload: unknown, run: Run): Promise<Outcome> {
    const child = this.#fork();
    const tell = (message: ToChild) => {
      if (child.connected) child.send(message, () => undefined); // its end is told by `exit`
    };
    const stop = () => tell({ do: 'stop', why: toWire(run.signal.reason) });
    run.signal.addEventListener('abort', stop, { once: true });
    return new Promise<Outcome>((resolve, reject) => {
      let ready = false;
      child.on('message', (message: ToParent) => {
        if (message.say === 'ready') {
          ready = true;
          tell({ do: 'run', assignment: this.#assignment(queue, payload, run) });
          if (run.signal.aborted) stop();
        } else if (message.say === 'event') {
          this.#report(message.name, message.args);
        } else if (message.say === 'remember') {
          const answer = (error: unknown) =>
            tell({ do: 'go on', call: message.call, error: error === null ? null : toWire(error) });
          run.remember(message.fact).then(() => answer(null), answer);
        } else if (message.say === 'done') {
          resolve(message.outcome);
        } else if (message.say === 'failed') {
          reject(this.#failure(fromWire(message.error), child, tell));
        }
      });
      const ended = () => {
        this.#children.delete(child);
        run.signal.removeEventListener('abort', stop);
      };
      child.once('error', (error) => {
        if (!child.pid) ended(); // one that was never born has no exit
        reject(error);
      });
      child.once('exit', (code, signal) => {
        ended();
        const how = signal ?? `exit code ${code}`;
        reject(ready ? new ChildDiedError(how) : notStarted(how, signal !== null));
      });
    });
  }

  #fork(): ChildProcess {
    const file = fileURLToPath(this.app.overrides.aloneIn ?? compiledChild());
    if (!existsSync(file)) throw new Error(`${file} is missing: run "npm run build"`);
    // Like ours, its log goes to standard output. It is not asked to inspect: the port is taken.
    const execArgv = process.execArgv.filter((argument) => !argument.startsWith('--inspect'));
    const child = fork(file, { serialization: 'advanced', execArgv });
    this.#children.add(child);
    return child;
  }

  #assignment(queue: QueueName, payload: unknown, { id, jobId, deaths, isRepeat, isLast, remembered }: Run) {
    const { cachePrefix, queueNamespace, retryBaseMs } = this.app.overrides;
    const names = {
      ...(cachePrefix === undefined ? {} : { cachePrefix }),
      ...(queueNamespace === undefined ? {} : { queueNamespace }),
      ...(retryBaseMs === undefined ? {} : { retryBaseMs }),
    };
    const facts = { id, jobId, deaths, isRepeat, isLast, remembered };
    return { env: this.app.config.env, overrides: names, queue, payload, ...facts };
  }

  /** In the child's name: its own counters are scraped by nobody. */
  #report(name: string, args: readonly unknown[]): void {
    const report = this.app.events[name as keyof App['events']] as (...args: unknown[]) => void;
    report.call(this.app.events, ...args);
  }

  /** A job that was put off may have something to do once it is back in its queue; its process waits for that. */
  #failure(error: Error, child: ChildProcess, tell: (message: ToChild) => void): Error {
    if (!(error instanceof DeferredError)) return error;
    const settled = () => {
      const done = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      tell({ do: 'settle' });
      return child.exitCode === null && child.signalCode === null ? done : Promise.resolve();
    };
    return new DeferredError(error.delayMs, error.message, settled);
  }
}

/** Who was killed while it loaded knows nothing of its job: the job spends no attempt. */
function notStarted(how: string, isKilled: boolean): Error {
  const what = `the process that runs a job alone did not start (${how})`;
  return isKilled ? new DeferredError(NEXT_TRY_MS, what) : new Error(what);
}

class ChildDiedError extends Error {
  constructor(readonly how: string) {
    super(how);
  }
}

/** Processes run compiled code only: beside this file, or in `dist/` while this file itself runs as TypeScript (tests). */
function compiledChild(): URL {
  const compiled = !import.meta.url.endsWith('.ts');
  return new URL(compiled ? './alone-child.js' : '../dist/workers/alone-child.js', import.meta.url);
}
