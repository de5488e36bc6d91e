/** Redis comes back with old data: what was invalidated, overwritten and done since stays so. */
import { setTimeout as pause } from 'node:timers/promises';
import { idOf } from '../../../src/cache/tier.js';
import { toConfig } from '../../../src/config.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { perceptualHashes } from '../../../src/kinds/perceptual-hash.js';
import { createLogger } from '../../../src/logger.js';
import { until } from '../../support/until.js';
import { openChaosApp } from '../app.js';
import { BOTH, type Experiment, type Figures, hold, inLab, must, type Trial, ViolationError } from '../experiment.js';
import type { Lab } from '../lab.js';
import { pick } from '../random.js';
import { away, embedAll, holdLibrary, inFlight, killRedis, type Load, readsMeanwhile, underLoad } from './outages.js';

const [A, B] = ['invalidated', 'untouched'];
const OLD = '00000000000000aa';
const NEW = '00000000000000bb';
/** How long reads go on once everybody sees Redis again. */
const READS_MS = 3_000;
const BETWEEN_READS_MS = 50;
const FEWEST_READS = 50;
/** Contents of the tenants that the load does not ask for. */
const FROM = 1_000_000;

/** What is there before the set-back: keys of the library, and images of both tenants. */
interface Before {
  readonly keys: readonly string[];
  readonly ofA: readonly string[];
  readonly ofB: readonly string[];
}

/** A skip that the library told of, and when. */
interface Skip {
  readonly url: string;
  readonly at: number;
}

/** Programs that read of both tenants until they are stopped: what A had invalidated, and what B has. */
class Readers {
  /** Of each. */
  readonly reads: number[] = [];
  readonly wrong: string[] = [];
  /** Of what A had invalidated. */
  readonly skips: Skip[] = [];
  #stopped = false;
  readonly #reading = new Set<Promise<void>>();

  constructor(private readonly before: Before) {}

  add({ cache }: Lab['app'], random: () => number): void {
    const reader = this.reads.push(0) - 1;
    this.#reading.add(
      this.#readOn(cache, random, reader).catch((error: unknown) => {
        this.wrong.push(`I4 a read failed: ${String(error)}`);
      }),
    );
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#reading);
  }

  async #readOn(cache: Lab['app']['cache'], random: () => number, reader: number): Promise<void> {
    const { keys, ofA, ofB } = this.before;
    while (!this.#stopped) {
      const [key, old, known] = [pick(random, keys), pick(random, ofA), pick(random, ofB)];
      const skipped = cache.shouldSkipUrl(old, A).then(({ shouldSkip }) => {
        if (shouldSkip) this.skips.push({ url: old, at: Date.now() });
      });
      const [forgotten, newer, isKnown] = await Promise.all([
        cache.getCachedPerceptualHash(key, A),
        cache.getCachedPerceptualHash(key, B),
        cache.shouldSkipUrl(known, B),
        skipped,
      ]);
      this.reads[reader] = (this.reads[reader] ?? 0) + 1;
      if (forgotten !== null) this.wrong.push(`I4 ${A} was given ${forgotten}, which it had invalidated`);
      if (newer !== NEW) this.wrong.push(`I4 ${B} was given ${newer}, and not what was written last`);
      if (!isKnown.shouldSkip) this.wrong.push(`I4 ${B} does not know ${known}`);
      await pause(BETWEEN_READS_MS);
    }
  }
}

/** On for some seconds, also in a process that begins only now. */
async function readAfterSetBack(lab: Lab, readers: Readers): Promise<void> {
  const late = openChaosApp(toConfig(lab.env), { logger: createLogger('silent') });
  try {
    readers.add(late, lab.randomFor('late reader'));
    await pause(READS_MS);
    await until('reads by a process that began later', () => (readers.reads.at(-1) ?? 0) >= FEWEST_READS);
    must(late.connection.tiers.redis?.guard.isUp === true, 'a process that began later does not see Redis');
    await readers.stop();
  } finally {
    await late.close();
  }
}

/** Jobs of the old snapshot may have crawled it anew: then there is a record, from before the skip. */
async function unfoundedSkips(lab: Lab, skips: readonly Skip[]): Promise<string[]> {
  const rows = await lab.servers.sql<{ url: string; since: number }>(
    `select url, (extract(epoch from min(created_at)) * 1000)::float8 as since
       from crawl_cache
       where tenant_id = $1 and generation = (select generation from cache_generations where tenant_id = $1)
       group by url`,
    [A],
  );
  const since = new Map(rows.map((row) => [row.url, row.since]));
  const wrong = skips.filter(({ url, at }) => at < Math.floor(since.get(url) ?? Number.POSITIVE_INFINITY));
  return wrong.map(
    ({ url }) => `I3 ${A} was told to skip ${url}, which it had invalidated, before it was crawled again`,
  );
}

