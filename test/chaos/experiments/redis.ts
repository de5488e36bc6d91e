/** Redis is killed, frozen, emptied, and set back. */
import { setTimeout as pause } from 'node:timers/promises';
import { idOf } from '../../../src/cache/tier.js';
import { verify } from '../../../src/cache/verify.js';
import { toConfig } from '../../../src/config.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { perceptualHashes } from '../../../src/kinds/perceptual-hash.js';
import { createLogger } from '../../../src/logger.js';
import { until } from '../../support/until.js';
import { openChaosApp } from '../app.js';
import {
  BOTH,
  boundOf,
  type Experiment,
  type Figures,
  hold,
  inLab,
  must,
  type Trial,
  ViolationError,
} from '../experiment.js';
import { type Lab, POLITE } from '../lab.js';
import { holdLibrary, inFlight, killRedis, lostIn, type Outage, ratesOf, redisOutage, underLoad } from './outages.js';

/** Jobs a second that leave two cores some room: queues on PostgreSQL go on while Redis is away, and cost more. */
const FULL_RATE = { redis: 40, postgres: 20 };

/** One outage after the other under steady load, each followed by time to come back. */
async function throughOutages(trial: Trial, how: 'killed' | 'frozen', lengthsMs: readonly number[]): Promise<Figures> {
  return inLab(trial, { latencyMs: 20, ...POLITE }, async (lab) => {
    const load = await underLoad(lab, trial.rate ?? (trial.full ? FULL_RATE[trial.backend] : 15));
    await pause(trial.full ? 5_000 : 1_000); // what had gathered is done
    const from = Date.now();
    await pause(trial.full ? 15_000 : 3_000);
    const outages: Outage[] = [];
    for (const ms of lengthsMs) {
      outages.push(await redisOutage(trial, lab, load, how, ms));
      await pause(trial.full ? 20_000 : 3_000);
    }
    const to = Date.now();
    await load.stop();
    await lab.settled(boundOf(await lab.unended('crawl')));
    const lost = lostIn(
      lab,
      outages.flatMap(({ losses }) => losses),
    );
    const judgement = await lab.check({ lost });
    const figures = Object.assign({ stalled: lab.stalled.size }, ...outages.map((outage) => outage.figures));
    Object.assign(figures, hold(judgement, figures), await holdLibrary(load));
    const outlived = how === 'frozen' && trial.backend === 'redis';
    must(!outlived || lab.stalled.size > 0, 'no job outlived its lock: nothing was tried');
    return { ...figures, ...(await ratesOf(trial, lab, outages, { from, to })) };
  });
}

const KILLED: Experiment = {
  id: 'E3',
  title: 'Redis is killed and started again, under load',
  backends: BOTH,
  run: (trial) => throughOutages(trial, 'killed', trial.full ? [30_000] : [5_000]),
};

const FROZEN: Experiment = {
  id: 'E4',
  title: 'Redis is frozen, for longer than a job keeps its lock',
  backends: BOTH,
  run: (trial) => throughOutages(trial, 'frozen', trial.full ? [5_000, 30_000, 90_000] : [10_000]),
};

const TENANT = 'acme'; // of whoever does not say
const EMBED_MS = 120_000;

interface UrlRow {
  readonly url: string;
  readonly hash: string;
}

function recorded({ servers }: Lab, tenantId = TENANT): Promise<UrlRow[]> {
  return servers.sql('select url, content_hash as hash from crawl_cache where tenant_id = $1', [tenantId]);
}

/** What the queue forgot to embed, the sweep of a new worker finds. */
async function embedAll(lab: Lab): Promise<void> {
  const [oldest] = lab.workers;
  await oldest?.stop();
  await lab.worker();
  const missing = `select count(*)::int as count from crawl_content_cache as content where not exists (
    select from face_embeddings_cache as face
    where face.tenant_id = content.tenant_id and face.content_hash = content.content_hash)`;
  const isDone = async () => (await lab.servers.sql<{ count: number }>(missing))[0]?.count === 0;
  await until('every image to be embedded', isDone, EMBED_MS);
}

