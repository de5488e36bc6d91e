/**
 * The judge is worth what it notices: a small world in which everything holds, and one violation after the other planted
 * in it, which the judge has to name.
 */
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UnrecoverableError } from 'bullmq';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { toConfig } from '../../src/config.js';
import { sha256 } from '../../src/kinds/identity.js';
import { QUEUE_NAMES } from '../../src/queues/contract.js';
import { run } from '../../workers/main.js';
import { until } from '../support/until.js';
import { openChaosApp } from './app.js';
import { type Expected, judge } from './checker.js';
import { Lab } from './lab.js';
import type { Accepted } from './producer.js';

interface World {
  readonly lab: Lab;
  readonly expected: Expected;
  /** By what became of them. */
  readonly jobs: Readonly<Record<'stored' | 'other' | 'copy' | 'twin' | 'foreign' | 'gone' | 'failed', Accepted>>;
}

let world: World;

beforeAll(async () => {
  world = await made();
});

afterAll(async () => {
  await world?.lab[Symbol.asyncDispose]();
});

/** Two tenants; images that are stored, skipped by URL and by content, refused, retried and given up. */
async function made(): Promise<World> {
  const lab = await Lab.start({ backend: 'redis', seed: 1 });
  const app = openChaosApp(toConfig(lab.env), { retryBaseMs: 50 });
  const working = await run(app, { workers: QUEUE_NAMES, api: false });
  const { origin } = lab;
  const one = async (url: string, tenantId?: string) => (await lab.offer([url], { tenantId }))[0] as Accepted;
  const [stored, other] = [await one(origin.imageUrl(0)), await one(origin.imageUrl(1))];
  const first = {
    stored,
    other,
    gone: await one(origin.statusUrl(404, 0)),
    failed: await one(origin.statusUrl(500, 0)),
  };
  await lab.offer([origin.imageUrl(2), origin.wordsUrl(0), origin.flakyUrl(3)]);
  const foreign = await one(origin.imageUrl(0), 'zenith');
  await lab.settled();
  const [twin] = await lab.offerAsForeigner([origin.imageUrl(0)]);
  const jobs = { ...first, foreign, twin: twin as Accepted, copy: await one(origin.imageUrl(0, 1)) };
  await lab.settled();
  const text = await app.metrics.registry.metrics();
  const metrics = async () => [text];
  await working.stop();
  const failed = ({ id }: Accepted) => (id === first.failed.id ? 'server-error' : null);
  return { lab, jobs, expected: { failed, metrics, mostRequests: 5, recorded: ({ id }) => id !== first.failed.id } };
}

async function violations(expected: Expected = world.expected, lab: Lab = world.lab): Promise<readonly string[]> {
  return (await judge(lab, expected)).violations;
}

/** Changes a row, and back. */
async function changed(table: string, column: string, to: string, where: string): Promise<() => Promise<void>> {
  const { lab } = world;
  const rows = await lab.servers.sql<{ old: unknown; key: string }>(
    `with old as (select ctid, ${column} as value from ${table} where ${where} limit 1)
     update ${table} set ${column} = ${to} from old where ${table}.ctid = old.ctid
       returning old.value as old, ${table}.ctid::text as key`,
  );
  expect(rows).toHaveLength(1);
  const [{ old, key }] = rows as [{ old: unknown; key: string }];
  return async () => {
    await lab.servers.sql(`update ${table} set ${column} = $1 where ctid = $2::tid`, [old, key]);
  };
}

/** A value of Redis under another name, and away again. */
async function copied(from: string, to: string): Promise<() => Promise<void>> {
  const { servers } = world.lab;
  await servers.redis((redis) => redis.copy(from, to, 'REPLACE'));
  return async () => {
    await servers.redis((redis) => redis.del(to));
  };
}

async function hashOf(content: number): Promise<string> {
  const { origin } = world.lab;
  const served = await origin.served(origin.imageUrl(content));
  return served && 'hash' in served ? served.hash : '';
}

/** Has a job of this queue fail that nobody expects to. */
async function failedEmbedding(): Promise<() => Promise<void>> {
  const { app } = world.lab;
  const queue = app.queues.get('embedding');
  const job = await queue.add('embedding', { v: 1, tenantId: 'acme', contentHash: await hashOf(0) });
  const worker = app.backend.worker('embedding', async () => Promise.reject(new UnrecoverableError('planted')), 1);
  void worker.run();
  await until('the job to fail', async () => (await queue.getJobState(String(job.id))) === 'failed');
  await worker.close();
  return () => job.remove();
}

async function waitingJob(): Promise<() => Promise<void>> {
  const { lab } = world;
  const [job] = await lab.offer([lab.origin.imageUrl(4)]);
  return async () => {
    lab.accepted.pop();
    await lab.app.queues.get('crawl').remove(job?.id ?? '');
  };
}

