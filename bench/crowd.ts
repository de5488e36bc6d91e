/**
 * Three worker processes, fifty fast hosts, and beside them hosts that are slow, that have had enough, and that want to be
 * left alone: what the fast ones lose by the others, and that no host sees more than it bears, as it counts itself.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import sharp from 'sharp';
import type { App } from '../src/app.js';
import type { StackEnv } from '../src/local/running-stack.js';
import { type CrawlPayload, crawlQueue } from '../src/queues/crawl.js';
import { quantileOf, type Row, toRow } from './compare.js';

const WORKERS = 3;
const AT_ONCE = 4;
const SLOW_MS = 5_000;
const RETRY_AFTER_S = 2;
/** Requests that are on their way when a host says that it has enough are answered like that too. */
const HEARD_MS = 500;
const CRAWL_DELAY_S = 1;
/** Over what time gaps are added up: from its permit to the host a request may take a moment, and the next one less. */
const GAPS_OVER_MS = 1_000;
/** Less by a part of it is no haste, but a worker or the host that was held up. */
const SLACK = 0.5;
/** Times that the fast hosts are measured alone and then among the others. */
const TURNS = 3;
const FAST_HOSTS = 50;
/** Images of each of the others. */
const OTHER_IMAGES = 20;
const HOSTS = { slow: 10, tired: 10, shy: 1 };

/** What ends the fast hosts' rate. */
interface Pace {
  readonly name: string;
  /** Between two requests to a host. */
  readonly gapMs: number;
  /** Of each fast host. */
  readonly images: number;
}

const PACES: readonly Pace[] = [
  { name: 'processors full', gapMs: 20, images: 30 },
  { name: 'each asked once a second', gapMs: 1_000, images: 20 },
];

type Manner = 'fast' | 'slow' | 'tired' | 'shy';

/** A host with an address of its own on loopback. */
class Host {
  /** When images were asked for, in the present turn. */
  readonly begun: number[] = [];
  /** When anything was asked for, robots.txt included, from the start. */
  readonly asked: number[] = [];
  /** Whether it answers at once, whatever its manner: so that what is left over ends. */
  eased = false;
  /** How often it was asked while it was to be left alone. */
  intrusions = 0;
  /** From the moment on at which everybody must have heard that it has enough. */
  #quiet = { from: 0, until: 0 };
  inFlight = 0;
  most = 0;
  readonly #server: Server;

  private constructor(
    readonly address: string,
    readonly manner: Manner,
    picture: Buffer,
  ) {
    this.#server = createServer(async (request, response) => {
      this.asked.push(performance.now());
      this.most = Math.max(this.most, ++this.inFlight);
      response.on('close', () => this.inFlight--);
      if (request.url === '/robots.txt') {
        const rules = manner === 'shy' ? `User-agent: *\nCrawl-delay: ${CRAWL_DELAY_S}\n` : '';
        return void response.end(rules);
      }
      this.begun.push(performance.now());
      if (this.eased) return void response.end(picture);
      if (manner === 'tired') return void this.#refuse(response);
      if (manner === 'slow') await pause(SLOW_MS);
      // Bytes of its own make an image of its own.
      response.end(Buffer.concat([picture, Buffer.from(`${address}${request.url}`)]));
    });
  }

  static async start(address: string, manner: Manner, picture: Buffer): Promise<Host> {
    const host = new Host(address, manner, picture);
    host.#server.listen(0, address);
    await once(host.#server, 'listening');
    return host;
  }

  urls(count: number, run: string): string[] {
    const { port } = this.#server.address() as AddressInfo;
    return Array.from({ length: count }, (_, n) => `http://${this.address}:${port}/${run}-${n}.png`);
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  #refuse(response: ServerResponse): void {
    const now = performance.now();
    const { from, until } = this.#quiet;
    if (now > from && now < until - HEARD_MS / 5) this.intrusions += 1;
    this.#quiet = { from: now < until ? from : now + HEARD_MS, until: now + RETRY_AFTER_S * 1_000 };
    response.writeHead(429, { 'retry-after': String(RETRY_AFTER_S) }).end();
  }
}

export async function crowdRows(app: App, env: StackEnv, storage: string): Promise<Row[]> {
  const picture = await sharp({ create: { width: 320, height: 240, channels: 3, background: '#567' } })
    .png()
    .toBuffer();
  const rows: Row[] = [];
  for (const [n, pace] of PACES.entries())
    rows.push(await rowOf(app, { ...env, STORAGE_URL: `file:${storage}` }, picture, pace, n));
  return rows;
}

