/**
 * Opens the sockets: resolves a name once, checks every address that it got, and connects to those very addresses. A
 * name that answers differently a moment later (DNS rebinding) is not asked again.
 */
import type { LookupAddress } from 'node:dns';
import { once } from 'node:events';
import { connect as connectTcp, isIP, type LookupFunction, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { buildConnector } from 'undici';
import { RejectedError, RetryableError } from '../errors.js';
import type { AddressPolicy } from './address.js';
import { Deadline, orAborted } from './deadline.js';
import type { Lookup } from './names.js';

export interface ConnectorOptions {
  policy: AddressPolicy;
  lookup: Lookup;
  /** Milliseconds for name, TCP and TLS together. */
  timeoutMs: number;
  /**
   * Bytes of one response at most, as they come over the wire. It has to leave room for headers and chunk sizes beside the
   * body: whoever reads the body counts that.
   */
  maxWireBytes: number;
  /** PEM of the certificate authorities to trust instead of Node's own. */
  ca?: string | undefined;
}

type Target = Pick<buildConnector.Options, 'hostname' | 'protocol' | 'port'>;

/** The peer has closed the connection, by FIN or by RST. */
const CLOSED_CODES = new Set<unknown>(['UND_ERR_SOCKET', 'ECONNRESET', 'EPIPE']);

/** How long one address may keep silent before the next is tried (RFC 8305 section 5, with room for a slow link). */
const NEXT_ADDRESS_AFTER_MS = 500;

export class PinnedConnector {
  readonly #options: ConnectorOptions;
  /** Requests that wait for headers, and connections being opened, by origin. */
  readonly #origins = new Map<string, { waiting: number; opening: Set<Deadline> }>();
  /** Errors of connections that had brought an answer before. */
  readonly #ofKept = new WeakSet<object>();

  constructor(options: ConnectorOptions) {
    this.#options = options;
  }

  /** The `connect` of an undici dispatcher. */
  readonly connect: buildConnector.connector = (target, callback) => {
    this.#openWithin(target).then(
      (socket) => {
        callback(null, socket);
        // Later, because the first listener is told of what has come already, and that has to be undici's.
        setImmediate(() => this.#watch(socket));
      },
      (error) => callback(error, null),
    );
  };

  /**
   * Registers a request that may need a connection to `origin`; call what it returns once it has its headers or gave
   * up. undici goes on connecting for a request that was aborted; with the last one gone, so does the connecting.
   */
  enter(origin: string): () => void {
    const entry = this.#origins.get(origin) ?? { waiting: 0, opening: new Set() };
    this.#origins.set(origin, entry);
    entry.waiting += 1;
    return () => {
      entry.waiting -= 1;
      if (entry.waiting > 0) return;
      this.#origins.delete(origin);
      for (const deadline of entry.opening) deadline.abort(givenUp());
    };
  }

  /**
   * Whether a request met this because its connection had been kept open for too long: the peer closes such a one whenever
   * it likes, without having seen what is on its way. A GET may be repeated then (RFC 9112 section 9.3.1).
   */
  isOfKept(error: unknown): boolean {
    return this.#ofKept.has(error as Error);
  }

  async #openWithin(target: buildConnector.Options): Promise<Socket> {
    const opening = this.#origins.get(`${target.protocol}//${target.host}`)?.opening;
    if (!opening) throw givenUp();
    const { timeoutMs } = this.#options;
    const late = () => new RetryableError('timeout', `${target.hostname}: no connection after ${timeoutMs} ms`);
    const deadline = new Deadline(timeoutMs, late);
    opening.add(deadline);
    try {
      return await this.#open(target, deadline.signal);
    } finally {
      deadline.clear();
      opening.delete(deadline);
    }
  }

  /**
   * Destroys the socket once a response takes too much. undici bounds headers and hands on the body; interim responses
   * (RFC 9110 section 15.2) and chunk extensions (RFC 9112 section 7.1.1) it throws away uncounted, gigabytes of them. And remembers the errors for `isOfKept`.
   */
  #watch(socket: Socket): void {
    const { maxWireBytes: most } = this.#options;
    let asked = 0;
    let from = 0;
    let answers = 0;
    socket.on('readable', () => {
      // Whenever something was sent, what comes is the answer to it: requests are not pipelined.
      if (socket.bytesWritten !== asked) {
        asked = socket.bytesWritten;
        from = socket.bytesRead;
        answers += 1;
      }
      if (socket.bytesRead - from > most)
        socket.destroy(new RejectedError('too-large', `more than ${most} bytes in all`));
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      // The end of a connection is readable too, and may stand for the answer that did not come.
      const isKept = answers > (socket.bytesWritten === asked ? 1 : 0);
      if (isKept && CLOSED_CODES.has(error.code)) this.#ofKept.add(error);
    });
  }

  async #open(target: Target, signal: AbortSignal): Promise<Socket> {
    const port = portOf(target);
    const addresses = await orAborted(signal, this.#resolve(target.hostname));
    for (const { address } of addresses) this.#options.policy.check(target.hostname, port, address);
    signal.throwIfAborted();
    return established(this.#dial(target, port, addresses), target.protocol, signal);
  }

  async #resolve(host: string): Promise<readonly LookupAddress[]> {
    const family = isIP(host);
    if (family !== 0) return [{ address: host, family }];
    const addresses = await this.#options.lookup(host).catch((error: NodeJS.ErrnoException) => {
      throw new RetryableError('dns', `${host}: ${error.code ?? 'lookup failed'}`, { cause: error });
    });
    if (addresses.length === 0) throw new RetryableError('dns', `${host}: no address`);
    return addresses;
  }

  #dial({ hostname, protocol }: Target, port: number, addresses: readonly LookupAddress[]): Socket {
    const where = {
      host: hostname,
      port,
      lookup: pinnedTo(addresses),
      autoSelectFamily: true,
      autoSelectFamilyAttemptTimeout: NEXT_ADDRESS_AFTER_MS,
    };
    if (protocol !== 'https:') return connectTcp(where);
    const { ca } = this.#options;
    // The certificate is checked against the name, not the address; an IP literal has no SNI (RFC 6066 section 3).
    const servername = isIP(hostname) === 0 ? hostname : '';
    return connectTls({ ...where, servername, ALPNProtocols: ['http/1.1'], ...(ca === undefined ? {} : { ca }) });
  }
}

/** The scheme's own where none is named. */
export function portOf({ protocol, port }: Pick<URL, 'protocol' | 'port'>): number {
  if (port !== '') return Number(port);
  return protocol === 'https:' ? 443 : 80;
}

/** Answers the socket's own lookup with what was checked, so that nothing resolves the name a second time. */
function pinnedTo(addresses: readonly LookupAddress[]): LookupFunction {
  return (_host, { all }, callback) => {
    const [first] = addresses;
    if (all) callback(null, [...addresses]);
    else callback(null, first?.address ?? '', first?.family);
  };
}

async function established(socket: Socket, protocol: string, signal: AbortSignal): Promise<Socket> {
  // undici attaches its own listener when it takes over; between `once` and then an error must not end the process.
  socket.on('error', () => undefined);
  try {
    await orAborted(signal, once(socket.setNoDelay(true), protocol === 'https:' ? 'secureConnect' : 'connect'));
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** Not meant to be heard: whoever asked for the connection has an error of its own by then. */
function givenUp(): RetryableError {
  return new RetryableError('connection', 'given up');
}
