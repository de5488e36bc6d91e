/** What worker processes do together, and what each part spends on an image: 1, 2 and 4 of them, on this machine. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readdir, readFile, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { Redis } from 'ioredis';
import pg from 'pg';
import sharp from 'sharp';
import { type App, connect } from '../src/app.js';
import { toConfig } from '../src/config.js';
import { migrate } from '../src/db/migrate.js';
import { readPhotograph } from '../src/demo/site.js';
import type { LocalStack } from '../src/local/stack.js';
import { createLogger } from '../src/logger.js';
import { crawlQueue } from '../src/queues/crawl.js';
import { quantileOf, type Row, timed } from './compare.js';

const PROCESSES = [1, 2, 4];
const CRAWLED = { warm: 200, images: 2_000 };
const THREADS = [1, 2];
const PHOTOGRAPHS = 30;

export interface Bench extends AsyncDisposable {
  readonly app: App;
  readonly client: pg.Client;
  readonly stack: LocalStack;
  /** Of the worker processes. */
  readonly env: Readonly<Record<string, string>>;
  readonly storage: string;
  /** URLs of as many small pictures that nobody has seen yet, each of a likeness of its own. */
  pictures(count: number): string[];
  /** The same of the demo's photographs, 1,920 pixels wide, each of three to five people. */
  photographs(count: number): string[];
}

/** In this order: where images wait for their embedding, a worker that embeds would take them for its own. */
export async function workRows(bench: Bench, folder: string): Promise<Row[]> {
  const rows = [await flushRow(folder)];
  for (const threads of THREADS) rows.push(await embeddingRow(bench, threads));
  for (const processes of PROCESSES) rows.push(await crawlRow(bench, processes));
  return [...rows, ...(await leftoverRows(bench))];
}