/** Everything that is recorded is read once, and then Redis has it again, as PostgreSQL has it. */
async function refilled(lab: Lab): Promise<Figures> {
  const { cache, connection } = lab.app;
  const rows = await recorded(lab);
  const hashes = [...new Set(rows.map(({ hash }) => hash))];
  const skips = await cache.shouldSkipUrlBatch(
    rows.map(({ url }) => url),
    TENANT,
  );
  const images = await cache.shouldSkipCrawledImageBatch(
    rows.map(({ url, hash }) => ({ url, imageBytes: hash })),
    TENANT,
  );
  must(
    [...skips, ...images].every(({ shouldSkip }) => shouldSkip),
    'I4 the library does not know what is recorded',
  );
  const facts = [
    ...(await cache.getCachedPerceptualHashBatch(hashes, TENANT)),
    ...(await cache.getCachedFaceEmbeddingsBatch(hashes, TENANT)),
  ];
  must(
    facts.every((fact) => fact !== null),
    'I4 the library does not know all faces and hashes that are recorded',
  );
  const least = { crawl_url: rows.length, crawl_content: hashes.length, perceptual_hash: hashes.length };
  const kinds = Object.entries({ ...least, face_embedding: hashes.length });
  const { sampled, compared, differences } = await until('Redis to be filled again', async () => {
    const found = await verify(connection, { sample: 100_000 });
    const counts: Readonly<Record<string, number>> = found.sampled.redis;
    return kinds.every(([kind, count]) => (counts[kind] ?? 0) >= count) ? found : null;
  });
  if (differences.length > 0) throw new ViolationError(differences.map(({ id, what }) => `I4 ${id}: ${what}`));
  must(compared >= kinds.reduce((sum, [, count]) => sum + count, 0), 'less was compared than was read');
  return { refilled: Object.values(sampled.redis).reduce((sum, count) => sum + count, 0) };
}

/** Everything that was ever accepted is asked for again: it is done, and what was recorded is not fetched. */
async function askedAgain(lab: Lab): Promise<Figures> {
  const known = await recorded(lab);
  const before = lab.origin.counts();
  await lab.enqueue([...new Set(lab.accepted.map(({ url }) => url))]);
  await lab.settled();
  const after = lab.origin.counts();
  const refetched = known.filter(({ url }) => after.get(url) !== before.get(url));
  must(refetched.length === 0, `I3 ${refetched.length} URLs were fetched though they were recorded`);
  return { 'recorded before': known.length, 'recorded after': (await recorded(lab)).length };
}

const EMPTIED: Experiment = {
  id: 'E5',
  title: 'Redis comes back without anything, in the middle of a run',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 20 }, async (lab) => {
      const load = await underLoad(lab, trial.full ? 40 : 12);
      const folder = await lab.servers.redisFolder();
      await pause(trial.full ? 20_000 : 4_000);
      for (let i = trial.full ? 10 : 1; i > 0; i--) await load.jobs.burst(150);
      await inFlight(lab, load);
      await killRedis(lab);
      const killedAt = Date.now();
      const ended = new Set(lab.ended.keys());
      const open = lab.accepted.filter(({ id }) => !ended.has(id)).length;
      must(ended.size > 0 && open > 0, `${ended.size} jobs had ended and ${open} had not: nothing was tried`);
      await lab.servers.emptyRedis(folder);
      await lab.servers.restart('redis');
      await pause(trial.full ? 20_000 : 4_000);
      await load.stop();
      await lab.settled();
      const known = new Set((await recorded(lab)).map(({ url }) => url));
      const forgotten = lab.accepted.filter(({ id, url }) => ended.has(id) && !known.has(url));
      must(forgotten.length === 0, `I1 ${forgotten.length} jobs had ended, and there is no record of their URLs`);
      // With PostgreSQL as the store of the queue, that is all: nothing is lost, and nobody need ask again.
      const onRedis = trial.backend === 'redis';
      if (!onRedis) hold(await lab.check({ recorded: () => true }));
      const again = await askedAgain(lab);
      await embedAll(lab);
      const isGone = ({ at }: { at: number }) => onRedis && at <= killedAt;
      const judgement = await lab.check({ lost: isGone, recorded: () => true });
      const figures = hold(judgement, { ...again, 'open then': open });
      must(!onRedis || Number(figures.lost) > 0, 'the queue lost nothing: nothing was tried');
      return { ...figures, ...(await holdLibrary(load)), ...(await refilled(lab)) };
    }),
};

const [A, B] = ['invalidated', 'untouched'];
const OLD = '00000000000000aa';
const NEW = '00000000000000bb';
const READS_MS = 3_000;
const FEWEST_READS = 50;

