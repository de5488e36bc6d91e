/** Redis is killed, frozen, and emptied. */
import { setTimeout as pause } from 'node:timers/promises';
import { verify } from '../../../src/cache/verify.js';
import { until } from '../../support/until.js';
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
import type { Accepted } from '../producer.js';
import { embedAll, holdLibrary, type Load, lostIn, type Outage, ratesOf, redisOutage, underLoad } from './outages.js';

/** Jobs a second that leave two cores some room: queues on PostgreSQL go on while Redis is away, and cost more. */
const FULL_RATE = { redis: 40, postgres: 20 };

/** One outage after the other under steady load, each followed by time to come back. */
async function throughOutages(trial: Trial, how: 'killed' | 'frozen', lengthsMs: readonly number[]): Promise<Figures> {
  return inLab(trial, { latencyMs: 20, ...POLITE }, async (lab) => {
    const load = await underLoad(trial, lab, trial.full ? FULL_RATE[trial.backend] : 6);
    await pause(trial.full ? 5_000 : 1_000); // what had gathered is done
    const from = Date.now();
    await pause(trial.full ? 15_000 : 3_000);
    const outages: Outage[] = [];
    for (const ms of lengthsMs) {
      outages.push(await redisOutage(trial, lab, load, { how, ms }));
      await pause(trial.full ? 20_000 : 3_000);
    }
    const to = Date.now();
    await load.stop();
    await lab.settled(boundOf(await lab.unended('crawl')));
    const lost = lostIn(
      lab,
      outages.flatMap(({ losses }) => losses),
    );
    // A frozen Redis loses neither a job nor the answer that one has ended.
    const judgement = await lab.check({ lost, ...(how === 'frozen' && { metrics: () => lab.metrics() }) });
    const figures = Object.assign({ stalled: lab.stalled.size }, ...outages.map((outage) => outage.figures));
    Object.assign(figures, hold(judgement, figures), await holdLibrary(load));
    const outlived = how === 'frozen' && trial.backend === 'redis';
    must(!outlived || lab.stalled.size > 0, 'no job outlived its lock: nothing was tried');
    return { ...figures, ...(await ratesOf(trial, lab, load, outages, { from, to })) };
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

interface UrlRow {
  readonly tenant: string;
  readonly url: string;
  readonly hash: string;
}

async function recorded({ servers }: Lab, tenantId?: string): Promise<UrlRow[]> {
  const rows = await servers.sql<UrlRow>('select tenant_id as tenant, url, content_hash as hash from crawl_cache');
  return rows.filter(({ tenant }) => tenantId === undefined || tenant === tenantId);
}

/** Of these, those whose image has no record of their tenant. */
async function unrecorded(lab: Lab, jobs: readonly Accepted[]): Promise<Accepted[]> {
  const known = new Set((await recorded(lab)).map(({ tenant, url }) => `${tenant} ${url}`));
  const missing = jobs.filter(({ tenantId, url }) => !known.has(`${tenantId} ${url}`));
  const served = await Promise.all(missing.map(({ url }) => lab.origin.served(url)));
  return missing.filter((_, i) => served[i] && 'hash' in served[i]);
}

/** Everything that is recorded is read once, and then Redis has it again, as PostgreSQL has it. */
async function refilled(lab: Lab): Promise<Figures> {
  const { cache, connection } = lab.app;
  const rows = await recorded(lab, TENANT);
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
  const missing = new Set((await unrecorded(lab, lab.accepted)).map(({ url }) => url));
  const before = lab.origin.counts();
  const jobs = new Map(lab.accepted.map((job) => [`${job.tenantId} ${job.url}`, job]));
  for (const tenantId of new Set(lab.accepted.map((job) => job.tenantId))) {
    const urls = [...jobs.values()].filter((job) => job.tenantId === tenantId).map(({ url }) => url);
    await lab.enqueue(urls, { tenantId });
  }
  await lab.settled();
  const after = lab.origin.counts();
  // The log does not say for whom: a URL that is missing of one tenant is fetched for it.
  const refetched = known.filter(({ url }) => !missing.has(url) && after.get(url) !== before.get(url));
  must(refetched.length === 0, `I3 ${refetched.length} URLs were fetched though they were recorded`);
  return { 'recorded before': known.length, 'recorded after': (await recorded(lab)).length };
}

/** Redis dies, and comes back empty. @returns what had ended, and how much had not */
async function emptiedOutage(trial: Trial, lab: Lab, load: Load) {
  const folder = await lab.servers.redisFolder();
  let ended = new Set<string>();
  let killedAt = 0;
  const outage = await redisOutage(trial, lab, load, {
    how: 'killed',
    ms: trial.full ? 10_000 : 3_000,
    whileDead: async () => {
      killedAt = Date.now();
      ended = new Set(lab.ended.keys());
      await lab.servers.emptyRedis(folder);
    },
  });
  const open = lab.accepted.filter(({ id, at }) => at <= killedAt && !ended.has(id)).length;
  must(ended.size > 0 && open > 0, `${ended.size} jobs had ended and ${open} had not: nothing was tried`);
  return { outage, ended, killedAt, open };
}

const EMPTIED: Experiment = {
  id: 'E5',
  title: 'Redis comes back without anything, in the middle of a run',
  backends: BOTH,
  run: (trial) =>
    inLab(trial, { latencyMs: 20 }, async (lab) => {
      const load = await underLoad(trial, lab, trial.full ? FULL_RATE[trial.backend] : 5);
      const from = Date.now();
      await pause(trial.full ? 20_000 : 4_000);
      // So that some have not ended. Queues on PostgreSQL lose none, and work through them while the reads are measured.
      const bursts = trial.full ? { redis: 10, postgres: 0 }[trial.backend] : 1;
      for (let i = bursts; i > 0; i--) await load.jobs.burst(trial.full ? 150 : 30);
      const { outage, ended, killedAt, open } = await emptiedOutage(trial, lab, load);
      await pause(trial.full ? 20_000 : 4_000);
      const to = Date.now();
      await load.stop();
      await lab.settled();
      const rates = await ratesOf(trial, lab, load, [outage], { from, to });
      const forgotten = await unrecorded(
        lab,
        lab.accepted.filter(({ id }) => ended.has(id)),
      );
      must(forgotten.length === 0, `I1 ${forgotten.length} jobs had ended, and there is no record of their URLs`);
      // With PostgreSQL as the store of the queue, that is all: nothing is lost, and nobody need ask again.
      const onRedis = trial.backend === 'redis';
      if (!onRedis) hold(await lab.check({ recorded: () => true }));
      const again = await askedAgain(lab);
      await embedAll(lab);
      const isGone = ({ at }: { at: number }) => onRedis && at <= killedAt;
      const judgement = await lab.check({ lost: isGone, recorded: () => true });
      const figures = hold(judgement, { ...again, 'open then': open, ...outage.figures, ...rates });
      must(!onRedis || Number(figures.lost) > 0, 'the queue lost nothing: nothing was tried');
      return { ...figures, ...(await holdLibrary(load)), ...(await refilled(lab)) };
    }),
};

export const REDIS_EXPERIMENTS = [KILLED, FROZEN, EMPTIED];
