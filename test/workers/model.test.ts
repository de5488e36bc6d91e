/**
 * The crawl job, its crash points and both tiers against a model in memory: whatever sequence of jobs, deaths, retries,
 * outages of either tier, leases that end, and invalidations there is, PostgreSQL, the object store, the claims and the
 * origin's count are what the model says, and in the end every job is done and both tiers agree.
 *
 * Without PostgreSQL a run comes to nothing, or to what Redis alone can tell it, and writes nothing.
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

const TENANTS = ['a', 'b'] as const;
const URLS = [0, 1, 2] as const;
const CONTENTS = [0, 1, 2] as const;
/** What a URL serves that is no image. */
const NO_IMAGE = CONTENTS.length;
/** What each URL serves at first. */
const FIRST: readonly number[] = [0, 1, NO_IMAGE];
/** What a process may have done last, in the order of the job. */
const STEPS = ['claimed', 'fetched', 'objects put', 'committed', 'in Redis', 'embedding enqueued'] as const;
type Step = (typeof STEPS)[number];
/** How a run ended. */
type End = 'stored' | 'skipped url' | 'skipped content' | 'rejected not-an-image' | 'deferred' | 'unavailable' | 'dead';
/** It runs again. */
const NO_ENDS: readonly End[] = ['deferred', 'unavailable', 'dead'];

interface Job {
  readonly id: string;
  readonly tenant: string;
  readonly url: number;
  readonly force: boolean;
  /** How often it ran before, and died. */
  runs: number;
  deaths: number;
  /** As the queue keeps it for the next run. */
  remembered: Record<string, unknown>;
}

/** What there is, as far as a tenant can tell. */
class TenantModel {
  readonly urls = new Map<number, { content: number; job: string | null }>();
  /** URLs of which the last thing known is that they served no image. */
  readonly refused = new Set<number>();
  /** Which job stored it. */
  readonly contents = new Map<number, string>();
  readonly objects = new Set<number>();
  /** Whose embedding was asked for, as far as the queue knows. */
  readonly embeddings = new Set<number>();
  /** By subject: `u0`, `c2`. */
  readonly claims = new Map<string, string>();
  /** Subjects of claims whose leases have ended. */
  readonly expired = new Set<string>();

  remember(url: number, content: number, job: string | null): void {
    this.urls.set(url, { content, job });
    this.refused.delete(url);
  }

  releaseAll({ id }: Job): void {
    for (const [subject, holder] of this.claims) if (holder === id) this.claims.delete(subject);
  }
}

class Model {
  readonly tenants = new Map(TENANTS.map((name) => [name as string, new TenantModel()]));
  readonly served = [...FIRST];
  readonly requests: number[] = URLS.map(() => 0);
  /** Jobs that died or were put off. */
  readonly unfinished: Job[] = [];
  /** What a job that was put off knows of the bytes. */
  readonly fetched = new Map<string, number>();
  redisIsUp = true;
  postgresIsUp = true;
  /** Jobs that ended without PostgreSQL, and could not give back what dead runs of theirs had claimed. */
  readonly unreleased = new Set<string>();

  endLeases(): void {
    for (const { claims, expired } of this.tenants.values()) for (const subject of claims.keys()) expired.add(subject);
  }

  run(job: Job, dieAt: Step | null): End {
    const tenant = this.tenants.get(job.tenant) as TenantModel;
    const mayHoldMore = job.deaths > 0 || this.fetched.has(job.id);
    const crawled = this.#crawl(tenant, job, dieAt);
    const end = crawled === 'no image' ? this.#refuse(tenant, job, dieAt) : crawled;
    if (mayHoldMore && !NO_ENDS.includes(end)) this.#releaseAll(tenant, job);
    return end;
  }

