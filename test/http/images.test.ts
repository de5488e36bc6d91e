/** Reading images over HTTP: what is known of them, and their bytes. */
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
import { FileStore } from '../../src/storage/file-store.js';
import { noiseImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { storeSampleImage } from '../support/stored-image.js';
import { createWorld, type World } from '../support/world.js';

let world: World;
let app: App;
let server: FastifyInstance;

beforeAll(async () => {
  world = await createWorld();
  app = world.app({}, { engine: new PuppetEngine() });
  server = await createServer(app, { api: true });
});

afterAll(async () => {
  await server?.close();
  await world?.[Symbol.asyncDispose]();
});

const pathOf = (tenantId: string, contentHash: string) => `/v1/tenants/${tenantId}/images/${contentHash}`;

test('an image is shown with its keys, size, hash and URLs, its faces null until it is embedded', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 1);
  const response = await server.inject(pathOf('acme', contentHash));
  expect(response.statusCode).toBe(200);
  expect(response.json()).toEqual({
    contentHash,
    rawKey: `raw/tenant=acme/${contentHash.slice(0, 2)}/${contentHash}.png`,
    thumbnailKey: `thumbnail/tenant=acme/${contentHash.slice(0, 2)}/${contentHash}.jpg`,
    phash: expect.stringMatching(/^[0-9a-f]{16}$/),
    width: 64,
    height: 48,
    mimeType: 'image/png',
    urls: ['https://example.com/1.png'],
    model: 'puppet-embedder@1',
    faces: null,
    nearDuplicates: [],
  });
});

test('an embedded image is shown with its faces, vectors included; [] is an answer of its own', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 2);
  const faces = [{ bbox: [1, 2, 3, 4] as [number, number, number, number], embedding: [0.5, -1], det_score: 0.75 }];
  await app.cache.cacheFaceEmbeddings(contentHash, 'acme', faces);
  expect((await server.inject(pathOf('acme', contentHash))).json().faces).toEqual(faces);
  const { contentHash: empty } = await storeSampleImage(app, 'acme', 3);
  await app.cache.cacheFaceEmbeddings(empty, 'acme', []);
  expect((await server.inject(pathOf('acme', empty))).json().faces).toEqual([]);
});

test('the raw bytes are the fetched ones, under their type, and can run nothing in a browser', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 4);
  const response = await server.inject(`${pathOf('acme', contentHash)}/raw`);
  expect(response.statusCode).toBe(200);
  expect(response.rawPayload.equals(await noiseImage(64, 48, 4))).toBe(true);
  expect(response.headers).toMatchObject({
    'content-type': 'image/png',
    'x-content-type-options': 'nosniff',
    'content-security-policy': "default-src 'none'; sandbox",
  });
});

test('the thumbnail is a JPEG', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 5);
  const response = await server.inject(`${pathOf('acme', contentHash)}/thumbnail`);
  expect(response.statusCode).toBe(200);
  expect(response.headers).toMatchObject({ 'content-type': 'image/jpeg', 'x-content-type-options': 'nosniff' });
  expect(await sharp(response.rawPayload).metadata()).toMatchObject({ format: 'jpeg' });
});

test('looking at an image is no look-up of the hit rate', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 8);
  const before = app.connection.counts.snapshot();
  for (const part of ['', '/raw', '/thumbnail']) await server.inject(`${pathOf('acme', contentHash)}${part}`);
  expect(app.connection.counts.snapshot()).toEqual(before);
});

test('an image that is unknown, misspelt or another tenant’s is 404 under each route', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 6);
  const strange = [
    ['other', contentHash],
    ['acme', 'a'.repeat(64)],
    ['acme', contentHash.toUpperCase()],
    ['acme', contentHash.slice(1)],
    ['acme', '..%2F..%2Fetc%2Fpasswd'],
    ['..', contentHash],
  ] as const;
  for (const [tenantId, hash] of strange) {
    for (const part of ['', '/raw', '/thumbnail']) {
      const { statusCode } = await server.inject(`/v1/tenants/${tenantId}/images/${hash}${part}`);
      expect([tenantId, hash, part, statusCode]).toEqual([tenantId, hash, part, 404]);
    }
  }
});

test('a recorded image whose object is lost is 503, and names no path', async () => {
  const { contentHash } = await storeSampleImage(app, 'lost', 7);
  const { folder } = app.config.storage as { folder: string };
  for (const kind of ['raw', 'thumbnail']) await rm(join(folder, kind, 'tenant=lost'), { recursive: true });
  const response = await server.inject(`${pathOf('lost', contentHash)}/raw`);
  expect(response.statusCode).toBe(503);
  expect(response.body).not.toContain(folder);
});

