/** What is read, and written again because of it, while its tenant is invalidated. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { viewImage } from '../../src/cache/image-view.js';
import { entry } from '../../src/cache/tier.js';
import { crawlContents } from '../../src/kinds/crawl.js';
import { sha256 } from '../../src/kinds/identity.js';
import { crawlContent } from '../kinds/examples.js';
import { until } from '../support/until.js';
import { type Link, Servers } from './chaos-support.js';
import { freshTenant, type OpenCache } from './support.js';

const BYTES = Buffer.from('an image that is known');
const HASH = sha256(BYTES);
const KNOWN = 'https://example.com/known.jpg';
const NEW = 'https://example.com/new.jpg';
const NOT_SKIPPED = { shouldSkip: false, rawKey: null, reason: null };
const VALIDATORS = { etag: null, lastModified: null };

let servers: Servers;
let a: OpenCache;
let b: OpenCache;
let tenant: string;

beforeAll(async () => {
  servers = await Servers.start();
});

afterAll(() => servers[Symbol.asyncDispose]());

beforeEach(async () => {
  tenant = freshTenant();
  a = servers.open();
  b = servers.open();
  expect(await a.service.storeCrawledImage(KNOWN, BYTES, { rawKey: 'raw' }, tenant)).toBe(true);
});

afterEach(() => servers.heal());

const invalidateBehindTheirBacks = () => servers.sql('select invalidate_tenant_cache($1)', [tenant]);
test('a process that has not heard of an invalidation yet does not write into the new generation what it read before', async () => {
  expect(await b.service.shouldSkipUrl(KNOWN, tenant)).toMatchObject({ shouldSkip: true });
  await invalidateBehindTheirBacks();
  expect(await b.service.shouldSkipCrawledImage(NEW, BYTES, tenant)).toEqual(NOT_SKIPPED);
  expect(await a.service.shouldSkipCrawledImage(NEW, BYTES, tenant)).toEqual(NOT_SKIPPED);
});

test('a content that was read before an invalidation is not recorded again after it, and its reader is told', async () => {
  const read = await a.records.readContent(tenant, HASH);
  if (!read) throw new Error('the content was to be known');
  const image = { url: NEW, sourceUrl: null, contentHash: HASH, validators: VALIDATORS, ...read };
  expect(await a.records.storeUrl(tenant, image, null)).toBe(true);
  await a.service.invalidateTenantCache(tenant);
  expect(await a.records.storeUrl(tenant, image, null)).toBe(false);
  expect(await a.records.content(tenant, HASH)).toBeNull();
  expect(await b.service.shouldSkipUrl(NEW, tenant)).toEqual(NOT_SKIPPED);
});

test('who records the same content anew in the same batch is not held back by it', async () => {
  const again = entry(tenant, crawlContents, HASH, crawlContent('again'));
  await a.service.invalidateTenantCache(tenant);
  const both = [again, { ...again, onlyIn: 1 }];
  for (const entries of [both, both.reverse()]) {
    const { entries: standing } = await a.connection.hybrid.write(entries, { hotWithoutDurable: false });
    expect(standing).toHaveLength(2);
  }
  expect(await b.records.content(tenant, HASH)).toMatchObject({ rawKey: 'raw/again' });
});

describe('what PostgreSQL found before the tenant was invalidated, and was told of after', () => {
  const PHASH = '0f1e2d3c4b5a6978';
  let reader: OpenCache;
  let link: Link;

  beforeEach(async () => {
    link = await servers.link('postgres');
    reader = servers.open({ DATABASE_URL: link.url });
    expect(await a.service.cachePerceptualHash(HASH, tenant, PHASH)).toBe(true);
    expect(await a.service.cacheFaceEmbeddings(HASH, tenant, [], { model: 'model@1' })).toBe(true);
    expect(await reader.service.findNearDuplicates(PHASH, tenant)).toHaveLength(1);
  });

  /** What `asking` resolves with, where the tenant is invalidated while the answer to the statement is under way. */
  async function overtaken<T>(statement: string, asking: () => Promise<T>): Promise<T> {
    const [before] = await servers.sql<{ now: string }>('select clock_timestamp()::text as now');
    link.hold();
    const asked = asking();
    await until('PostgreSQL to have answered', async () => {
      const [row] = await servers.sql<{ done: boolean }>(
        `select count(*) > 0 as done from pg_stat_activity
           where query like $1 and query not like '%pg_stat_activity%' and state = 'idle' and query_start > $2::timestamptz`,
        [statement, before?.now],
      );
      return row?.done;
    });
    expect(await reader.service.invalidateTenantCache(tenant)).toBeGreaterThan(0);
    link.letGo();
    return await asked;
  }

  test('is no near-duplicate', async () => {
    const found = await overtaken('%perceptual_hash_bands%', () => reader.service.findNearDuplicates(PHASH, tenant));
    expect(found).toEqual([]);
  });

  test('is no image', async () => {
    const view = await overtaken('select url from crawl_cache%', () =>
      viewImage(reader.connection, tenant, HASH, 'model@1'),
    );
    expect(view).toBeNull();
  });
});