async function forgottenJob(): Promise<() => Promise<void>> {
  const { lab, jobs } = world;
  lab.accepted.push({ ...jobs.stored, id: 'nobody' });
  return async () => void lab.accepted.pop();
}

/** What the queue says of a job, changed. */
async function saying(job: Accepted, outcome: object): Promise<() => Promise<void>> {
  const { servers } = world.lab;
  const set = (value: string) => servers.redis((redis) => redis.hset(`bull:crawl:${job.id}`, 'returnvalue', value));
  const before = await servers.redis((redis) => redis.hget(`bull:crawl:${job.id}`, 'returnvalue'));
  await set(JSON.stringify({ ...JSON.parse(before ?? '{}'), ...outcome }));
  return async () => void (await set(before ?? ''));
}

async function objectGone(): Promise<() => Promise<void>> {
  const { lab } = world;
  const [row] = await lab.servers.sql<{ key: string }>('select raw_key as key from crawl_content_cache limit 1');
  const path = join(lab.folder, row?.key ?? '');
  const bytes = await lab.app.objects.get(row?.key ?? '');
  await rm(path);
  return () => writeFile(path, bytes ?? '');
}

async function strayObject(): Promise<() => Promise<void>> {
  const path = join(world.lab.folder, 'stray.png');
  await writeFile(path, 'stray');
  return () => rm(path);
}

async function otherFaces(): Promise<() => Promise<void>> {
  const { cache, models } = world.lab.app;
  const options = { model: models.embedding };
  const hashes = await Promise.all([0, 1, 2].map(hashOf));
  const all = await cache.getCachedFaceEmbeddingsBatch(hashes, 'acme', options);
  const i = all.findIndex((faces) => (faces?.length ?? 0) > 0);
  expect(i).not.toBe(-1);
  const [hash, faces] = [hashes[i] as string, all[i] ?? []];
  // As many of them: only the numbers are others.
  const others = faces.map((face) => ({ ...face, embedding: face.embedding.map((number) => number / 2) }));
  await cache.cacheFaceEmbeddings(hash, 'acme', others, options);
  return async () => void (await cache.cacheFaceEmbeddings(hash, 'acme', faces, options));
}

async function withoutEmbedding(): Promise<() => Promise<void>> {
  return changed('face_embeddings_cache', 'model', `'another'`, `content_hash = '${await hashOf(0)}'`);
}

test('a world in which everything holds is called sound', async () => {
  expect(await violations()).toEqual([]);
});

const PLANTS: readonly (readonly [string, RegExp, () => Promise<() => Promise<unknown>>])[] = [
  ['a job that is gone', /^I1 job nobody of .* is gone/, forgottenJob],
  ['a job that never ends', /^I1 job .* is prioritized/, waitingJob],
  ['a failed embedding', /^I1 an embedding failed: planted/, failedEmbedding],
  ['an image without an embedding', /^I1 .* was never embedded/, withoutEmbedding],
  [
    'a refusal of a good image',
    /^I1 job .* says rejected corrupt/,
    () => saying(world.jobs.other, { outcome: 'rejected', reason: 'corrupt' }),
  ],
  [
    'a refusal for another reason than there is',
    /^I1 job .* says rejected forbidden, and .* serves gone/,
    () => saying(world.jobs.gone, { reason: 'forbidden' }),
  ],
  [
    'a writer who does not say so',
    /^I1 job .* wrote the record of .* and says skipped/,
    () => saying(world.jobs.other, { outcome: 'skipped', reason: 'content' }),
  ],
  [
    'two who say that they stored',
    /^I1 jobs .* both say that they stored/,
    () => saying(world.jobs.copy, { outcome: 'stored' }),
  ],
  [
    'a URL with the bytes of another',
    /^I2 the record of .* names content .*, and the site serves/,
    async () => changed('crawl_cache', 'content_hash', `'${await hashOf(2)}'`, `url = '${world.jobs.other.url}'`),
  ],
  [
    'a URL whose content is not recorded',
    /^I2 the record of .* which acme has not/,
    () => changed('crawl_cache', 'content_hash', `'${sha256('unknown')}'`, `url = '${world.jobs.other.url}'`),
  ],
  ['a record without its object', /^I2 .* is recorded and not there/, objectGone],
  ['an object without a record', /^I2 stray.png is there and not recorded/, strayObject],
  [
    'other bytes than were served',
    /^I2 .* holds other bytes than were served/,
    async () => {
      const undo = await objectGone();
      const [row] = await world.lab.servers.sql<{ key: string }>(
        'select raw_key as key from crawl_content_cache limit 1',
      );
      await writeFile(join(world.lab.folder, row?.key ?? ''), 'other bytes');
      return undo;
    },
  ],
  ['the faces of another image', /^I2 the faces of/, otherFaces],
  [
    'a skip without a record',
    /^I3 job .* says skipped, and acme has no record/,
    () =>
      changed(
        'crawl_content_cache',
        'tenant_id',
        `'somebody'`,
        `tenant_id = 'acme' and job_id like '${world.jobs.stored.id}%'`,
      ),
  ],
  [
    'a skip before the record',
    /^I3 job .* skipped .* ms before there was a record/,
    () =>
      changed('crawl_content_cache', 'created_at', `now() + interval '1 h'`, `job_id like '${world.jobs.stored.id}%'`),
  ],
  [
    'another value in Redis',
    /^I4 crawl_url:.* another/,
    async () => {
      const [one, two] = [world.jobs.stored, world.jobs.other].map(({ url }) => `hc:crawl_url:acme:${sha256(url)}`);
      return copied(one as string, two as string);
    },
  ],
  [
    'a tenant who is told of a URL of another',
    /^I5 nobody is told to skip .*, which is another's/,
    async () => {
      const url = sha256(world.jobs.stored.url);
      const undoUrl = await copied(`hc:crawl_url:acme:${url}`, `hc:crawl_url:nobody:${url}`);
      const hash = await hashOf(0);
      const undo = await copied(`hc:crawl_content:acme:${hash}`, `hc:crawl_content:nobody:${hash}`);
      return async () => {
        await undoUrl();
        await undo();
      };
    },
  ],
  [
    'a tenant who knows a content of another',
    /^I5 nobody knows content/,
    async () => copied(`hc:crawl_content:acme:${await hashOf(1)}`, `hc:crawl_content:nobody:${await hashOf(1)}`),
  ],
  [
    'a tenant who is given the faces of another',
    /^I5 nobody is given the faces/,
    async () => {
      const [name, { models }] = [await hashOf(1), world.lab.app];
      const key = (tenant: string) => `hc:face_embedding:${tenant}:${name}:${models.embedding}`;
      return copied(key('acme'), key('nobody'));
    },
  ],
];