test('a recorded image whose raw object is damaged is 503, and nothing is said to be good of that answer', async () => {
  const { contentHash } = await storeSampleImage(app, 'damaged', 8);
  const { folder } = app.config.storage as { folder: string };
  const bytes = await noiseImage(64, 48, 8);
  const [last] = bytes.subarray(-1);
  const path = join(folder, 'raw', 'tenant=damaged', contentHash.slice(0, 2), `${contentHash}.png`);
  for (const damaged of [
    Buffer.alloc(0),
    bytes.subarray(1),
    Buffer.from([...bytes.subarray(0, -1), (last ?? 0) ^ 1]),
  ]) {
    await writeFile(path, damaged);
    const response = await server.inject(`${pathOf('damaged', contentHash)}/raw`);
    expect(response.statusCode).toBe(503);
    expect(response.headers['content-type']).toMatch(/^application\/problem\+json/);
    expect(response.headers).not.toHaveProperty('etag');
    expect(response.body).not.toContain(folder);
  }
  await writeFile(path, bytes);
  expect((await server.inject(`${pathOf('damaged', contentHash)}/raw`)).statusCode).toBe(200);
});

describe.each(['raw', 'thumbnail'])('%s', (part) => {
  test('is 503 where the object store does not answer, with a line in the log and no path in the answer', async () => {
    const { contentHash } = await storeSampleImage(app, 'acme', 9);
    // A store that cannot read what it has: its folder is a file.
    await using own = await createServer(world.app({}, { objects: new FileStore('/dev/null') }), { api: true });
    const headers = { 'x-request-id': `no-store-${part}` };
    const response = await own.inject({ url: `${pathOf('acme', contentHash)}/${part}`, headers });
    expect([response.statusCode, response.headers['retry-after']]).toEqual([503, '5']);
    expect(response.headers).not.toHaveProperty('etag');
    expect(response.body).not.toContain('/dev/null');
    expect(world.logs).toContainEqual(
      expect.objectContaining({
        level: 'error',
        msg: 'request failed: the object store did not answer',
        requestId: `no-store-${part}`,
        err: expect.objectContaining({ code: 'ENOTDIR' }),
      }),
    );
  });
});

describe.each(['raw', 'thumbnail'])('a browser’s copy of %s', (part) => {
  const seed = part === 'raw' ? 10 : 11;
  let contentHash: string;
  let url: string;

  beforeAll(async () => {
    contentHash = (await storeSampleImage(app, 'copies', seed)).contentHash;
    url = `${pathOf('copies', contentHash)}/${part}`;
  });

  const ask = (etag?: string) => server.inject({ url, headers: etag === undefined ? {} : { 'if-none-match': etag } });
  const etagOf = async () => String((await ask()).headers.etag);

  test('is to be asked for again each time, and is another one’s under another token', async () => {
    const { headers } = await ask();
    expect(headers).toMatchObject({ 'cache-control': 'private, no-cache', vary: 'authorization' });
    expect(headers.etag).toMatch(/^"[\x21\x23-\x7e]+"$/); // strong: RFC 9110, 8.8.3
    const other = part === 'raw' ? 'thumbnail' : 'raw';
    const others = await server.inject(`${pathOf('copies', contentHash)}/${other}`);
    expect(others.headers.etag).not.toBe(headers.etag);
    expect(await etagOf()).toBe(headers.etag);
  });

  test('is still good by its ETag alone, in every form that a request may name it', async () => {
    const etag = await etagOf();
    for (const named of [etag, `W/${etag}`, `"other", ${etag}`, `"a,b" ,W/${etag},"c"`, '*']) {
      const response = await ask(named);
      expect([named, response.statusCode, response.body]).toEqual([named, 304, '']);
      expect(response.headers).toMatchObject({ etag, 'cache-control': 'private, no-cache', vary: 'authorization' });
      expect(response.headers).not.toHaveProperty('content-type');
    }
    for (const named of ['"other"', etag.slice(0, -2), etag.replaceAll('"', ''), '', `"x${etag.slice(1)}`]) {
      expect([named, (await ask(named)).statusCode]).toEqual([named, 200]);
    }
  });

  test('costs no read of the object while it is good', async () => {
    const etag = await etagOf();
    const { folder } = app.config.storage as { folder: string };
    const extension = part === 'raw' ? 'png' : 'jpg';
    await rm(join(folder, part, 'tenant=copies', contentHash.slice(0, 2), `${contentHash}.${extension}`));
    expect((await ask(etag)).statusCode).toBe(304);
    expect((await ask()).statusCode).toBe(503);
    await storeSampleImage(app, 'copies', seed);
  });

  test('is good for nobody else, nor once the tenant was forgotten', async () => {
    const { contentHash: short } = await storeSampleImage(app, `forgotten-${part}`, seed);
    const path = `${pathOf(`forgotten-${part}`, short)}/${part}`;
    const headers = { 'if-none-match': String((await server.inject(path)).headers.etag) };
    const locked = await createServer(world.app({ API_TOKENS: 'other-token=other' }), { api: true });
    const authorization = 'Bearer other-token';
    expect((await locked.inject({ url: path, headers })).statusCode).toBe(401);
    expect((await locked.inject({ url: path, headers: { ...headers, authorization } })).statusCode).toBe(404);
    await locked.close();
    await app.cache.invalidateTenantCache(`forgotten-${part}`);
    expect((await server.inject({ url: path, headers })).statusCode).toBe(404);
  });
});