async function written(lab: Lab, keys: readonly string[], tenantId: string, value: string): Promise<void> {
  const kept = await Promise.all(keys.map((key) => lab.app.cache.cachePerceptualHash(key, tenantId, value)));
  must(kept.every(Boolean), 'a write was not durable, with both tiers there');
}

/** Redis goes, and comes back as it was copied, while reads go on. */
async function setBack(trial: Trial, lab: Lab, load: Load, { keys }: Before, restore: () => Promise<void>) {
  let killedAt = 0;
  const begin = async () => {
    await killRedis(lab);
    killedAt = Date.now();
    await restore();
    return () => lab.servers.restart('redis');
  };
  const outageMs = trial.full ? 10_000 : 2_000;
  const outage = await away(lab, { server: 'redis', name: 'set back', begin }, outageMs, async () => {});
  const tier = lab.app.connection.tiers.redis?.tier;
  const hot = keys.map((key) => tier?.keyOf(idOf(perceptualHashes.name, A, [key])) ?? '');
  must((await lab.servers.redis((redis) => redis.exists(...hot))) === hot.length, 'Redis was not set back');
  return { killedAt, figures: readsMeanwhile(trial, load, { name: 'set back', ...outage }) };
}

/** Who was refused, or whose job Redis forgot, asks again. */
async function askedAgain(lab: Lab): Promise<void> {
  for (const tenantId of new Set(lab.accepted.map((job) => job.tenantId))) {
    const urls = lab.accepted.filter((job) => job.tenantId === tenantId).map(({ url }) => url);
    await lab.enqueue([...new Set(urls)], { tenantId });
  }
  await lab.settled(10 * 60_000);
}

async function run(trial: Trial, lab: Lab): Promise<Figures> {
  const sizes = trial.full ? { first: 300, more: 1_000, ageMs: 60_000 } : { first: 16, more: 24, ageMs: 3_000 };
  const { cache } = lab.app;
  const urls = (from: number, count: number) =>
    Array.from({ length: count }, (_, i) => lab.origin.imageUrl(FROM + from + i));
  const [ofA, ofB] = [urls(0, sizes.first), urls(sizes.first, sizes.first)];
  const later = urls(2 * sizes.first, sizes.more);
  const keys = ofA.map((url) => sha256(url));
  await lab.workersOf(2);
  await written(lab, keys, A, OLD);
  await written(lab, keys, B, OLD);
  await lab.enqueue(ofA, { tenantId: A });
  await lab.enqueue(ofB, { tenantId: B });
  await until('half of the jobs to be done', () => lab.ended.size >= sizes.first, 120_000);
  const copiedAt = Date.now();
  const restore = await lab.servers.copyRedis();
  await lab.settled();
  const endedFirst = new Set(lab.accepted.map(({ id }) => id));
  must((await cache.invalidateTenantCache(A)) > 0, 'nothing was invalidated');
  await written(lab, keys, B, NEW);
  await lab.enqueue(later, { tenantId: B });
  await lab.settled();
  const load = await underLoad(trial, lab, trial.full ? 20 : 4, { workers: 1 });
  await pause(Math.max(0, copiedAt + sizes.ageMs - Date.now()));
  await inFlight(lab, load);
  const before = { keys, ofA, ofB: [...ofB, ...later] };
  const readers = new Readers(before);
  readers.add(lab.app, lab.randomFor('early reader'));
  const { killedAt, figures } = await setBack(trial, lab, load, before, restore)
    .then((back) => readAfterSetBack(lab, readers).then(() => back))
    .finally(() => readers.stop());
  const reads = readers.reads.reduce((sum, count) => sum + count, 0);
  const wrong = [...readers.wrong, ...(await unfoundedSkips(lab, readers.skips))];
  if (wrong.length > 0) throw new ViolationError(wrong.slice(0, 10));
  await load.stop();
  await lab.settled();
  await askedAgain(lab);
  await embedAll(lab);
  const [beforeCopy, ofOld] = [copiedAt - 1_000, trial.backend === 'redis'];
  const judgement = await lab.check({
    lost: ({ at }) => ofOld && at > beforeCopy && at <= killedAt,
    recorded: () => true,
    outdated: ({ id, tenantId }) => tenantId === A && endedFirst.has(id),
  });
  return { ...hold(judgement, { 'reads of both tenants': reads, ...figures }), ...(await holdLibrary(load)) };
}

const SET_BACK: Experiment = {
  id: 'E6',
  title: 'Redis comes back as it was before a tenant was invalidated and much was stored',
  backends: BOTH,
  run: (trial) => inLab(trial, { latencyMs: 10 }, (lab) => run(trial, lab)),
};

export const SET_BACK_EXPERIMENTS = [SET_BACK];
