/** One suite over both object stores: a folder, and S3 over HTTP. */
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type S3Settings, toConfig } from '../../src/config.js';
import { ArgumentError } from '../../src/errors.js';
import { type ObjectStore, rawKey, thumbnailKey } from '../../src/storage/object-store.js';
import { openObjectStore } from '../../src/storage/open.js';
import { S3Store } from '../../src/storage/s3-store.js';
import { S3_CREDENTIALS, type S3Server, startS3, startStoreThat } from '../support/s3.js';

let folder: string;
let s3: S3Server;
const opened: ObjectStore[] = [];

beforeAll(async () => {
  for (const [name, value] of Object.entries(S3_CREDENTIALS)) vi.stubEnv(name, value);
  folder = await mkdtemp(join(tmpdir(), 'hc-objects-'));
  s3 = await startS3('some/prefix');
});

afterAll(async () => {
  await Promise.all(opened.map((store) => store.close()));
  await s3[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
  vi.unstubAllEnvs();
});

function open(url: string): ObjectStore {
  const store = openObjectStore(toConfig({ STORAGE_URL: url }).storage);
  opened.push(store);
  return store;
}

const hashOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

describe.each([
  ['a folder', () => open(`file:${folder}`)],
  ['S3', () => open(s3.url)],
])('%s', (_name, opener) => {
  test.each([0, 1, 1_000, 5_000_000])('gives %d bytes back as they were', async (size) => {
    const store = opener();
    const bytes = randomBytes(size);
    const key = rawKey('acme', hashOf(bytes), 'image/png');
    expect(await store.get(key)).toBeNull();
    await store.put(key, bytes);
    expect((await store.get(key))?.equals(bytes)).toBe(true);
    // Another client, as another process would be.
    expect((await opener().get(key))?.equals(bytes)).toBe(true);
  });

  test('does not mind being told again, and by many at once', async () => {
    const store = opener();
    const bytes = randomBytes(100_000);
    const key = thumbnailKey('acme', hashOf(bytes));
    await Promise.all(Array.from({ length: 8 }, () => store.put(key, bytes)));
    await store.put(key, bytes);
    expect((await store.get(key))?.equals(bytes)).toBe(true);
  });

  test.each(['..', '.', 'a.b', '-', '_', 'x'.repeat(100)])('keeps apart what the tenant %j has', async (tenant) => {
    const store = opener();
    const [theirs, others] = [randomBytes(10), randomBytes(10)];
    const hash = hashOf(theirs);
    await store.put(rawKey(tenant, hash, 'image/jpeg'), theirs);
    await store.put(rawKey('other', hash, 'image/jpeg'), others);
    expect((await store.get(rawKey(tenant, hash, 'image/jpeg')))?.equals(theirs)).toBe(true);
    expect((await store.get(rawKey('other', hash, 'image/jpeg')))?.equals(others)).toBe(true);
  });
});

describe('a folder', () => {
  test('refuses keys that leave it', async () => {
    const store = open(`file:${folder}/inner`);
    await expect(store.put('../outside', Buffer.from('x'))).rejects.toBeInstanceOf(ArgumentError);
    await expect(store.get('raw/../../outside')).rejects.toBeInstanceOf(ArgumentError);
    await expect(store.get('raw/\0')).rejects.toBeInstanceOf(ArgumentError);
  });

  test('writes over what a disk has damaged or an interrupted copy left, and leaves no drafts', async () => {
    const store = open(`file:${folder}/whole`);
    await store.put('raw/one', Buffer.from('whole'));
    for (const ruined of ['wh', 'whale']) {
      await writeFile(join(folder, 'whole/raw/one'), ruined);
      await store.put('raw/one', Buffer.from('whole'));
      expect(await store.get('raw/one')).toEqual(Buffer.from('whole'));
    }
    expect(await readdir(join(folder, 'whole'), { recursive: true })).toEqual(['.drafts', 'raw', 'raw/one']);
  });

  test('removes the drafts that dead writers left, and not those that are being written', async () => {
    const store = open(`file:${folder}/left`);
    expect(await store.tidy()).toBe(0);
    await store.put('raw/one', Buffer.from('whole'));
    const drafts = join(folder, 'left/.drafts');
    for (const name of ['old', 'new']) await writeFile(join(drafts, name), 'a half');
    const longAgo = new Date(Date.now() - 61 * 60_000);
    await utimes(join(drafts, 'old'), longAgo, longAgo);
    expect(await store.tidy()).toBe(1);
    expect(await readdir(drafts)).toEqual(['new']);
    expect(await store.get('raw/one')).toEqual(Buffer.from('whole'));
  });
});

describe('S3', () => {
  test('keys begin with the prefix', async () => {
    await open(s3.url).put('raw/prefixed', Buffer.from('here'));
    const bare = open(s3.url.replace('some/prefix', ''));
    expect(await bare.get('raw/prefixed')).toBeNull();
    expect(await bare.get('some/prefix/raw/prefixed')).toEqual(Buffer.from('here'));
  });

  test('a bucket that is not there, or a store that is away, is an error and not an absence', async () => {
    await expect(open(s3.url.replace('//images', '//nowhere')).get('raw/x')).rejects.toThrow(/bucket/i);
    await expect(open(s3.url.replace('//images', '//nowhere')).put('raw/x', Buffer.from('x'))).rejects.toThrow(
      /bucket/i,
    );
    const closed = await closedPort();
    const away = open(`s3://images?endpoint=${encodeURIComponent(`http://127.0.0.1:${closed}`)}`);
    await expect(away.get('raw/x')).rejects.toThrow(/ECONNREFUSED/);
    await expect(away.put('raw/x', Buffer.from('x'))).rejects.toThrow(/ECONNREFUSED/);
  });

  test('a store that falls silent within an object, or before it answers, is an error', async () => {
    await using server = await startStoreThat((request, response) => {
      if (request.url?.includes('half')) response.writeHead(200, { 'content-length': 100 }).write('a half');
    });
    const stalling = impatient(server.url);
    await expect(stalling.get('raw/half')).rejects.toThrow(/inactivity/);
    await expect(stalling.get('raw/none')).rejects.toThrow(/inactivity/);
    await expect(stalling.put('raw/none', Buffer.from('x'))).rejects.toThrow(/inactivity/);
  });

  test('a large object is sent without asking first', async () => {
    const asked: unknown[] = [];
    await using server = await startStoreThat((request, response) => {
      asked.push(request.headers.expect);
      request.resume().on('end', () => response.end());
    });
    await open(server.url).put('raw/large', randomBytes(3_000_000));
    expect(asked).toEqual([undefined]);
  });
});

/** A client that waits for a tenth of a second. */
function impatient(url: string): ObjectStore {
  const store = new S3Store(toConfig({ STORAGE_URL: url }).storage as S3Settings, 100);
  opened.push(store);
  return store;
}

async function closedPort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
