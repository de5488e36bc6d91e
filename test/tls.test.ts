/** `rediss://`: cache and queue through TLS, with a certificate that Node is told to trust, and without. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createServer, type Server } from 'node:tls';
import { promisify } from 'node:util';
import { Queue } from 'bullmq';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runCommand } from './support/command.js';
import { type OwnStack, startOwnStack } from './support/own-stack.js';

const HOST = 'localhost';

let stack: OwnStack;
let folder: string;
let certificate: string;
let server: Server;
let env: Record<string, string>;
/** Connections whose handshake was done. */
let secured = 0;

/** TLS ends here, as at many a managed Redis. */
beforeAll(async () => {
  stack = await startOwnStack();
  folder = await mkdtemp(join(tmpdir(), 'hc-tls-'));
  certificate = join(folder, 'cert.pem');
  const key = join(folder, 'key.pem');
  const how = '-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2'.split(' ');
  const name = ['-subj', `/CN=${HOST}`, '-addext', `subjectAltName=DNS:${HOST}`];
  await promisify(execFile)('openssl', ['req', ...how, ...name, '-keyout', key, '-out', certificate]);
  const redis = new URL(stack.servers.env.REDIS_URL);
  const pair = { key: await readFile(key), cert: await readFile(certificate) };
  server = createServer(pair, (socket) => {
    secured += 1;
    const plain = connect(Number(redis.port), redis.hostname);
    socket.pipe(plain).pipe(socket);
    for (const one of [socket, plain]) one.on('error', () => undefined);
    socket.on('close', () => plain.destroy());
  });
  server.on('tlsClientError', () => undefined);
  await new Promise<void>((resolve) => server.listen(0, HOST, resolve));
  const { port } = server.address() as AddressInfo;
  const url = `rediss://:${redis.password}@${HOST}:${port}/0`;
  env = { ...stack.servers.env, REDIS_URL: url, STORAGE_URL: `file:${folder}/objects` };
});

afterAll(async () => {
  server?.close();
  await stack?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

test('cache and queue speak TLS with a server whose certificate Node trusts [M16]', async () => {
  const trusting = { ...env, NODE_EXTRA_CA_CERTS: certificate };
  const { code, out } = await runCommand(['stats', '--json'], trusting);
  expect(code).toBe(0);
  expect(JSON.parse(out).redisStats).toMatchObject({ usedMemoryHuman: expect.stringMatching(/^\d/) });
  const beforeQueue = secured;
  expect(beforeQueue).toBeGreaterThan(0);
  const enqueued = await runCommand(['enqueue', '-', '--tenant', 'acme'], trusting, 'https://example.com/a.jpg\n');
  expect(enqueued).toMatchObject({ code: 0 });
  expect(secured).toBeGreaterThan(beforeQueue);
  const { hostname, port, password } = new URL(stack.servers.env.REDIS_URL);
  const queue = new Queue('crawl', { connection: { host: hostname, port: Number(port), password } });
  const jobs = await queue.getJobs(['prioritized', 'waiting']).finally(() => queue.close());
  expect(jobs.map(({ data }) => data.url)).toEqual(['https://example.com/a.jpg']);
});

test('one that it does not trust is refused, and doctor says so', async () => {
  const before = secured;
  const { code, out } = await runCommand(['doctor', '--json'], env);
  expect(code).toBe(1);
  const { findings } = JSON.parse(out);
  expect(findings).toContainEqual({
    check: expect.stringContaining('Redis'),
    verdict: 'problem',
    says: expect.stringMatching(/self-signed certificate/),
  });
  expect(secured).toBe(before);
});
