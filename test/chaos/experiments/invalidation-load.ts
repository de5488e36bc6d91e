/** What is read and written while tenants are invalidated. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { sha256 } from '../../../src/kinds/identity.js';
import { must } from '../experiment.js';
import type { Lab } from '../lab.js';
import type { FromReader, ToReader } from '../reader-messages.js';
import { ACTOR, SEED } from '../reader-messages.js';

/** Entries that are asked for, or written, in one go. */
export const AT_ONCE = 500;
const READER = fileURLToPath(new URL('../reader.js', import.meta.url));

/** A process that reads on and on, and remembers what it was given last. */
export class ReaderProcess implements AsyncDisposable {
  readonly #child: ChildProcess;
  /** Rejects when it ends, which it does not do by itself. */
  readonly #death: Promise<never>;

  constructor({ env, options }: Lab, actor: string) {
    const chance = { [SEED]: String(options.seed), [ACTOR]: actor };
    this.#child = fork(READER, { env: { PATH: process.env.PATH, ...env, ...chance } });
    this.#child.setMaxListeners(100);
    this.#death = once(this.#child, 'exit').then(([code, signal]) => {
      throw new Error(`a reader process ended (${signal ?? code})`);
    });
    this.#death.catch(() => undefined); // heard by whoever waits for an answer
  }

  read(tenants: readonly string[], hashes: readonly string[]): void {
    this.#tell({ do: 'read', tenants, hashes });
  }

  async invalidate(tenantId: string): Promise<number | string> {
    this.#tell({ do: 'invalidate', tenantId });
    const answer = await this.#heard((message) => message.say === 'invalidated' && message.tenantId === tenantId);
    return (answer as { count: number | string }).count;
  }

  async seen(): Promise<{ last: Readonly<Record<string, number>>; reads: number }> {
    this.#tell({ do: 'tell' });
    return (await this.#heard(({ say }) => say === 'seen')) as FromReader & { say: 'seen' };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
  }

  #tell(message: ToReader): void {
    this.#child.send(message);
  }

  /** Listens until then: of two messages that come together, one who listened once would miss the second. */
  #heard(meant: (message: FromReader) => boolean): Promise<FromReader> {
    const heard = new Promise<FromReader>((resolve) => {
      const hear = (message: FromReader) => {
        if (!meant(message)) return;
        this.#child.off('message', hear);
        resolve(message);
      };
      this.#child.on('message', hear);
    });
    return Promise.race([heard, this.#death]);
  }
}

/** The entries of a run: as many of each tenant, under the same hashes. */
export class Entries {
  readonly hashes: readonly string[];

  constructor(
    private readonly lab: Lab,
    count: number,
  ) {
    this.hashes = Array.from({ length: count }, (_, i) => sha256(`entry ${i}`));
  }

  async write(tenantId: string): Promise<void> {
    const { cache } = this.lab.app;
    for (let from = 0; from < this.hashes.length; from += AT_ONCE) {
      const some = this.hashes.slice(from, from + AT_ONCE);
      const kept = await Promise.all(some.map((hash) => cache.cachePerceptualHash(hash, tenantId, valueOf(tenantId))));
      must(kept.every(Boolean), `an entry of ${tenantId} was not kept`);
    }
  }

  /** How many of them the library has, in this process. */
  async found(tenantId: string): Promise<number> {
    let found = 0;
    for (let from = 0; from < this.hashes.length; from += AT_ONCE) {
      const some = this.hashes.slice(from, from + AT_ONCE);
      const values = await this.lab.app.cache.getCachedPerceptualHashBatch(some, tenantId);
      must(
        values.every((value) => value === null || value === valueOf(tenantId)),
        `I5 ${tenantId} was given what is another's`,
      );
      found += values.filter((value) => value !== null).length;
    }
    return found;
  }
}

function valueOf(tenantId: string): string {
  return sha256(tenantId).slice(0, 16);
}
