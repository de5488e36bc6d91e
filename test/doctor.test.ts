/** `hybrid-cache doctor` over real servers: all well, and with one thing after another broken. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { Redis } from 'ioredis';
import { Client } from 'pg';
import sharp from 'sharp';
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import type { Config } from '../src/config.js';
import { type Check, type Finding, findingsOf, worst } from '../src/doctor/check.js';
import { clockFinding, readClock } from '../src/doctor/clock.js';
import { examine } from '../src/doctor/doctor.js';
import { imagesCheck, portChecks } from '../src/doctor/machine.js';
import { connectionsFinding, mostConnections, postgresCheck, postgresVersionFinding } from '../src/doctor/postgres.js';
import { redisChecks, redisVersionFinding } from '../src/doctor/redis.js';
import { settingFindings } from '../src/doctor/settings.js';
import { storageCheck } from '../src/doctor/storage.js';
import { createServer as createHttpServer } from '../src/http/server.js';
import { QUEUE_NAMES } from '../src/queues/contract.js';
import { type CrawlPayload, crawlQueue } from '../src/queues/crawl.js';
import { run } from '../workers/main.js';
import { startDeafPort } from './support/deaf.js';
import { onDatabase } from './support/on-database.js';
import { type OwnStack, startOwnStack } from './support/own-stack.js';
import { S3_CREDENTIALS, startS3, startStoreThat } from './support/s3.js';
import { until } from './support/until.js';
import { createWorld, type World } from './support/world.js';

const CLI = resolve('dist/src/cli.js');
const SECRET = 'hush-hush';
const CONTACT = { USER_AGENT_CONTACT: 'https://example.com/bot' };
/** Nobody listens there: a connection is refused at once. */
const NOWHERE = '127.0.0.1:1';

let stack: OwnStack;
/** Over the run's shared servers, which stay as they are. */
let world: World;
let redis: Redis;
let folder: string;

beforeAll(async () => {
  stack = await startOwnStack();
  world = await createWorld();
  redis = new Redis(stack.servers.env.REDIS_URL ?? '', { maxRetriesPerRequest: 1 });
  folder = await mkdtemp(join(tmpdir(), 'hc-doctor-'));
  for (const [name, value] of Object.entries(S3_CREDENTIALS)) vi.stubEnv(name, value);
});

afterEach(async () => {
  await redis.config('SET', 'maxmemory-policy', 'noeviction');
  await redis.config('SET', 'appendonly', 'yes');
  await redis.config('SET', 'maxmemory', '0');
});