/** Reads for some seconds, in this process and in one that begins only now. @returns what was wrong */
async function readsAfterSetBack(lab: Lab, keys: readonly string[], ofA: readonly string[], ofB: readonly string[]) {
  const wrong: string[] = [];
  const skipped = new Set<string>();
  let reads = 0;
  const late = openChaosApp(toConfig(lab.env), { logger: createLogger('silent') });
  try {
    const read = async ({ cache, connection }: Lab['app']) => {
      const isUp = () => connection.tiers.redis?.guard.isUp;
      for (const end = Date.now() + READS_MS; Date.now() < end || !isUp() || reads < FEWEST_READS; ) {
        const [key, old, known] = [lab.pick(keys), lab.pick(ofA), lab.pick(ofB)];
        const [forgotten, newer, isSkipped, isKnown] = await Promise.all([
          cache.getCachedPerceptualHash(key, A),
          cache.getCachedPerceptualHash(key, B),
          cache.shouldSkipUrl(old, A),
          cache.shouldSkipUrl(known, B),
        ]);
        reads += 1;
        if (forgotten !== null) wrong.push(`I4 ${A} was given ${forgotten}, which it had invalidated`);
        if (newer !== NEW) wrong.push(`I4 ${B} was given ${newer}, and not what was written last`);
        if (isSkipped.shouldSkip) skipped.add(old);
        if (!isKnown.shouldSkip) wrong.push(`I4 ${B} does not know ${known}`);
      }
    };
    await Promise.all([read(lab.app), read(late)]);
  } finally {
    await late.close();
  }
  // Jobs of the old snapshot may have crawled it anew by now: then there is a record.
  const known = new Set((await recorded(lab, A)).map(({ url }) => url));
  for (const url of skipped)
    if (!known.has(url)) wrong.push(`I3 ${A} was told to skip ${url}, which it had invalidated`);
  return { reads, wrong: wrong.slice(0, 10) };
}

const SET_BACK: Experiment = {
  id: 'E6',
  title: 'Redis comes back as it was before a tenant was invalidated and much was stored',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 10 }, async (lab) => {
      const sizes = trial.full ? { first: 300, more: 1_000, ageMs: 60_000 } : { first: 40, more: 100, ageMs: 5_000 };
      const { cache, connection } = lab.app;
      const urls = (from: number, count: number) =>
        Array.from({ length: count }, (_, i) => lab.origin.imageUrl(from + i));
      const [ofA, ofB] = [urls(0, sizes.first), urls(sizes.first, sizes.first)];
      const later = urls(2 * sizes.first, sizes.more);
      const keys = ofA.map((url) => sha256(url));
      const write = async (tenantId: string, value: string) => {
        const kept = await Promise.all(keys.map((key) => cache.cachePerceptualHash(key, tenantId, value)));
        must(kept.every(Boolean), 'a write was not durable, with both tiers there');
      };
      await lab.workersOf(2);
      await write(A, OLD);
      await write(B, OLD);
      await lab.enqueue(ofA, { tenantId: A });
      await lab.enqueue(ofB, { tenantId: B });
      await until('half of the jobs to be done', () => lab.ended.size >= sizes.first, 120_000);
      const copiedAt = Date.now();
      const setBack = await lab.servers.copyRedis();
      await lab.settled();
      const endedFirst = new Set(lab.accepted.map(({ id }) => id));
      must((await cache.invalidateTenantCache(A)) > 0, 'nothing was invalidated');
      await write(B, NEW);
      await lab.enqueue(later, { tenantId: B });
      await lab.settled();
      await pause(Math.max(0, copiedAt + sizes.ageMs - Date.now()));
      await killRedis(lab);
      const killedAt = Date.now();
      await setBack();
      await lab.servers.restart('redis');
      const tier = connection.tiers.redis?.tier;
      const hot = keys.map((key) => tier?.keyOf(idOf(perceptualHashes.name, A, [key])) ?? '');
      must((await lab.servers.redis((redis) => redis.exists(...hot))) === hot.length, 'Redis was not set back');
      const { reads, wrong } = await readsAfterSetBack(lab, keys, ofA, [...ofB, ...later]);
      if (wrong.length > 0) throw new ViolationError(wrong);
      await lab.enqueue(ofA, { tenantId: A });
      await lab.settled();
      const [beforeCopy, ofOld] = [copiedAt - 1_000, trial.backend === 'redis'];
      const judgement = await lab.check({
        lost: ({ at }) => ofOld && at > beforeCopy && at <= killedAt,
        recorded: () => true,
        outdated: ({ id, tenantId }) => tenantId === A && endedFirst.has(id),
      });
      return hold(judgement, { reads });
    }),
};

export const REDIS_EXPERIMENTS = [KILLED, FROZEN, EMPTIED, SET_BACK];