  #releaseAll(tenant: TenantModel, job: Job): void {
    if (this.postgresIsUp) tenant.releaseAll(job);
  }

  /** A claim is given back, unless its holder dies, or is put off because it cannot have a further one. */
  #claimed<E>(tenant: TenantModel, subject: string, job: Job, work: () => E): E | 'deferred' | 'unavailable' {
    if (!this.postgresIsUp) return 'unavailable';
    const holder = tenant.claims.get(subject);
    if (holder !== undefined && holder !== job.id && !tenant.expired.has(subject)) return 'deferred';
    tenant.claims.set(subject, job.id);
    tenant.expired.delete(subject);
    const end = work();
    if (end !== 'dead' && end !== 'deferred') tenant.claims.delete(subject);
    return end;
  }

  #refuse(tenant: TenantModel, job: Job, dieAt: Step | null): End {
    tenant.refused.add(job.url);
    return dieAt === 'committed' || dieAt === 'in Redis' ? 'dead' : 'rejected not-an-image';
  }

  #crawl(tenant: TenantModel, job: Job, dieAt: Step | null): End | 'no image' {
    if (tenant.refused.has(job.url) && !job.force) return 'rejected not-an-image';
    const known = tenant.urls.get(job.url);
    if (known && (known.job === job.id || (job.runs > 0 && tenant.contents.get(known.content) === job.id))) {
      this.#releaseAll(tenant, job);
      return this.#told(tenant, job, known.content, dieAt);
    }
    if (known && !job.force) return 'skipped url';
    return this.#claimed(tenant, `u${job.url}`, job, () => {
      if (dieAt === 'claimed') return 'dead';
      const before = this.fetched.get(job.id);
      if (before === undefined) return this.#fetch(tenant, job, dieAt);
      return (
        this.#knownContent(tenant, job, before, dieAt) ??
        this.#claimed(tenant, `c${before}`, job, () => this.#fetch(tenant, job, dieAt))
      );
    });
  }

  #fetch(tenant: TenantModel, job: Job, dieAt: Step | null): End | 'no image' {
    const content = this.served[job.url] as number;
    this.requests[job.url] = (this.requests[job.url] as number) + 1;
    const before = this.fetched.get(job.id);
    if (before !== undefined && before !== content) {
      this.fetched.delete(job.id);
      tenant.claims.delete(`c${before}`);
    }
    if (dieAt === 'fetched') return 'dead';
    if (content === NO_IMAGE) return 'no image';
    return this.#knownContent(tenant, job, content, dieAt) ?? this.#store(tenant, job, content, dieAt);
  }

  #knownContent(tenant: TenantModel, job: Job, content: number, dieAt: Step | null): End | null {
    if (!tenant.contents.has(content)) return null;
    tenant.remember(job.url, content, job.id);
    if (dieAt === 'committed' || dieAt === 'in Redis') return 'dead';
    return this.#told(tenant, job, content, dieAt);
  }

  #store(tenant: TenantModel, job: Job, content: number, dieAt: Step | null): End {
    const end = this.#claimed(tenant, `c${content}`, job, (): End => {
      tenant.objects.add(content);
      if (dieAt === 'objects put') return 'dead';
      tenant.contents.set(content, job.id);
      tenant.remember(job.url, content, job.id);
      if (dieAt === 'committed' || dieAt === 'in Redis') return 'dead';
      return this.#told(tenant, job, content, dieAt);
    });
    if (end === 'deferred') this.fetched.set(job.id, content);
    return end;
  }

  /** The end of a job whose record is there. */
  #told(tenant: TenantModel, job: Job, content: number, dieAt: Step | null): End {
    if (tenant.contents.get(content) !== job.id) return 'skipped content';
    tenant.embeddings.add(content);
    return dieAt === 'embedding enqueued' ? 'dead' : 'stored';
  }
}