test.each(PLANTS)('the judge notices %s', async (_what, named, plant) => {
  const undo = await plant();
  try {
    expect(await violations()).toContainEqual(expect.stringMatching(named));
  } finally {
    await undo();
  }
});

test('the judge notices what was expected and did not come', async () => {
  const { jobs, expected } = world;
  const said = await violations({ ...expected, failed: ({ id }) => (id === jobs.stored.id ? 'poison' : null) });
  expect(said).toContainEqual(expect.stringMatching(/^I1 job .* should have failed as poison: stored/));
  expect(said).toContainEqual(expect.stringMatching(/^I1 job .* failed: server-error/));
});

test('the judge notices a record that is missing of a job that is gone', async () => {
  const { lab, expected } = world;
  lab.accepted.push({ id: 'lost', tenantId: 'acme', url: lab.origin.imageUrl(9), at: 0 });
  try {
    const said = await violations({ ...expected, lost: () => true });
    expect(said).toEqual([expect.stringMatching(/^I1 job lost had ended, and acme has no record/)]);
  } finally {
    lab.accepted.pop();
  }
});

test('the judge notices requests beyond those that were needed', async () => {
  const said = await violations({ ...world.expected, mostRequests: 0 });
  expect(said).toContainEqual(expect.stringMatching(/^I1 http.* was asked for 1 times, and not 0/));
});

describe.each([
  ['crawl', /(crawl_images_total\{outcome="stored",reason=""\} )(\d+)/, 'stored'],
  ['embedding', /(embedding_images_total\{outcome="embedded"\} )(\d+)/, 'embedded'],
])('the judge notices an end of %s', (_queue, series, outcome) => {
  test.each([
    ['once too often', 1],
    ['once too seldom', -1],
  ])('that was counted %s', async (_how, more) => {
    const { expected } = world;
    const texts = (await expected.metrics?.()) ?? [];
    const wrong = texts.map((text) => text.replace(series, (_, name, value) => `${name}${Number(value) + more}`));
    expect(wrong).not.toEqual(texts);
    const said = await violations({ ...expected, metrics: async () => wrong });
    expect(said).toEqual([expect.stringMatching(new RegExp(`^I6 .* of "${outcome}"`))]);
  });
});

test('the judge notices a retried failure that no worker has counted', async () => {
  const said = await violations({ ...world.expected, failedBefore: 1 });
  expect(said).toEqual([expect.stringMatching(/^I6 the workers of embedding counted 0 of "failed", and there were 1/)]);
});

test('the judge notices that it compared nothing', async () => {
  const { lab } = world;
  const { postgres } = lab.app.connection.tiers;
  const tiers = { redis: null, postgres };
  const app = { ...lab.app, connection: { ...lab.app.connection, tiers, journal: null } };
  const blind = Object.create(lab, { app: { value: app } }) as Lab;
  const said = await violations(world.expected, blind);
  expect(said).toContain('I4 nothing is in both tiers: nothing was compared');
  expect(said).toContain('I4 the journal does not answer');
});
