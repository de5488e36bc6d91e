/** The process of a job that runs alone: it does what its parent says, once, and ends with it. */
import { fileURLToPath } from 'node:url';
import { type App, connect, type Overrides } from '../src/app.js';
import { type Config, toConfig } from '../src/config.js';
import { DeferredError } from '../src/errors.js';
import type { Events } from '../src/events.js';
import { createBuiltInEngine } from '../src/faces/builtin.js';
import { Closer } from '../src/lifecycle.js';
import { type Assignment, fromWire, type ToChild, type ToParent, toWire } from './alone-wire.js';
import { workOf } from './jobs.js';
import type { Run } from './run.js';

/** Serves the parent of this process; `open` makes the app as the parent's own was made. */
export function serveParent(open: (config: Config, overrides: Overrides) => App = connect): void {
  // The parent decides when to stop; and where it dies, the job is somebody else's.
  process.on('SIGINT', () => undefined);
  process.on('SIGTERM', () => undefined);
  process.on('disconnect', () => process.exit(1));
  const stop = new AbortController();
  const answers = new Map<number, (error: Error | null) => void>();
  let settled: () => Promise<void> = async () => undefined;
  process.on('message', async (message: ToChild) => {
    if (message.do === 'stop') {
      stop.abort(fromWire(message.why));
    } else if (message.do === 'go on') {
      answers.get(message.call)?.(message.error && fromWire(message.error));
    } else if (message.do === 'settle') {
      await settled().catch(() => undefined);
      process.exit();
    } else {
      settled = await serve(message.assignment, open, stop.signal, answers);
    }
  });
  tell({ say: 'ready' });
}

function tell(message: ToParent): Promise<void> {
  return new Promise((resolve) => {
    process.send?.(message, () => resolve());
  });
}

/** @returns what is to be done once the job is back in its queue; the process is over where nothing is. */
async function serve(
  assignment: Assignment,
  open: (config: Config, overrides: Overrides) => App,
  signal: AbortSignal,
  answers: Map<number, (error: Error | null) => void>,
): Promise<() => Promise<void>> {
  const { env, overrides, queue, payload, ...given } = assignment;
  const closer = new Closer();
  const remember = (fact: Readonly<Record<string, unknown>>) =>
    new Promise<void>((resolve, reject) => {
      const call = answers.size;
      answers.set(call, (error) => (error ? reject(error) : resolve()));
      tell({ say: 'remember', call, fact });
    });
  const run: Run = { ...given, remember, signal };
  try {
    const app = closer.add('app', open(toConfig(env), overrides), (one) => one.close());
    const engine = app.engine ?? closer.add('face engine', createBuiltInEngine({ threads: 1 }), (one) => one.close());
    const { perform } = workOf(queue, app, { events: told(app.events), engine, closer });
    await tell({ say: 'done', outcome: await perform(payload, run) });
  } catch (error) {
    await tell({ say: 'failed', error: toWire(error) });
    if (error instanceof DeferredError) return error.settled;
  }
  await closer.close().catch(() => undefined);
  process.exit();
}

/** What happens is counted by the parent, whose counters are scraped. */
function told(events: Events): Events {
  return new Proxy(events, {
    get:
      (_, name) =>
      (...args: unknown[]) =>
        tell({ say: 'event', name: String(name), args }),
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) serveParent();