let world: World;
let site: Site;
/** Of the workers; whoever else there is has its own. */
let link: { readonly redis: Link; readonly postgres: Link };
let images: Buffer[];
let sequences = 0;
let jobs = 0;

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

  async run(job: Job, dieAt: Step | null): Promise<End> {
    const app = openAsWorker();
    const closer = new Closer();
    let killed: (end: 'dead') => void = () => undefined;
    const death = new Promise<'dead'>((resolve) => {
      killed = resolve;
    });
    /** Whoever waits for it never goes on, as in a process that is gone. */
    const die = () => {
      killed('dead');
      return new Promise<never>(() => undefined);
    };
    const { perform } = workOf('crawl', mortal(app, dieAt, die), {
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

  /** Resolves when the others know of it too. */
  async invalidate(tenantId: string): Promise<void> {
    await this.other.cache.invalidateTenantCache(tenantId);
    const [marker, value] = [sha256('marker'), '00000000000000aa'];
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

function mortal(app: App, dieAt: Step | null, die: () => Promise<never>): App {
  const { hybrid } = app.connection;
  const toRedis = hybrid.toRedis.bind(hybrid);
  if (dieAt === 'committed') hybrid.toRedis = die;
  if (dieAt === 'in Redis') hybrid.toRedis = (standing) => toRedis(standing).then(die);
  const { claims, records, objects, queues } = app;
  const take = claims.take.bind(claims);
  if (dieAt === 'claimed') {
    claims.take = async (claim, ms) => {
      const answer = await take(claim, ms);
      return answer.taken ? die() : answer;
    };
  }
  const held: App['objects'] = {
    get: (key) => objects.get(key),
    tidy: (olderThanMs) => objects.tidy(olderThanMs),
    close: () => objects.close(),
    put: async (key: string, bytes: Uint8Array) => {
      await objects.put(key, bytes);
      if (dieAt === 'objects put' && key.startsWith('raw/')) await die();
    },
  };
  if (dieAt === 'fetched') afterFetch(app, records, die);
  if (dieAt === 'embedding enqueued') {
    const enqueue = queues.enqueue.bind(queues);
    queues.enqueue = (contract, payloads) => enqueue(contract, payloads).then(die);
  }
  return { ...app, objects: held };
}

/** Fetched bytes are reported, and looked up next. */
function afterFetch(app: App, records: App['records'], die: () => Promise<never>): void {
  let fetched = false;
  const report = app.events.fetched.bind(app.events);
  app.events.fetched = (...args) => {
    fetched = true;
    report(...args);
  };
  const readContent = records.readContent.bind(records);
  records.readContent = (...args) => (fetched ? die() : readContent(...args));
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
      ...CONTENTS.map((content): [string, string] => [`content:${hashOf(content)}`, `c${content}`]),
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

async function runBoth(model: Model, real: Real, job: Job, dieAt: Step | null): Promise<void> {
  // A step that the run does not come to kills nobody.
  const end = await real.run(job, dieAt);
  // What Redis can tell depends on what was read before: without PostgreSQL it may always be nothing.
  const isNothing = !model.postgresIsUp && end === 'unavailable';
  if (!isNothing) expect(end).toBe(model.run(job, dieAt));
  job.runs += 1;
  if (end === 'dead') job.deaths += 1;
  if (NO_ENDS.includes(end)) model.unfinished.push(job);
  else if (!model.postgresIsUp) model.unreleased.add(job.id);
}

async function mend(model: Model): Promise<void> {
  if (!model.redisIsUp) await link.redis.mend();
  if (!model.postgresIsUp) await link.postgres.mend();
  model.redisIsUp = model.postgresIsUp = true;
}

const dieAt = fc.option(fc.constantFrom(...STEPS), { freq: 2 });

const CRAWL = fc
  .tuple(fc.constantFrom(...TENANTS), fc.constantFrom(...URLS), fc.boolean(), dieAt)
  .map(([tenant, url, force, step]) =>
    command(`crawl ${tenant} ${url}${force ? ' force' : ''}${step ? `, die at ${step}` : ''}`, async (model, real) => {
      await runBoth(model, real, { id: `job-${jobs++}`, tenant, url, force, runs: 0, deaths: 0, remembered: {} }, step);
    }),
  );

const COMMANDS = [
  // As often as most others together: what they do shows in a job alone.
  ...Array.from({ length: 5 }, () => CRAWL),
  fc.tuple(fc.nat(20), dieAt).map(([nth, step]) =>
    command(
      `run unfinished ${nth} again${step ? `, die at ${step}` : ''}`,
      async (model, real) => {
        const [job] = model.unfinished.splice(nth % model.unfinished.length, 1);
        await runBoth(model, real, job as Job, step);
      },
      ({ unfinished }) => unfinished.length > 0,
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
      // Who has neither of them when something changes is told the old: ARCHITECTURE.md says so of a double partition.
      await real.agrees();
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