async function rowOf(app: App, env: NodeJS.ProcessEnv, picture: Buffer, pace: Pace, n: number): Promise<Row> {
  const hosts = (manner: Manner, count: number, net: number) =>
    Promise.all(Array.from({ length: count }, (_, i) => Host.start(`127.${n}.${net}.${i + 1}`, manner, picture)));
  const [fast, slow, tired, shy] = await Promise.all([
    hosts('fast', FAST_HOSTS, 1),
    hosts('slow', HOSTS.slow, 2),
    hosts('tired', HOSTS.tired, 3),
    hosts('shy', HOSTS.shy, 4),
  ]);
  const others = [...slow, ...tired, ...shy];
  const workers = Array.from({ length: WORKERS }, () => startWorker(env, pace));
  const run = (name: string) => ratesOf(app, fast, [...slow, ...shy], { run: `${n}-${name}`, images: pace.images });
  try {
    await run('warm');
    const alone: Rates[] = [];
    const together: Rates[] = [];
    for (let turn = 0; turn < TURNS; turn++) {
      alone.push(await run(`alone-${turn}`));
      for (const host of others) host.begun.length = 0;
      await enqueue(
        app,
        'crowd',
        [slow, tired, shy].flatMap((those) => those.flatMap((host) => host.urls(OTHER_IMAGES, `turn-${turn}`))),
      );
      while (!others.every(({ begun }) => begun.length > 0)) await pause(50);
      together.push(await run(`together-${turn}`));
      await drained(app, others);
    }
    check([...fast, ...others], pace);
    const median = (rates: readonly Rates[], which: keyof Rates) =>
      quantileOf(
        rates.map((rate) => rate[which]),
        0.5,
      );
    const row = toRow(
      {
        work: `images of 50 fast hosts, 3 worker processes, with 21 slow or busy hosts beside; ${pace.name}`,
        target: 0.85,
      },
      { ours: median(together, 'fast'), raw: median(alone, 'fast') },
      { better: 'higher', unit: '1/s' },
    );
    return { ...row, also: { 'images of the others meanwhile, 1/s': median(together, 'others') } };
  } finally {
    for (const worker of workers) worker.kill('SIGKILL');
    for (const host of [...fast, ...others]) host.close();
  }
}

/** Images a second. */
interface Rates {
  readonly fast: number;
  /** Of those hosts beside them that give images too. */
  readonly others: number;
}

/** From the first request to a fast host to the last. */
async function ratesOf(
  app: App,
  fast: readonly Host[],
  others: readonly Host[],
  { run, images }: { run: string; images: number },
): Promise<Rates> {
  for (const host of fast) host.begun.length = 0;
  await enqueue(
    app,
    'fast',
    fast.flatMap((host) => host.urls(images, run)),
  );
  while (!fast.every(({ begun }) => begun.length >= images)) await pause(20);
  const times = fast.flatMap(({ begun }) => begun);
  const [from, to] = [Math.min(...times), Math.max(...times)];
  const meanwhile = others.flatMap(({ begun }) => begun).filter((at) => at > from && at < to);
  const perSecond = (count: number) => (1_000 * count) / (to - from);
  return { fast: perSecond(times.length - 1), others: perSecond(meanwhile.length) };
}

async function drained(app: App, others: readonly Host[]): Promise<void> {
  for (const host of others) host.eased = true;
  const left = () => app.queues.get('crawl').getJobCountByTypes('waiting', 'prioritized', 'active', 'delayed');
  while ((await left()) > 0) await pause(100);
  for (const host of others) host.eased = false;
}

async function enqueue(app: App, tenantId: string, urls: readonly string[]): Promise<void> {
  await app.queues.enqueue(
    crawlQueue,
    urls.map((url): CrawlPayload => ({ v: 1, tenantId, url })),
  );
}

function startWorker(env: NodeJS.ProcessEnv, { gapMs }: Pace): ChildProcess {
  const settings = {
    ...env,
    PATH: process.env.PATH,
    FETCH_ALLOW: '127.0.0.0/8:*',
    FETCH_HOST_CONCURRENCY: String(AT_ONCE),
    FETCH_HOST_GAP_MS: String(gapMs),
    CRAWL_CONCURRENCY: '32',
    METRICS_PORT: '0',
    LOG_LEVEL: 'error',
  };
  return spawn(process.execPath, ['dist/src/cli.js', 'worker', 'crawl'], {
    env: settings,
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

function check(hosts: readonly Host[], pace: Pace): void {
  for (const { address, manner, most, intrusions, asked } of hosts) {
    if (most > AT_ONCE) throw new Error(`${address} (${manner}) had ${most} requests at once, at most ${AT_ONCE}`);
    if (intrusions > 0) throw new Error(`${address} was asked ${intrusions} times while it was to be left alone`);
    const gapMs = manner === 'shy' ? CRAWL_DELAY_S * 1_000 : pace.gapMs;
    const gaps = Math.ceil(GAPS_OVER_MS / gapMs);
    const spans = asked.slice(gaps).map((at, i) => at - (asked[i] as number));
    const shortest = Math.min(...spans);
    if (shortest < SLACK * gaps * gapMs)
      throw new Error(`${address} (${manner}) was asked ${gaps} times more within ${shortest} ms`);
  }
}