export async function startBench(stack: LocalStack, folder: string): Promise<Bench> {
  const database = await newDatabase(stack, 'sizing_work');
  const storage = join(folder, 'sizing');
  const redis = new URL(stack.env.REDIS_URL);
  redis.pathname = '/1';
  const env = { DATABASE_URL: database.connectionString, REDIS_URL: redis.href, STORAGE_URL: `file:${storage}` };
  const app = connect(toConfig(env), { logger: createLogger('silent') });
  const photographs = await Promise.all([1, 2, 3, 4, 5, 6].map(readPhotograph));
  const pictures = await cutOut(photographs, PROCESSES.length * CRAWLED.images + sum(PROCESSES) * CRAWLED.warm);
  const bodies: Record<string, Buffer[]> = { pictures, photographs };
  const server = createServer(({ url = '' }, response) => {
    const [, kind = '', n] = url.split('/');
    const files = bodies[kind] ?? [];
    // Bytes of its own make an image of its own.
    response.end(Buffer.concat([files[Number(n) % files.length] as Buffer, Buffer.from(url)]));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  let next = 0;
  const some = (kind: string) => (count: number) =>
    Array.from({ length: count }, () => `http://127.0.0.1:${port}/${kind}/${next++}`);
  return {
    ...{ app, client: database.client, stack, env, storage },
    ...{ pictures: some('pictures'), photographs: some('photographs') },
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await app.close();
      await database[Symbol.asyncDispose]();
    },
  };
}

/** Pictures of 320 x 240 pixels, cut out of the photographs wherever chance says. */
async function cutOut(photographs: readonly Buffer[], count: number): Promise<Buffer[]> {
  const decoded = await Promise.all(
    photographs.map((bytes) => sharp(bytes).raw().toBuffer({ resolveWithObject: true })),
  );
  const chance = (bound: number) => Math.floor(Math.random() * bound);
  const pictures: Buffer[] = [];
  for (let n = 0; n < count; n++) {
    const { data, info } = decoded[n % decoded.length] as (typeof decoded)[number];
    const { width, height, channels } = info;
    const side = 240 + chance(400);
    const region = { left: chance(width - (4 * side) / 3), top: chance(height - side) };
    const raw = { width, height, channels };
    const cut = sharp(data, { raw }).extract({ ...region, width: Math.floor((4 * side) / 3), height: side });
    pictures.push(await cut.resize(320, 240, { fit: 'fill' }).jpeg().toBuffer());
  }
  return pictures;
}

/** Images a second that so many processes crawl, and milliseconds of processor time that each part spends on one. */
async function crawlRow(bench: Bench, processes: number): Promise<Row> {
  const tenant = `crawl-${processes}`;
  await using workers = startWorkers(bench, processes, 'crawl', {});
  await enqueue(bench.app, tenant, bench.pictures(processes * CRAWLED.warm));
  await idle(bench.app, 'crawl');
  const urls = bench.pictures(CRAWLED.images);
  const spent = await startSpending(bench, workers);
  await enqueue(bench.app, tenant, urls);
  await idle(bench.app, 'crawl');
  const { seconds, also } = await spent(urls.length);
  const stored = await count(bench, 'crawl_content_cache', tenant);
  if (stored !== urls.length + processes * CRAWLED.warm) throw new Error(`${stored} images were stored, not all`);
  return told(`crawl, ${processes} processes of 16 at a time`, urls.length / seconds, '1/s', also);
}

/** Faces a second of one process with so many threads, once their models are loaded. */
async function embeddingRow(bench: Bench, threads: number): Promise<Row> {
  const tenant = `faces-${threads}`;
  {
    await using _ = startWorkers(bench, 1, 'crawl', {});
    await enqueue(bench.app, tenant, bench.photographs(PHOTOGRAPHS));
    await idle(bench.app, 'crawl');
  }
  await using workers = startWorkers(bench, 1, 'embedding', { EMBEDDING_THREADS: String(threads) });
  while ((await count(bench, 'face_embeddings_cache', tenant)) < threads) await pause(50);
  const spent = await startSpending(bench, workers);
  const before = await count(bench, 'face_embeddings_cache', tenant);
  await idle(bench.app, 'embedding');
  const images = (await count(bench, 'face_embeddings_cache', tenant)) - before;
  const { seconds, also } = await spent(images);
  const facesText = 'select avg(faces)::float8 as faces from face_embeddings_cache where tenant_id = $1';
  const { faces } = (await bench.client.query(facesText, [tenant])).rows[0];
  const work = `embedding, 1 process of ${threads} threads, faces`;
  return told(work, (faces * images) / seconds, '1/s', { imagesPerSecond: images / seconds, ...also });
}

interface Workers extends AsyncDisposable {
  readonly pids: number[];
}

/** One that fails ends the bench, which would else wait for its jobs. */
function startWorkers({ env }: Bench, processes: number, name: string, more: Record<string, string>): Workers {
  const settings = { FETCH_ALLOW: '127.0.0.1/32:*', FETCH_ROBOTS: 'ignore', FETCH_HOST_GAP_MS: '0' };
  const own = { PATH: process.env.PATH, FETCH_HOST_CONCURRENCY: '1000', METRICS_PORT: '0', LOG_LEVEL: 'error' };
  const children: ChildProcess[] = Array.from({ length: processes }, () =>
    spawn(process.execPath, ['dist/src/cli.js', 'worker', name], {
      env: { ...env, ...settings, ...own, ...more },
      stdio: ['ignore', 'ignore', 'inherit'],
    }).once('exit', (code) => {
      if (code !== 0) throw new Error(`a worker ended with ${code}`);
    }),
  );
  return {
    pids: children.map(({ pid }) => pid as number),
    [Symbol.asyncDispose]: async () => {
      const ends = children.map((child) => once(child, 'exit'));
      for (const child of children) child.kill('SIGTERM');
      await Promise.all(ends);
    },
  };
}

async function idle(app: App, queue: 'crawl' | 'embedding'): Promise<void> {
  for (;;) {
    const { waiting = 0, prioritized = 0, active = 0, delayed = 0, failed = 0 } = await app.queues.counts(queue);
    if (failed > 0) throw new Error(`${failed} jobs of ${queue} failed`);
    if (waiting + prioritized + active + delayed === 0) return;
    await pause(50);
  }
}

async function count({ client }: Bench, table: string, tenant: string): Promise<number> {
  return (await client.query(`select count(*)::int from ${table} where tenant_id = $1`, [tenant])).rows[0].count;
}

/** What is spent from here on, by whom; per image where it is a cost. */
async function startSpending({ client, stack }: Bench, workers: Workers) {
  const { pids } = stack;
  const look = async () => {
    const { rows } = await client.query(DATABASE_FIGURES);
    const [busy, ours] = await Promise.all([busyMs(), cpuMs(workers.pids)]);
    const [postgres, redis, here] = await Promise.all([[pids.postgres], [pids.redis ?? 0], [process.pid]].map(cpuMs));
    return { ms: performance.now(), busy, workers: ours, postgres, redis, here, ...rows[0] } as Record<string, number>;
  };
  const before = await look();
  return async (images: number) => {
    const after = await look();
    const spent = (name: string) => ((after[name] ?? 0) - (before[name] ?? 0)) / images;
    const [workersMs, postgresMs, redisMs, siteMs] = ['workers', 'postgres', 'redis', 'here'].map(spent) as number[];
    const known = sum([workersMs, postgresMs, redisMs, siteMs] as number[]);
    const cost = { workersMs, postgresMs, redisMs, siteMs, othersMs: spent('busy') - known } as Record<string, number>;
    const database = { walBytes: spent('wal'), commits: spent('commits'), walFlushes: spent('flushes') };
    const levels = { connections: after.connections ?? 0, workerMegabytes: (await peakBytes(workers.pids)) / 1e6 };
    return { seconds: (spent('ms') * images) / 1000, also: { ...cost, ...database, ...levels } };
  };
}

const DATABASE_FIGURES = `select (pg_current_wal_lsn() - '0/0')::float8 as wal,
  (select sum(fsyncs)::float8 from pg_stat_io where object = 'wal') as flushes,
  (select xact_commit::float8 from pg_stat_database where datname = current_database()) as commits,
  (select count(*)::float8 from pg_stat_activity where application_name = 'hybrid-cache-service') as connections`;

/** Milliseconds of processor time of these processes and of all beneath them: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html */
async function cpuMs(roots: readonly number[]): Promise<number> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const stats = await Promise.all(
    pids.map(async (pid) => {
      const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') ');
      const fields = text
        .slice(text.lastIndexOf(')') + 2)
        .split(' ')
        .map(Number);
      return { pid, parent: fields[1], ticks: sum(fields.slice(11, 15)) || 0 };
    }),
  );
  const family = new Set(roots);
  // Here this process has children of its own, which are counted elsewhere.
  const whole = !roots.includes(process.pid);
  for (let size = 0; whole && size < family.size; ) {
    size = family.size;
    for (const { pid, parent } of stats) if (parent !== undefined && family.has(parent)) family.add(pid);
  }
  return 10 * sum(stats.filter(({ pid }) => family.has(pid)).map(({ ticks }) => ticks));
}

