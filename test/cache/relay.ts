/**
 * A TCP relay in front of a real server. It counts round trips (how often the client spoke after being answered), and
 * can hold the answers back, so that a test decides what happens between a question and its answer.
 *
 * What the cache asks on its own account counts for nothing: PostgreSQL for changes (statements named `coherence…`) and
 * for the time (`clock`), Redis for its memory (`INFO`), and either of them to be let in.
 */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

export class Relay implements AsyncDisposable {
  /** Since `reset`. A client that sends several commands before it reads costs one. */
  roundTrips = 0;
  #said: Buffer[] = [];
  #held: (() => void)[] | null = null;
  #heldBack = '';
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(private readonly target: URL) {
    this.#server = createServer((client) => this.#accept(client));
  }

  static async to(url: string): Promise<Relay> {
    const relay = new Relay(new URL(url));
    relay.#server.listen(0, '127.0.0.1');
    await once(relay.#server, 'listening');
    return relay;
  }

  /** The server's URL, by way of this relay. */
  get url(): string {
    const url = new URL(this.target);
    url.hostname = '127.0.0.1';
    url.port = String((this.#server.address() as AddressInfo).port);
    return url.href;
  }

  reset(): void {
    this.roundTrips = 0;
    this.#said = [];
  }

  /** How often the clients have said `words` since `reset`. */
  said(words: string): number {
    return Buffer.concat(this.#said).toString('latin1').split(words).length - 1;
  }

  /** Lets no answer through until `letGo`, or none to a question that has `words` in it. */
  hold(words = ''): void {
    this.#held = [];
    this.#heldBack = words;
  }

  /** Whether the server has answered something that is held back. */
  get holds(): boolean {
    return (this.#held?.length ?? 0) > 0;
  }

  letGo(): void {
    const held = this.#held ?? [];
    this.#held = null;
    for (const pass of held) pass();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #accept(client: Socket): void {
    const server = connect(Number(this.target.port), this.target.hostname);
    let answered = true;
    let question: Buffer = Buffer.alloc(0);
    client.on('data', (chunk: Buffer) => {
      question = chunk;
      if (isBackground(chunk)) return;
      this.#said.push(chunk);
      if (answered) this.roundTrips += 1;
      answered = false;
    });
    client.pipe(server);
    server.on('data', (chunk) => {
      answered = true;
      if (this.#held && question.includes(this.#heldBack)) this.#held.push(() => client.write(chunk));
      else client.write(chunk);
    });
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      this.#sockets.add(from);
      from.on('error', () => undefined); // the other side is told by `close`
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
    }
  }
}

const INFO = '*1\r\n$4\r\ninfo\r\n';

/** PostgreSQL's clients introduce themselves by a message without a type, then answer to its questions by `p`. */
function isBackground(chunk: Buffer): boolean {
  const introduction = chunk[0] === 0 || chunk[0] === 0x70;
  const clock = chunk.includes('\0clock\0');
  return introduction || clock || chunk.includes('coherence') || chunk.equals(Buffer.from(INFO));
}
