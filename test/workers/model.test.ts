/**
 * The crawl job, its crash points and both tiers against a model in memory: whatever sequence of jobs, deaths, retries,
 * outages of either tier, leases that end, and invalidations there is, PostgreSQL, the object store, the claims and the
 * origin's count are what the model says, and in the end every job is done and both tiers agree.
 *
 * Without PostgreSQL a run comes to nothing, or to what Redis alone can tell it, and writes nothing. Each tier can also go
 * in the middle of a run, right after any of its steps.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import { verify } from '../../src/cache/verify.js';
import { DeferredError, TierUnavailableError } from '../../src/errors.js';
import { sha256 } from '../../src/kinds/identity.js';
import { Closer } from '../../src/lifecycle.js';
import { rawKey } from '../../src/storage/object-store.js';
import { workOf } from '../../workers/jobs.js';
import type { Run } from '../../workers/run.js';
import { enqueueMissing } from '../../workers/sweep.js';
import { Link } from '../cache/chaos-support.js';
import { noiseImage } from '../support/images.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, redisClient, type World } from '../support/world.js';
import {
  CONTENTS,
  type End,
  type Fault,
  FIRST,
  type Job,
  Model,
  NO_ENDS,
  NO_IMAGE,
  STEPS,
  type Step,
  TENANTS,
  TenantModel,
  URLS,
} from './crawl-model.js';

let world: World;
let site: Site;
/** Of the workers; whoever else there is has its own. */
let link: { readonly redis: Link; readonly postgres: Link };
let images: Buffer[];
let sequences = 0;
let jobs = 0;
let invalidations = 0;

beforeAll(async () => {
  world = await createWorld();
  site = await startSite();
  link = { redis: await Link.to(world.redisUrl), postgres: await Link.to(world.databaseUrl) };
  images = await Promise.all(CONTENTS.map((content) => noiseImage(24, 24, content + 1)));
  images[NO_IMAGE] = Buffer.from('<!doctype html><title>no</title>');
});

afterAll(async () => {
  await site.close();
  await world[Symbol.asyncDispose]();
  for (const one of Object.values(link)) await one[Symbol.asyncDispose]();
});

/** The real thing. Every run of a job is a process of its own, as far as one can be had in a process. */
class Real {
  readonly #sequence = sequences++;
  /** Never asks Redis. */
  readonly plain = open({ REDIS_URL: 'none', QUEUE_REDIS_URL: world.redisUrl, QUEUE_BACKEND: 'redis' });
  /** Another process, whose servers are always there: it repairs what Redis was not told. */
  readonly other = open({});
  readonly #countedBefore: number[];

  constructor() {
    for (const url of URLS) this.serve(url, FIRST[url] as number);
    this.#countedBefore = URLS.map((url) => site.countOf(this.#path(url)));
  }

  tenant(name: string): string {
    return `s${this.#sequence}-${name}`;
  }

  url(url: number): string {
    return `${site.url}${this.#path(url)}`;
  }