/** Milliseconds that the machine's processors were busy, for whomever. */
async function busyMs(): Promise<number> {
  const [, user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = (await readFile('/proc/stat', 'utf8'))
    .split('\n', 1)[0]
    ?.split(/\s+/)
    .map(Number) as number[];
  return 10 * (user + nice + system + irq + softirq);
}

/** The most memory that one of these processes had. */
async function peakBytes(pids: readonly number[]): Promise<number> {
  const peaks = await Promise.all(
    pids.map(async (pid) => /VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]),
  );
  return 1024 * Math.max(...peaks.map(Number));
}

/** How long this disk takes to write a page for good. */
async function flushRow(folder: string): Promise<Row> {
  const path = join(folder, 'flush');
  const file = await open(path, 'w');
  const samples: number[] = [];
  for (let i = 0; i < 300; i++) {
    await file.write(Buffer.alloc(8_192));
    samples.push(await timed(() => file.datasync()));
  }
  await file.close();
  await rm(path);
  return told('fdatasync of 8 KB, median', quantileOf(samples, 0.5), 'ms', { p99: quantileOf(samples, 0.99) });
}

/** What stays of a crawled image beside its entries: its ended job in Redis, and its thumbnail. */
async function leftoverRows({ app, storage }: Bench): Promise<Row[]> {
  const queue = app.queues.get('crawl');
  const redis = new Redis(app.config.redisUrl ?? '');
  const jobs = await queue.getJobs(['completed'], 0, 199);
  const sizes = await Promise.all(jobs.map(({ id }) => redis.memory('USAGE', queue.toKey(String(id)))));
  redis.disconnect();
  const folder = join(storage, 'thumbnail');
  const files = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((one) => one.isFile());
  const stats = await Promise.all(files.map(({ parentPath, name }) => stat(join(parentPath, name))));
  return [
    told('Redis, a completed crawl job', sum(sizes.map(Number)) / sizes.length, 'bytes'),
    told('a thumbnail', sum(stats.map(({ size }) => size)) / stats.length, 'bytes'),
  ];
}

export function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0);
}

/** Told, not judged. */
export function told(work: string, ours: number, unit: Row['unit'], also: Row['also'] = {}): Row {
  const better = unit === '1/s' ? 'higher' : 'lower';
  return { work, ours, raw: null, ratio: null, target: null, ok: true, better, unit, peers: {}, also };
}

/** A migrated database of its own, and a connection to it that has all the time it wants. */
export async function newDatabase({ env }: LocalStack, name: string) {
  const connectionString = env.DATABASE_URL.replace(/[^/]+$/, name);
  const admin = new pg.Client({ connectionString: env.DATABASE_URL });
  await admin.connect();
  await admin.query(`create database ${name}`);
  await migrate({ connectionString }, { queueOnPostgres: false });
  const client = new pg.Client({ connectionString });
  await client.connect();
  const dispose = async () => {
    await client.end();
    await admin.query(`drop database ${name} with (force)`);
    await admin.end();
  };
  return { client, connectionString, [Symbol.asyncDispose]: dispose };
}

export async function enqueue(app: App, tenantId: string, list: readonly string[]): Promise<void> {
  const jobs = list.map((url) => ({ v: 1 as const, tenantId, url }));
  await app.queues.enqueue(crawlQueue, jobs);
}