afterAll(async () => {
  vi.unstubAllEnvs();
  redis?.disconnect();
  await world?.[Symbol.asyncDispose]();
  await stack?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

const short = (findings: readonly Finding[]) => findings.map(({ check, verdict }) => `${check}: ${verdict}`);

/** The findings of all, none of which holds a password. */
async function found(checks: readonly Check[]): Promise<Finding[]> {
  const findings = (await Promise.all(checks.map(findingsOf))).flat();
  const text = JSON.stringify(findings);
  expect(text).not.toContain(SECRET);
  const { password } = new URL(stack.servers.env.REDIS_URL ?? '');
  expect(password.length).toBeGreaterThan(8);
  expect(text).not.toContain(password);
  for (const { says } of findings) expect(says).toMatch(/^\S.*\S$/);
  return findings;
}

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

function doctor(args: readonly string[], env: Record<string, string | undefined>): Promise<Ended> {
  return new Promise((done) => {
    const options = { env: { PATH: process.env.PATH, ...env } };
    execFile(process.execPath, [CLI, 'doctor', ...args], options, (error, out, err) =>
      done({ code: error ? Number(error.code) : 0, out, err }),
    );
  });
}

/** Takes connections and says nothing. */
async function mutePort(): Promise<number> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => sockets.push(socket.on('error', () => undefined))).listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

describe('all well', () => {
  const WELL = [
    "the queue's Redis: ok",
    "the queue's Redis: ok",
    "the queue's Redis: ok",
    "the queue's Redis: ok",
    "the cache's Redis: ok",
    'PostgreSQL: ok',
    'PostgreSQL: warning', // the tests' own flushes nothing to the disk
    'PostgreSQL: ok',
    'PostgreSQL: ok',
    'database: ok',
    'database: ok',
    'database: ok',
    'database: ok',
    'object store: ok',
    'images: ok',
    'images: ok',
    'face models: ok',
    'PORT: ok',
    'METRICS_PORT: ok',
    'API_TOKENS: ok',
    'FETCH_ALLOW: ok',
    'USER_AGENT_CONTACT: ok',
  ];

  test('every check says so, and the one thing that the tests’ PostgreSQL leaves out is told', async () => {
    const findings = await examine(stack.config({ ...CONTACT, METRICS_PORT: '0' }));
    expect(short(findings)).toEqual(WELL);
    expect(findings.filter(({ verdict }) => verdict !== 'ok').map(({ says }) => says)).toEqual([
      'fsync off: a crash of its machine loses what was answered as written, turn it on',
    ]);
  });

  test('the command prints a table, or JSON, and exits with 0', async () => {
    const env = { ...stack.servers.env, ...CONTACT, STORAGE_URL: `file:${folder}/cli`, PORT: '0', METRICS_PORT: '0' };
    const plain = await doctor([], env);
    expect([plain.code, plain.err]).toEqual([0, '']);
    const lines = plain.out.trimEnd().split('\n');
    expect(lines[0]).toMatch(/^verdict +check$/);
    expect(lines.slice(1).map((line) => /^(\w+) +(.*?) {2,}\S/.exec(line)?.slice(1).reverse().join(': '))).toEqual(
      WELL,
    );
    const json = await doctor(['--json'], env);
    expect([json.code, json.err]).toEqual([0, '']);
    const { verdict, findings } = JSON.parse(json.out);
    expect(verdict).toBe('warning');
    expect(short(findings)).toEqual(WELL);
  });

  test('with queues on PostgreSQL and no Redis', async () => {
    const config = stack.config({ REDIS_URL: 'none' });
    expect(await found(redisChecks(config))).toEqual([
      { check: "the cache's Redis", verdict: 'ok', says: 'REDIS_URL is none: every look-up asks PostgreSQL' },
    ]);
    expect(short(await found([postgresCheck(config)])).slice(4)).toEqual(Array(4).fill('database: ok'));
  });
});

describe('the configuration', () => {
  test('where it cannot be read is the finding, without the secrets in it', async () => {
    const env = { HOST: '0.0.0.0', PORT: 'many', REDIS_URL: `http://:${SECRET}@nowhere` };
    const { code, out, err } = await doctor(['--json'], env);
    expect([code, err]).toEqual([1, '']);
    const { verdict, findings } = JSON.parse(out);
    expect(verdict).toBe('problem');
    expect(short(findings)).toEqual(Array(3).fill('configuration: problem'));
    expect(out).toMatch(/PORT: expected[^]*HOST: expected a loopback address while no API_TOKENS are set/);
    expect(out).not.toContain(SECRET);
  });

  test.each([
    ['API_TOKENS', {}, 'ok', /only this machine is answered, at 127\.0\.0\.1$/],
    ['API_TOKENS', { API_TOKENS: `${'x'.repeat(16)}=*`, HOST: '0.0.0.0' }, 'ok', /^1 set$/],
    ['API_TOKENS', { API_TOKENS: `${SECRET}=*,${'x'.repeat(16)}=acme` }, 'warning', /^1 of 2 can be guessed/],
    ['FETCH_ALLOW', {}, 'ok', /private addresses are refused$/],
    ['FETCH_ALLOW', { FETCH_ALLOW: 'images.internal,127.0.0.1/32:*,10.1.2.0/24' }, 'ok', /^3 entries/],
    ['FETCH_ALLOW', { FETCH_ALLOW: '10.0.0.0/8' }, 'warning', /^10\.0\.0\.0\/8 opens many machines/],
    ['FETCH_ALLOW', { FETCH_ALLOW: 'fd12::/16' }, 'warning', /^fd12::\/16 opens many machines/],
    ['FETCH_ALLOW', { FETCH_ALLOW: '0.0.0.0/0:*' }, 'problem', /169\.254\.169\.254/],
    ['FETCH_ALLOW', { FETCH_ALLOW: '::/0' }, 'problem', /name the hosts/],
    ['FETCH_ALLOW', { FETCH_ALLOW: '169.254.169.254' }, 'problem', /credentials/],
    ['USER_AGENT_CONTACT', {}, 'warning', /set a page or mail address/],
    ['USER_AGENT_CONTACT', CONTACT, 'ok', /\(\+https:\/\/example\.com\/bot\)$/],
  ] as const)('%s with %j: %s', (check, env, verdict, says) => {
    const findings = settingFindings(stack.config(env));
    expect(JSON.stringify(findings)).not.toContain(SECRET);
    expect(findings.filter((one) => one.check === check)).toEqual([
      { check, verdict, says: expect.stringMatching(says) },
    ]);
  });
});

describe('Redis', () => {
  test('away: both say so, with the variable to correct and without the password', async () => {
    const findings = await found(redisChecks(stack.config({ REDIS_URL: `redis://:${SECRET}@${NOWHERE}/0` })));
    expect(findings).toEqual([
      {
        check: "the queue's Redis",
        verdict: 'problem',
        says: `connect ECONNREFUSED ${NOWHERE}: start it, or correct QUEUE_REDIS_URL`,
      },
      {
        check: "the cache's Redis",
        verdict: 'problem',
        says: `connect ECONNREFUSED ${NOWHERE}: start it, or correct REDIS_URL`,
      },
    ]);
  });

  test('with a wrong password: its own words, and not that it should be started', async () => {
    const url = new URL(stack.servers.env.REDIS_URL ?? '');
    url.password = SECRET;
    const [finding] = await found(redisChecks(stack.config({ REDIS_URL: url.href })));
    const says = /^WRONGPASS .*: correct the user or the password in QUEUE_REDIS_URL$/;
    expect(finding).toMatchObject({ verdict: 'problem', says: expect.stringMatching(says) });
  });

  test('that evicts is a problem for the queue', async () => {
    await redis.config('SET', 'maxmemory-policy', 'allkeys-lru');
    const findings = await found(redisChecks(stack.config()));
    expect(findings.filter(({ verdict }) => verdict !== 'ok')).toEqual([
      {
        check: "the queue's Redis",
        verdict: 'problem',
        says: 'maxmemory-policy is allkeys-lru, so jobs can be lost without an error: set it to noeviction',
      },
    ]);
  });

  test('without an append-only file is a warning for the queue', async () => {
    await redis.config('SET', 'appendonly', 'no');
    const findings = await found(redisChecks(stack.config()));
    expect(findings.filter(({ verdict }) => verdict !== 'ok')).toEqual([
      {
        check: "the queue's Redis",
        verdict: 'warning',
        says: expect.stringMatching(/^a restart loses jobs, .*: set appendonly yes$/),
      },
    ]);
  });

  test('shared by both is told, also where only the database’s number differs', async () => {
    const url = new URL(stack.servers.env.REDIS_URL ?? '');
    url.pathname = '/1';
    const findings = await found(redisChecks(stack.config({ QUEUE_REDIS_URL: url.href })));
    expect(short(findings)).toEqual([...Array(4).fill("the queue's Redis: ok"), "the cache's Redis: ok"]);
    expect(findings[4]?.says).toMatch(/^is the queue's: it stops writing at 70 %/);
  });

  test.each([
    ['0', 'noeviction', 'warning', /no maxmemory is set/],
    ['100mb', 'noeviction', 'warning', /set maxmemory-policy allkeys-lru$/],
    ['100mb', 'allkeys-lru', 'ok', /^maxmemory-policy is allkeys-lru$/],
  ] as const)('of the cache alone, with maxmemory %s and %s: %s', async (limit, policy, verdict, says) => {
    await redis.config('SET', 'maxmemory', limit);
    await redis.config('SET', 'maxmemory-policy', policy);
    const findings = await found(redisChecks(stack.config({ QUEUE_REDIS_URL: world.redisUrl })));
    const own = findings.filter(({ check }) => check === "the cache's Redis");
    expect(own).toEqual([
      { check: "the cache's Redis", verdict: 'ok', says: expect.stringMatching(/^is Redis \d+\.\d+\.\d+$/) },
      { check: "the cache's Redis", verdict, says: expect.stringMatching(says) },
      { check: "the cache's Redis", verdict: 'ok', says: "its clock agrees with this machine's" },
    ]);
  });
});

describe('PostgreSQL', () => {
  test('away: one problem, with the variable to correct and without the password', async () => {
    const url = `postgres://somebody:${SECRET}@${NOWHERE}/nothing`;
    expect(await found([postgresCheck(stack.config({ DATABASE_URL: url }))])).toEqual([
      {
        check: 'PostgreSQL',
        verdict: 'problem',
        says: `connect ECONNREFUSED ${NOWHERE}: start it, or correct DATABASE_URL`,
      },
    ]);
  });

  test.each([
    [{ password: SECRET }, /^password authentication failed for .*: correct the user or the password in DATABASE_URL$/],
    [{ pathname: '/nodb' }, /^database "nodb" does not exist: create the database, or correct DATABASE_URL$/],
  ])('with %j: its own words, and not that it should be started', async (wrong, says) => {
    const url = Object.assign(new URL(stack.servers.env.DATABASE_URL), wrong);
    expect(await found([postgresCheck(stack.config({ DATABASE_URL: url.href }))])).toEqual([
      { check: 'PostgreSQL', verdict: 'problem', says: expect.stringMatching(says) },
    ]);
  });

  test('not migrated: says which command does it, and looks for no index', async () => {
    await onDatabase(stack.servers.env.DATABASE_URL, 'create database bare');
    const url = new URL(stack.servers.env.DATABASE_URL);
    url.pathname = '/bare';
    const findings = await found([postgresCheck(stack.config({ DATABASE_URL: url.href }))]);
    expect(findings.filter(({ check }) => check === 'database')).toEqual([
      { check: 'database', verdict: 'problem', says: 'is not up to date: run hybrid-cache migrate' },
    ]);
  });
});

test('connections: those that are left are compared with what a process opens', async () => {
  expect(connectionsFinding(64, 32)).toMatchObject({
    verdict: 'ok',
    says: expect.stringContaining('enough for 2 more'),
  });
  expect(connectionsFinding(31, 32)).toMatchObject({
    verdict: 'warning',
    says: expect.stringContaining('may open 32'),
  });
});

test('a process that serves and works under load, with queues on PostgreSQL, opens no more connections than that', async () => {
  await using busy = await createWorld();
  const env = { REDIS_URL: 'none', PORT: '0', METRICS_PORT: '0', STORAGE_URL: `file:${folder}/busy` };
  const app = busy.app(env);
  const running = await run(app, { workers: QUEUE_NAMES, api: true });
  const payloads = Array.from({ length: 400 }, (_, n) => ({
    v: 1,
    tenantId: 'acme',
    url: `http://10.0.0.${n % 250}/${n}`,
  }));
  await app.queues.enqueue(crawlQueue, payloads as CrawlPayload[]);
  const watcher = new Client({ connectionString: busy.databaseUrl });
  await watcher.connect();
  let most = 0;
  await until('all jobs to end', async () => {
    const count = `select count(*)::int as open from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()`;
    most = Math.max(most, (await watcher.query(count)).rows[0].open);
    return (await app.queues.get('crawl').getCompletedCount()) === payloads.length;
  });
  await watcher.end();
  await running.stop();
  expect(most).toBeGreaterThan(12);
  expect(most).toBeLessThanOrEqual(mostConnections(busy.config(env)));
});

describe('the object store', () => {
  test('a folder: the probe is really written each time', async () => {
    const config = stack.config({ STORAGE_URL: `file:${folder}/objects` });
    const seen = new Set<string>();
    for (let run = 0; run < 3; run++) {
      expect(short(await found([storageCheck(config)]))).toEqual(['object store: ok']);
      seen.add(await readFile(join(folder, 'objects/doctor/probe'), 'latin1'));
    }
    expect(seen.size).toBe(3);
  });

  test('a folder that cannot be written', async () => {
    // Root may write anywhere but below a file.
    await writeFile(join(folder, 'file'), '');
    const findings = await found([storageCheck(stack.config({ STORAGE_URL: `file:${folder}/file/objects` }))]);
    expect(findings).toEqual([
      {
        check: 'object store',
        verdict: 'problem',
        says: expect.stringMatching(/^ENOTDIR.*: let this user write below/),
      },
    ]);
  });

  test('S3: written and read; no such bucket; away', async () => {
    await using s3 = await startS3('some/prefix');
    const config = (url: string): Config => stack.config({ STORAGE_URL: url });
    expect(await found([storageCheck(config(s3.url))])).toEqual([
      { check: 'object store', verdict: 'ok', says: 'a probe was written to bucket images and read back' },
    ]);
    const nobodys = s3.url.replace('s3://images', 's3://nobodys');
    const away = `s3://images?endpoint=${encodeURIComponent(`http://${NOWHERE}`)}`;
    for (const url of [nobodys, away]) {
      expect(await found([storageCheck(config(url))])).toEqual([
        { check: 'object store', verdict: 'problem', says: expect.stringMatching(/correct STORAGE_URL or the AWS/) },
      ]);
    }
  });

  test('S3 that may not be listed: what is missing looks forbidden', async () => {
    // As Amazon's answers to credentials without s3:ListBucket.
    const objects = new Map<string | undefined, Buffer>();
    await using server = await startStoreThat(async (request, response) => {
      const key = request.url?.split('?')[0];
      if (request.method === 'PUT') objects.set(key, await buffer(request));
      const denied = '<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>';
      response.writeHead(objects.has(key) ? 200 : 403).end(objects.get(key) ?? denied);
    });
    expect(await found([storageCheck(stack.config({ STORAGE_URL: server.url }))])).toEqual([
      {
        check: 'object store',
        verdict: 'problem',
        says: expect.stringMatching(/^Access Denied: bucket images does not say .* s3:ListBucket$/),
      },
    ]);
  });
});

describe('this machine', () => {
  test('a loader for untrusted formats that was turned on is a hole', async () => {
    await findingsOf(imagesCheck()); // the decoder, once loaded, has turned all off
    sharp.unblock({ operation: ['VipsForeignLoadSvg'] });
    onTestFinished(() => sharp.block({ operation: ['VipsForeignLoadSvg'] }));
    expect(short(await found([imagesCheck()]))).toEqual(['images: ok', 'images: problem']);
  });

  test('ports: free, in use by this service, in use by something else, not of this machine', async () => {
    const server = await createHttpServer(world.app(), { api: false });
    onTestFinished(() => server.close().then(() => undefined));
    const ours = new URL(await server.listen({ host: '127.0.0.1', port: 0 })).port;
    const others = String(await mutePort());
    const [port, metrics] = await found(portChecks(stack.config({ PORT: ours, METRICS_PORT: others })));
    expect(port).toMatchObject({ verdict: 'ok', says: `${ours} is in use, by a process of this service as it seems` });
    expect(metrics).toMatchObject({ verdict: 'warning', says: expect.stringContaining('set METRICS_PORT to another') });

    await server.close();
    const free = await found(portChecks(stack.config({ PORT: ours, METRICS_PORT: '0' })));
    expect(free.map(({ says }) => says)).toEqual([`${ours} is free`, 'is any that is free']);
    // An address for documentation, which no machine has; nothing is sent there.
    const away = stack.config({ HOST: '203.0.113.1', API_TOKENS: `${SECRET}=*`, PORT: ours, METRICS_PORT: '0' });
    expect(short(await found(portChecks(away)))).toEqual(['PORT: problem', 'METRICS_PORT: ok']);
  });

  test.each([
    [{ skewMs: 12, marginMs: 2 }, 'ok', /agrees/],
    [{ skewMs: -900, marginMs: 0 }, 'ok', /agrees/],
    [{ skewMs: -2_000, marginMs: 10 }, 'warning', /2\.0 s behind this machine's: run NTP/],
    [{ skewMs: 4_000, marginMs: 3_500 }, 'ok', /agrees/],
    [{ skewMs: 3_600_000, marginMs: 5 }, 'problem', /3600\.0 s ahead of this machine's: run NTP/],
  ] as const)('a clock that was read as %j: %s', (reading, verdict, says) => {
    expect(clockFinding('it', reading)).toEqual({ check: 'it', verdict, says: expect.stringMatching(says) });
  });

  test('a clock is read between two looks at ours', async () => {
    const { skewMs, marginMs } = await readClock(async () => Date.now());
    expect(Math.abs(skewMs)).toBeLessThanOrEqual(marginMs + 1);
  });
});

test.each([
  [redisVersionFinding('it', '4.0.14'), 'problem', 'is Redis 4.0.14: upgrade to 6.2 or later'],
  [redisVersionFinding('it', '6.0.20'), 'warning', 'is Redis 6.0.20: 6.2 or later is recommended'],
  [redisVersionFinding('it', '6.10.0'), 'ok', 'is Redis 6.10.0'],
  [redisVersionFinding('it', '8.2.1'), 'ok', 'is Redis 8.2.1'],
  [postgresVersionFinding(120_022), 'problem', 'is version 12.22: upgrade to 14 or later'],
  [postgresVersionFinding(130_018), 'problem', 'is version 13.18: upgrade to 14 or later'],
  [postgresVersionFinding(180_004), 'ok', 'is version 18.4'],
])('a server’s version: %o', (finding, verdict, says) => {
  expect(finding).toMatchObject({ verdict, says });
});

describe('what gives no answer ends as a problem', () => {
  test('servers that take a connection and say nothing', async () => {
    const port = await mutePort();
    const s3 = encodeURIComponent(`http://127.0.0.1:${port}`);
    const config = stack.config({
      REDIS_URL: `redis://:${SECRET}@127.0.0.1:${port}`,
      DATABASE_URL: `postgres://somebody:${SECRET}@127.0.0.1:${port}/nothing`,
      STORAGE_URL: `s3://images?endpoint=${s3}`,
    });
    const findings = await found([...redisChecks(config), postgresCheck(config), storageCheck(config)]);
    expect(short(findings)).toEqual([
      "the queue's Redis: problem",
      "the cache's Redis: problem",
      'PostgreSQL: problem',
      'object store: problem',
    ]);
  });

  test('servers that do not even accept', async () => {
    await using deaf = await startDeafPort();
    const config = stack.config({
      REDIS_URL: `redis://127.0.0.1:${deaf.port}`,
      DATABASE_URL: `postgres://somebody@127.0.0.1:${deaf.port}/nothing`,
    });
    const findings = await found([...redisChecks(config), postgresCheck(config)]);
    expect(short(findings)).toEqual([
      "the queue's Redis: problem",
      "the cache's Redis: problem",
      'PostgreSQL: problem',
    ]);
  });

  test.each([
    ['never ends', () => new Promise<never>(() => undefined), 'no answer within 0.01 s: mend it'],
    ['rejects', () => Promise.reject(new Error(`at https://me:${SECRET}@there\nno`)), 'at https://there no: mend it'],
    [
      'throws',
      () => {
        throw new TypeError('a bug');
      },
      'a bug: mend it',
    ],
  ])('a check that %s', async (_, run, says) => {
    const findings = await findingsOf({ name: 'it', deadlineMs: 10, remedy: 'mend it', run });
    expect(findings).toEqual([{ check: 'it', verdict: 'problem', says }]);
  });

  test('and the worst finding is the verdict', () => {
    const of = (...verdicts: Finding['verdict'][]) =>
      worst(verdicts.map((verdict) => ({ check: '', verdict, says: '' })));
    expect([of(), of('ok'), of('ok', 'warning'), of('warning', 'problem', 'ok')]).toEqual([
      'ok',
      'ok',
      'warning',
      'problem',
    ]);
  });
});
