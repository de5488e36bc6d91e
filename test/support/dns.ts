/**
 * A name server on loopback (UDP, RFC 1035 and 3596, as little of them as a resolver asks for) whose answers may change
 * from one question to the next. Its `lookup` is a `Lookup` for a Fetcher; everything has TTL 0.
 */
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import type { LookupAddress } from 'node:dns';
import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { isIPv6 } from 'node:net';
import ipaddr from 'ipaddr.js';
import { bothFamilies } from '../../src/crawl/names.js';

/** How a question fails: with a response code, or without a response. */
export type DnsFailure = 'servfail' | 'nxdomain' | 'refused' | 'silence';

export interface Question {
  name: string;
  type: 'A' | 'AAAA';
}

type Rounds = { rounds: readonly string[][]; asked: Record<Question['type'], number> };

const HEADER_BYTES = 12;
const TYPES = new Map<number, Question['type']>([
  [1, 'A'],
  [28, 'AAAA'],
]);
const RESPONSE_CODES = { servfail: 2, nxdomain: 3, refused: 5 } as const;

export class NameServer implements AsyncDisposable {
  /** Questions in the order they came. */
  readonly questions: Question[] = [];
  readonly #names = new Map<string, Rounds | DnsFailure>();
  readonly #silent = new Set<string>();
  readonly #socket: Socket = createSocket('udp4');
  // A question is repeated by nobody: `questions` holds what was asked.
  readonly #resolver = new Resolver({ timeout: 60_000, tries: 1 });

  async listen(): Promise<this> {
    this.#socket.on('message', (message, from) => this.#reply(message, from));
    this.#socket.bind(0, '127.0.0.1');
    await once(this.#socket, 'listening');
    this.#resolver.setServers([this.address]);
    return this;
  }

  /** Address and port, as `Resolver.setServers` takes it. */
  get address(): string {
    return `127.0.0.1:${this.#socket.address().port}`;
  }

  /**
   * Lets a name have addresses of both families. With several lists, each look-up gets the next of them, and the last
   * one from then on; a list without an address of a family means that the name has none of it.
   */
  answer(name: string, ...rounds: readonly string[][]): void {
    this.#names.set(name, { rounds, asked: { A: 0, AAAA: 0 } });
  }

  fail(name: string, failure: DnsFailure): void {
    this.#names.set(name, failure);
  }

  /** Keeps silent to questions for one family. */
  silence(name: string, type: Question['type']): void {
    this.#silent.add(`${type} ${name}`);
  }

  readonly lookup = (host: string): Promise<LookupAddress[]> => bothFamilies(this.#resolver, host);

  /** How often a name was looked up. */
  countOf(name: string): number {
    return this.questions.filter((question) => question.name === name && question.type === 'A').length;
  }

  async close(): Promise<void> {
    this.#resolver.cancel();
    const closed = once(this.#socket, 'close');
    this.#socket.close();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #reply(message: Buffer, from: RemoteInfo): void {
    const { name, type, end } = readQuestion(message);
    const family = TYPES.get(type);
    if (family) this.questions.push({ name, type: family });
    const entry = this.#names.get(name) ?? 'nxdomain';
    if (entry === 'silence' || this.#silent.has(`${family} ${name}`)) return;
    const code = typeof entry === 'string' ? RESPONSE_CODES[entry] : 0;
    const addresses = typeof entry === 'object' && family ? nextRound(entry, family) : [];
    const question = message.subarray(HEADER_BYTES, end);
    const reply = Buffer.concat([header(message, code, addresses.length), question, ...addresses.map(record)]);
    this.#socket.send(reply, from.port, from.address);
  }
}

/** A name server that listens; hold it with `await using`. */
export function startNameServer(): Promise<NameServer> {
  return new NameServer().listen();
}

function nextRound({ rounds, asked }: Rounds, family: Question['type']): string[] {
  const round = rounds[Math.min(asked[family], rounds.length - 1)] ?? [];
  asked[family] += 1;
  return round.filter((address) => isIPv6(address) === (family === 'AAAA'));
}

/** The first question, and where it ends. */
function readQuestion(message: Buffer): { name: string; type: number; end: number } {
  const labels: string[] = [];
  let at = HEADER_BYTES;
  for (let length = message.readUInt8(at); length > 0; length = message.readUInt8(at)) {
    labels.push(message.toString('latin1', at + 1, at + 1 + length).toLowerCase());
    at += 1 + length;
  }
  return { name: labels.join('.'), type: message.readUInt16BE(at + 1), end: at + 5 };
}

/** A response with the question's id: recursion desired and available, one question, some answers. */
function header(question: Buffer, code: number, answers: number): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  question.copy(bytes, 0, 0, 2);
  bytes.writeUInt16BE(0x8180 | code, 2);
  bytes.writeUInt16BE(1, 4);
  bytes.writeUInt16BE(answers, 6);
  return bytes;
}

/** An address of the name that was asked for (a pointer to it), class IN, TTL 0. */
function record(address: string): Buffer {
  const data = Buffer.from(ipaddr.parse(address).toByteArray());
  const fixed = Buffer.from([0xc0, HEADER_BYTES, 0, data.length === 4 ? 1 : 28, 0, 1, 0, 0, 0, 0, 0, data.length]);
  return Buffer.concat([fixed, data]);
}
