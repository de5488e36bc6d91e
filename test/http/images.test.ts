/** Reading images over HTTP: what is known of them, and their bytes. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import sharp from 'sharp';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { createServer } from '../../src/http/server.js';
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
    'cache-control': 'private, max-age=31536000, immutable',
  });
});

test('the thumbnail is a JPEG', async () => {
  const { contentHash } = await storeSampleImage(app, 'acme', 5);
  const response = await server.inject(`${pathOf('acme', contentHash)}/thumbnail`);
  expect(response.statusCode).toBe(200);
  expect(response.headers).toMatchObject({ 'content-type': 'image/jpeg', 'x-content-type-options': 'nosniff' });
  expect(await sharp(response.rawPayload).metadata()).toMatchObject({ format: 'jpeg' });
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