  #path(url: number): string {
    return `/${this.#sequence}/${url}.png`;
  }

  serve(url: number, content: number): void {
    site.put(this.#path(url), { body: images[content] as Buffer, type: 'image/png' });
  }

  requestsOf(url: number): number {
    return site.countOf(this.#path(url)) - (this.#countedBefore[url] as number);
  }

  async run(job: Job, fault: Fault | null): Promise<End> {
    const app = openAsWorker();
    const closer = new Closer();
    let killed: (end: 'dead') => void = () => undefined;
    const death = new Promise<'dead'>((resolve) => {
      killed = resolve;
    });
    let left: Fault | null = fault;
    /** Whoever dies never goes on. */
    const suffer = async (after: Step) => {
      if (left?.after !== after) return;
      const { what } = left;
      left = null;
      if (what !== 'death') return link[what].cut();
      killed('dead');
      await new Promise<never>(() => undefined);
    };
    const { perform } = workOf('crawl', suffering(app, suffer), {
      events: app.events,
      engine: new PuppetEngine(),
      closer,
    });
    const run: Run = {
      id: job.id,
      jobId: job.id,
      deaths: job.deaths,
      isRepeat: job.runs > 0,
      isLast: false,
      remembered: job.remembered,
      remember: async (fact) => {
        job.remembered = { ...job.remembered, ...fact };
      },
      signal: new AbortController().signal,
    };
    const payload = {
      v: 1,
      tenantId: this.tenant(job.tenant),
      url: this.url(job.url),
      ...(job.force && { force: true }),
    };
    const ended = perform(payload, run).then(
      (outcome) => Object.values({ outcome: outcome.outcome, reason: (outcome as { reason?: string }).reason }),
      (error: unknown) => {
        if (error instanceof DeferredError) return ['deferred'];
        if (error instanceof TierUnavailableError) return ['unavailable'];
        throw error;
      },
    );
    try {
      const end = await Promise.race([death, ended]);
      return (end === 'dead' ? end : end.filter(Boolean).join(' ')) as End;
    } finally {
      await closer.close();
      await app.close();
    }
  }

  /** What the embedding queue holds of a tenant: nobody works there. */
  async asked(name: string): Promise<Set<string>> {
    const jobs = await this.plain.queues.get('embedding').getJobs(['waiting', 'prioritized']);
    const own = jobs.filter(({ data }) => data.tenantId === this.tenant(name));
    return new Set(own.map(({ data }) => data.contentHash));
  }

  /** Once Redis has been told everything, also what was written without it. */
  async agrees(): Promise<void> {
    await until('both tiers to agree', async () => (await verify(this.other.connection)).differences.length === 0);
  }

  /** Once Redis was told of every overwrite that it missed: that takes up to a second. */
  async repaired(): Promise<void> {
    await this.other.cache.getCachedPerceptualHash(sha256('marker'), 'nobody'); // from then on it repairs
    const missed = async () => (await this.plain.connection.pool.query('select from redis_repairs')).rowCount;
    await until('Redis to be repaired', async () => (await missed()) === 0);
  }

  /** Resolves when the others know of it too. */
  async invalidate(tenantId: string): Promise<void> {
    await this.other.cache.invalidateTenantCache(tenantId);
    const [marker, value] = [sha256('marker'), (++invalidations).toString(16).padStart(16, '0')];
    await this.other.cache.cachePerceptualHash(marker, tenantId, value);
    const seen = () => this.plain.cache.getCachedPerceptualHash(marker, tenantId);
    await until('the invalidation to be known', async () => (await seen()) === value);
  }

  async endLeases(): Promise<void> {
    const tenants = TENANTS.map((name) => this.tenant(name));
    const text = "update claims set expires_at = now() - interval '1 second' where tenant_id = any($1)";
    await this.plain.connection.pool.query(text, [tenants]);
  }

  async close(): Promise<void> {
    await this.other.close();
    await this.plain.close();
  }

  /** The cache's keys and the queues. */
  async forgetRedis(): Promise<void> {
    const redis = redisClient(world);
    const keys = await redis.keys(`${world.namespace}:*`);
    if (keys.length > 0) await redis.del(...keys);
    redis.disconnect();
  }
}

function open(env: Record<string, string>): App {
  return world.app({ FETCH_ALLOW: '127.0.0.1/32:*', ...env }, { engine: new PuppetEngine() });
}

function openAsWorker(): App {
  return open({ REDIS_URL: link.redis.url, QUEUE_REDIS_URL: world.redisUrl, DATABASE_URL: link.postgres.url });
}

/** An app whose jobs say after each step that they have come to it. */
function suffering(app: App, suffer: (after: Step) => Promise<void>): App {
  const { claims, records, objects, queues, connection, events } = app;
  const { hybrid } = connection;
  const toRedis = hybrid.toRedis.bind(hybrid);
  hybrid.toRedis = async (standing) => {
    await suffer('committed');
    await toRedis(standing);
    await suffer('in Redis');
  };
  const take = claims.take.bind(claims);
  claims.take = async (claim, ms) => {
    const answer = await take(claim, ms);
    if (answer.taken) await suffer(claim.subject.startsWith('url:') ? 'claimed' : 'content claimed');
    return answer;
  };
  // Fetched bytes are reported, and looked up next.
  let fetched = false;
  const report = events.fetched.bind(events);
  events.fetched = (...args) => {
    fetched = true;
    report(...args);
  };
  const readContent = records.readContent.bind(records);
  records.readContent = async (...args) => {
    if (fetched) await suffer('fetched');
    return readContent(...args);
  };
  const enqueue = queues.enqueue.bind(queues);
  queues.enqueue = async (contract, payloads) => {
    const ids = await enqueue(contract, payloads);
    await suffer('embedding enqueued');
    return ids;
  };
  const held: App['objects'] = {
    get: (key) => objects.get(key),
    tidy: (olderThanMs) => objects.tidy(olderThanMs),
    close: () => objects.close(),
    put: async (key: string, bytes: Uint8Array) => {
      await objects.put(key, bytes);
      if (key.startsWith('raw/')) await suffer('objects put');
    },
  };
  return { ...app, objects: held };
}

/** PostgreSQL, objects, claims, embeddings and requests are what the model says. */
async function compare(model: Model, real: Real): Promise<void> {
  const { pool } = real.plain.connection;
  for (const [name, tenant] of model.tenants) {
    const tenantId = real.tenant(name);
    for (const url of URLS) {
      const { record, rejection } = await real.plain.records.urlFacts(tenantId, real.url(url));
      expect(rejection !== null).toBe(tenant.refused.has(url));
      const known = tenant.urls.get(url);
      const expected = known && { contentHash: hashOf(known.content), jobId: known.job };
      expect(record && { contentHash: record.contentHash, jobId: record.jobId }).toEqual(expected ?? null);
    }
    for (const content of CONTENTS) {
      const found = await real.plain.records.content(tenantId, hashOf(content));
      expect(found?.jobId ?? null).toBe(tenant.contents.get(content) ?? null);
      const object = await real.plain.objects.get(rawKey(tenantId, hashOf(content), 'image/png'));
      expect(object !== null).toBe(tenant.objects.has(content));
      if (found) expect(object).not.toBeNull();
    }
    expect(await real.asked(name)).toEqual(new Set([...tenant.embeddings].map(hashOf)));
    const { rows } = await pool.query('select subject, holder from claims where tenant_id = $1', [tenantId]);
    const subjects = new Map([
      ...URLS.map((url): [string, string] => [`url:${sha256(real.url(url))}`, `u${url}`]),
      ...[...CONTENTS, NO_IMAGE].map((content): [string, string] => [`content:${hashOf(content)}`, `c${content}`]),
    ]);
    expect(new Map(rows.map((row) => [subjects.get(row.subject), row.holder]))).toEqual(tenant.claims);
  }
  expect(URLS.map((url) => real.requestsOf(url))).toEqual(model.requests);
}

/** A sweep finds what got lost on the way, and whose record is there. */
async function everyRecordIsAskedFor(model: Model, real: Real): Promise<void> {
  await enqueueMissing(real.plain, real.plain.models.embedding, new Date(0));
  for (const [name, { contents, embeddings }] of model.tenants) {
    const expected = new Set([...embeddings, ...contents.keys()]);
    expect(await real.asked(name)).toEqual(new Set([...expected].map(hashOf)));
  }
}

const hashOf = (content: number) => sha256(images[content] as Buffer);

type Command = fc.AsyncCommand<Model, Real>;

function command(
  name: string,
  act: (model: Model, real: Real) => Promise<void>,
  check = (_: Readonly<Model>) => true,
): Command {
  return {
    check,
    toString: () => name,
    run: async (model, real) => {
      await act(model, real);
      await compare(model, real);
    },
  };
}

async function runBoth(model: Model, real: Real, job: Job, fault: Fault | null): Promise<void> {
  // A job that died runs again when its lock has ended, which takes longer than the repair of what it wrote without Redis.
  if (job.deaths > 0) await real.repaired();
  // Who has neither tier when something changes is told the old: ARCHITECTURE.md says so of a double partition.
  if (fault?.what === 'postgres') await real.agrees();
  // A step that the run does not come to hurts nobody.
  const end = await real.run(job, fault);
  // What Redis can tell depends on what was read before: without PostgreSQL it may always be nothing.
  const isNothing = !model.postgresIsUp && end === 'unavailable';
  if (!isNothing) expect(end).toBe(model.run(job, fault));
  job.runs += 1;
  if (end === 'dead') job.deaths += 1;
  if (NO_ENDS.includes(end)) model.unfinished.push(job);
  if (!model.postgresIsUp) model.unreleased.add(job.id);
}

async function mend(model: Model): Promise<void> {
  if (!model.redisIsUp) await link.redis.mend();
  if (!model.postgresIsUp) await link.postgres.mend();
  model.redisIsUp = model.postgresIsUp = true;
}

const FAULT = fc.option(
  fc.record({ after: fc.constantFrom(...STEPS), what: fc.constantFrom('death', 'death', 'redis', 'postgres') }),
  { freq: 2 },
) as fc.Arbitrary<Fault | null>;

const saidOf = (fault: Fault | null) => (fault ? `, ${fault.what} after ${fault.after}` : '');

/** Whether it is known what a run comes to: a tier goes once, and Redis is there when PostgreSQL goes. */
function isPossible(fault: Fault | null, force: boolean, { redisIsUp, postgresIsUp }: Readonly<Model>): boolean {
  if (!fault || fault.what === 'death') return true;
  // Who is forced goes on where Redis knows the URL.
  if (force && fault.what === 'postgres' && fault.after === 'claimed') return false;
  return redisIsUp && postgresIsUp;
}

const CRAWL = fc
  .tuple(fc.constantFrom(...TENANTS), fc.constantFrom(...URLS), fc.boolean(), FAULT)
  .map(([tenant, url, force, fault]) =>
    command(
      `crawl ${tenant} ${url}${force ? ' force' : ''}${saidOf(fault)}`,
      async (model, real) => {
        const job = { id: `job-${jobs++}`, tenant, url, force, runs: 0, deaths: 0, remembered: {} };
        await runBoth(model, real, job, fault);
      },
      (model) => isPossible(fault, force, model),
    ),
  );

const COMMANDS = [
  // As often as most others together: what they do shows in a job alone.
  ...Array.from({ length: 5 }, () => CRAWL),
  fc.tuple(fc.nat(20), FAULT).map(([nth, fault]) =>
    command(
      `run unfinished ${nth} again${saidOf(fault)}`,
      async (model, real) => {
        const [job] = model.unfinished.splice(nth % model.unfinished.length, 1);
        await runBoth(model, real, job as Job, fault);
      },
      (model) => {
        const job = model.unfinished[nth % model.unfinished.length];
        return job !== undefined && isPossible(fault, job.force, model);
      },
    ),
  ),
  fc.tuple(fc.constantFrom(...URLS), fc.constantFrom(...CONTENTS, NO_IMAGE)).map(([url, content]) =>
    command(`serve ${content} at ${url}`, async (model, real) => {
      model.served[url] = content;
      real.serve(url, content);
    }),
  ),
  fc.constantFrom(...TENANTS).map((name) =>
    command(`invalidate ${name}`, async (model, real) => {
      const tenant = model.tenants.get(name) as TenantModel;
      tenant.urls.clear();
      tenant.contents.clear();
      tenant.refused.clear();
      await real.invalidate(real.tenant(name));
    }),
  ),
  fc
    .tuple(fc.constantFrom(...TENANTS), fc.constantFrom(...URLS), fc.constantFrom(...CONTENTS))
    .map(([name, url, content]) =>
      command(
        `the library records ${content} at ${url} of ${name}`,
        async (model, real) => {
          (model.tenants.get(name) as TenantModel).remember(url, content, null);
          const bytes = images[content] as Buffer;
          await real.other.cache.storeCrawledImage(real.url(url), bytes, { rawKey: 'theirs' }, real.tenant(name));
        },
        // Of others it would be the only record, and their bytes in a store of its user's own.
        ({ tenants }) => tenants.get(name)?.contents.has(content) === true,
      ),
    ),
  fc.constant(
    command('Redis forgets, the queues too', async (model, real) => {
      for (const { embeddings } of model.tenants.values()) embeddings.clear();
      await real.forgetRedis();
    }),
  ),
  fc.constant(
    command('Redis is cut off or comes back', async (model) => {
      model.redisIsUp = !model.redisIsUp;
      if (model.redisIsUp) await link.redis.mend();
      else link.redis.cut();
    }),
  ),
  fc.constant(
    command('PostgreSQL is cut off or comes back', async (model, real) => {
      model.postgresIsUp = !model.postgresIsUp;
      if (model.postgresIsUp) return link.postgres.mend();
      await real.agrees(); // see runBoth
      link.postgres.cut();
    }),
  ),
  fc.constant(
    command('leases end', async (model, real) => {
      model.endLeases();
      await real.endLeases();
    }),
  ),
];

test('a crawl job does what its model does, whatever dies', { timeout: 300_000 }, async () => {
  const property = fc.asyncProperty(fc.commands(COMMANDS, { maxCommands: 20 }), async (commands) => {
    const model = new Model();
    const real = new Real();
    try {
      await fc.asyncModelRun(() => ({ model, real }), commands);
      await mend(model);
      if (model.unreleased.size > 0) {
        model.endLeases();
        await real.endLeases();
      }
      // Each job that is unfinished is run again until it is done: dead holders first, or nobody else can be.
      for (let rounds = 0; model.unfinished.length > 0; rounds++) {
        expect(rounds).toBeLessThan(50);
        await runBoth(model, real, model.unfinished.shift() as Job, null);
        await compare(model, real);
      }
      const held = [...model.tenants.values()].flatMap(({ claims }) => [...claims.values()]);
      expect(held.filter((holder) => !model.unreleased.has(holder))).toEqual([]);
      await everyRecordIsAskedFor(model, real);
      await real.agrees();
    } finally {
      await mend(model);
      await real.close();
    }
  });
  await fc.assert(property, { numRuns: 20, endOnFailure: true });
});
