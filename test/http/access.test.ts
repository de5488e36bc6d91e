/** Who may do what over HTTP. */
import { request } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createServer } from '../../src/http/server.js';
import { storeSampleImage } from '../support/stored-image.js';
import { createWorld, type World } from '../support/world.js';

/** Tokens hold `=` themselves, stand in several pairs, and one opens everything. */
const API_TOKENS =
  'acme-token=acme,shared-token==acme,shared-token==globex,globex-token=globex,root-token=*,mixed-token=acme,mixed-token=*';

let world: World;
let open: FastifyInstance;
let locked: FastifyInstance;
let contentHash: string;
let jobId: string;

beforeAll(async () => {
  world = await createWorld();
  const app = world.app();
  open = await createServer(app, { api: true });
  locked = await createServer(world.app({ API_TOKENS }), { api: true });
  contentHash = (await storeSampleImage(app, 'acme')).contentHash;
  jobId = (await enqueue('acme-token', 'acme')).json().accepted[0].jobId;
});

afterAll(async () => {
  await open?.close();
  await locked?.close();
  await world?.[Symbol.asyncDispose]();
});

const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
const basic = (user: string, password: string) => ({
  authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`,
});

function enqueue(token: string, tenantId: string) {
  const payload = { tenantId, images: [{ url: 'https://example.com/1.jpg' }] };
  return locked.inject({ method: 'POST', url: '/v1/crawl-jobs', payload, headers: bearer(token) });
}

/** Status of every tenant route for this token, in a fixed order. */
async function statuses(token: string, tenantId: string): Promise<number[]> {
  const payload = { tenantId, contentHash };
  const headers = bearer(token);
  const image = `/v1/tenants/${tenantId}/images/${contentHash}`;
  const answers = [
    await enqueue(token, tenantId),
    await locked.inject({ method: 'POST', url: '/v1/embedding-jobs', payload, headers }),
    await locked.inject({ url: image, headers }),
    await locked.inject({ url: `${image}/raw`, headers }),
    await locked.inject({ url: `${image}/thumbnail`, headers }),
    await locked.inject({ url: `/v1/jobs/crawl/${jobId}`, headers }),
  ];
  return answers.map(({ statusCode }) => statusCode);
}

describe('with tokens', () => {
  test.each(['acme-token', 'shared-token=', 'root-token', 'mixed-token'])('%s opens acme', async (token) => {
    expect(await statuses(token, 'acme')).toEqual([202, 202, 200, 200, 200, 200]);
  });

  test('a tenant’s token finds nothing of another tenant, as if it were absent', async () => {
    expect(await statuses('globex-token', 'acme')).toEqual([404, 404, 404, 404, 404, 404]);
    const theirs = await locked.inject({ url: `/v1/jobs/crawl/${jobId}`, headers: bearer('globex-token') });
    const absent = await locked.inject({ url: '/v1/jobs/crawl/none', headers: bearer('globex-token') });
    expect(theirs.json()).toEqual(absent.json());
  });

  test('a job that names no tenant, or no name, is found by * alone', async () => {
    const app = world.app({ API_TOKENS: 'undefined-token=undefined,null-token=null,acme-token=acme,root-token=*' });
    const server = await createServer(app, { api: true });
    for (const tenantId of [undefined, null, ['acme'], { toString: 'acme' }]) {
      const { id } = await app.queues.get('crawl').add('crawl', { v: 1, tenantId, url: 'https://example.com/1.jpg' });
      const statusWith = async (token: string) =>
        (await server.inject({ url: `/v1/jobs/crawl/${id}`, headers: bearer(token) })).statusCode;
      for (const token of ['undefined-token', 'null-token', 'acme-token']) {
        expect([tenantId, token, await statusWith(token)]).toEqual([tenantId, token, 404]);
      }
      expect(await statusWith('root-token')).toBe(200);
    }
    await server.close();
  });

  test('a token that stands in several pairs opens each of their tenants, and no other', async () => {
    expect((await enqueue('shared-token=', 'globex')).statusCode).toBe(202);
    expect((await enqueue('shared-token=', 'initech')).statusCode).toBe(404);
    expect((await enqueue('root-token', 'initech')).statusCode).toBe(202);
  });

  test.each([
    ['none', {}],
    ['an unknown one', bearer('acme-token2')],
    ['an empty one', { authorization: 'Bearer ' }],
    ['the start of one', bearer('acme-toke')],
    ['one that lost its end', bearer('shared-token')],
    ['one in another scheme', { authorization: 'Token acme-token' }],
  ])('a request with %s is 401 on every route, whatever else is wrong with it', async (_, headers) => {
    const image = `/v1/tenants/acme/images/${contentHash}`;
    const json = { ...headers, 'content-type': 'application/json' };
    const answers = [
      await locked.inject({ url: image, headers }),
      await locked.inject({ url: `${image}/raw`, headers }),
      await locked.inject({ url: `${image}/thumbnail`, headers }),
      await locked.inject({ url: `/v1/jobs/crawl/${jobId}`, headers }),
      await locked.inject({ url: '/v1/jobs/no-queue/1', headers }),
      await locked.inject({ method: 'POST', url: '/v1/embedding-jobs', payload: '{}', headers: json }),
      await locked.inject({ method: 'POST', url: '/v1/crawl-jobs', payload: '{}', headers: json }),
      await locked.inject({ method: 'POST', url: '/v1/crawl-jobs', payload: '{', headers: json }),
      await locked.inject({ method: 'POST', url: '/v1/crawl-jobs', payload: 'x'.repeat(40 << 20), headers: json }),
    ];
    for (const { statusCode, headers: answered } of answers) {
      expect([statusCode, answered['www-authenticate']]).toEqual([401, 'Bearer']);
    }
  });

  test('the dashboard opens with a * token as the Basic password, under any name', async () => {
    for (const url of ['/dashboard', '/dashboard/api/queues']) {
      expect((await locked.inject({ url, headers: basic('anyone', 'root-token') })).statusCode).toBe(200);
      expect((await locked.inject({ url, headers: basic('', 'mixed-token') })).statusCode).toBe(200);
    }
  });

  test('the dashboard, its data and its files are 401 for everybody else', async () => {
    const strangers = [{}, basic('root-token', ''), basic('anyone', 'acme-token'), bearer('root-token')];
    for (const headers of [...strangers, { authorization: 'Basic !!!' }]) {
      for (const url of ['/dashboard', '/dashboard/', '/dashboard/queue/crawl', '/dashboard/api/queues']) {
        const response = await locked.inject({ url, headers });
        expect([url, response.statusCode]).toEqual([url, 401]);
        expect(response.headers['www-authenticate']).toMatch(/^Basic /);
        expect(response.body).not.toMatch(/acme|<html/);
      }
      const pause = await locked.inject({ method: 'PUT', url: '/dashboard/api/queues/crawl/pause', headers });
      expect(pause.statusCode).toBe(401);
    }
  });

  test('health and metrics are open, under any host name', async () => {
    for (const url of ['/healthz', '/readyz', '/metrics']) {
      expect((await locked.inject({ url, headers: { host: 'hybrid.example.com' } })).statusCode).toBe(200);
    }
    expect((await enqueue('acme-token', 'acme')).statusCode).toBe(202);
  });

  test('no token is ever logged', () => {
    expect(JSON.stringify(world.logs)).not.toMatch(/(acme|shared|globex|root|mixed)-token/);
  });
});

describe('without tokens', () => {
  test.each(['localhost', 'localhost:3000', '127.0.0.1:3000', '127.1.2.3', '[::1]:3000', 'LOCALHOST'])(
    'the host name %s is answered',
    async (host) => {
      expect((await open.inject({ url: `/v1/jobs/crawl/${jobId}`, headers: { host } })).statusCode).toBe(200);
      expect((await open.inject({ url: '/dashboard', headers: { host } })).statusCode).toBe(200);
    },
  );

  test.each(['evil.example', 'evil.example:3000', 'localhost.evil.example', '127.0.0.1.nip.io', '10.0.0.1', '[::2]'])(
    'the host name %j, which a page could have led a browser here by, is 421',
    async (host) => {
      const image = `/v1/tenants/acme/images/${contentHash}`;
      const payload = { tenantId: 'acme', images: [{ url: 'https://example.com/1.jpg' }] };
      const headers = { host };
      const answers = [
        await open.inject({ url: `/v1/jobs/crawl/${jobId}`, headers }),
        await open.inject({ url: image, headers }),
        await open.inject({ url: `${image}/raw`, headers }),
        await open.inject({ method: 'POST', url: '/v1/crawl-jobs', payload, headers }),
        await open.inject({ url: '/dashboard', headers }),
        await open.inject({ url: '/dashboard/api/queues', headers }),
        await open.inject({ method: 'PUT', url: '/dashboard/api/queues/crawl/pause', headers }),
      ];
      expect(answers.map(({ statusCode }) => statusCode)).toEqual([421, 421, 421, 421, 421, 421, 421]);
      for (const { body } of answers) expect(body).not.toMatch(/example\.com|jobId|<html/);
      expect(await world.app().queues.get('crawl').isPaused()).toBe(false);
    },
  );

  test('the rule holds over a real socket', async () => {
    await open.listen({ host: '127.0.0.1', port: 0 });
    const { port } = open.server.address() as AddressInfo;
    const status = (host: string) =>
      new Promise<number | undefined>((resolve, reject) => {
        const options = { host: '127.0.0.1', port, path: `/v1/jobs/crawl/${jobId}`, headers: { host } };
        request(options, (response) => resolve(response.resume().statusCode))
          .on('error', reject)
          .end();
      });
    expect(await status('rebound.example')).toBe(421);
    expect(await status(`127.0.0.1:${port}`)).toBe(200);
  });
});
