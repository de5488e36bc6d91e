/** Bytes that are not what was written: in Redis, in a column of PostgreSQL, in an object. */
import { mkdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { HEAD_BYTES } from '../../../src/cache/envelope.js';
import { type Lookup, lookup } from '../../../src/cache/tier.js';
import { failureReasonOf } from '../../../src/errors.js';
import { crawlUrls } from '../../../src/kinds/crawl.js';
import { sha256 } from '../../../src/kinds/identity.js';
import { canonicalUrl } from '../../../src/kinds/url.js';
import { until } from '../../support/until.js';
import { jobsOf } from '../evidence.js';
import { type Experiment, hold, inLab, must } from '../experiment.js';
import { counted } from '../figures.js';
import type { Lab } from '../lab.js';
import { Facts, TENANT } from './facts.js';

/** Damage to a value of Redis, whose head says when it was written. */
type Damage = (value: Buffer, random: () => number) => Buffer;

const ANYTHING: readonly Damage[] = [
  (value) => Buffer.concat([value.subarray(0, HEAD_BYTES), Buffer.alloc(value.length - HEAD_BYTES, 0xff)]),
  (value, random) => value.subarray(0, Math.floor(random() * HEAD_BYTES)),
];
/** Faces carry a checksum. */
const ANY_BIT: readonly Damage[] = [
  ...ANYTHING,
  (value, random) => flipped(value, HEAD_BYTES, random),
  (value, random) => value.subarray(0, HEAD_BYTES + Math.floor(random() * (value.length - HEAD_BYTES))),
];
/** Half of a record is none. */
const CUT: readonly Damage[] = [
  ...ANYTHING,
  (value, random) => value.subarray(0, HEAD_BYTES + Math.floor(random() * (value.length - HEAD_BYTES))),
];

function flipped(bytes: Buffer, from: number, random: () => number): Buffer {
  const copy = Buffer.from(bytes);
  const at = from + Math.floor(random() * (copy.length - from));
  copy[at] = (copy[at] as number) ^ (1 << Math.floor(random() * 8));
  return copy;
}

async function damageRedis({ servers, random }: Lab, lookups: readonly Lookup[], damages: readonly Damage[]) {
  await servers.redis(async (redis) => {
    for (const [i, { id }] of lookups.entries()) {
      const value = await redis.getBuffer(`hc:${id}`);
      must(value !== null, `${id} is not in Redis`);
      const damaged = (damages[i % damages.length] as Damage)(value as Buffer, random);
      await redis.set(`hc:${id}`, damaged, 'KEEPTTL');
    }
  });
}

async function corruptSeen({ app }: Lab, tier: 'redis' | 'postgres'): Promise<number> {
  const text = await app.metrics.registry.metrics();
  return counted([text], 'hybrid_cache_tier_errors_total', `tier="${tier}"`, 'reason="corrupt"');
}

/** Redis is repaired behind the answer. */
async function repairedInRedis({ app }: Lab, lookups: readonly Lookup[]): Promise<void> {
  await until('Redis to be repaired', async () => {
    const answer = await app.connection.tiers.redis?.tier.read(lookups);
    return answer?.found.every(({ state }) => state === 'value');
  });
}

async function redisValues(lab: Lab, facts: Facts): Promise<number> {
  const all = [...facts.faces, ...facts.searches, ...facts.phashes];
  await damageRedis(lab, facts.faces, ANY_BIT);
  await damageRedis(lab, facts.searches, CUT);
  await damageRedis(lab, facts.phashes, ANYTHING);
  const before = await corruptSeen(lab, 'redis');
  const { right } = await facts.read();
  must(right === all.length, `${all.length - right} answers were not those of PostgreSQL`);
  const seen = (await corruptSeen(lab, 'redis')) - before;
  must(seen === all.length, `${seen} of ${all.length} damaged values were counted`);
  await repairedInRedis(lab, all);
  await facts.read();
  must((await corruptSeen(lab, 'redis')) - before === seen, 'a repaired value was counted again');

  // Something else than text under the name of an entry is nothing that was written by us: a miss, and refilled.
  await lab.servers.redis(async (redis) => {
    for (const { id } of all) await redis.multi().del(`hc:${id}`).rpush(`hc:${id}`, 'a list').exec();
  });
  must((await facts.read()).right === all.length, 'what is no text in Redis was not answered by PostgreSQL');
  await repairedInRedis(lab, all);
  return 2 * all.length;
}

/** A worker that meets them skips what PostgreSQL knows, and asks nobody. */
async function redisRecords(lab: Lab, urls: readonly string[]): Promise<void> {
  const lookups = urls.map((url) => lookup('acme', crawlUrls, sha256(canonicalUrl(url))));
  await damageRedis(lab, lookups, CUT);
  const before = lab.origin.requests.length;
  await lab.enqueue(urls);
  await lab.settled();
  must(lab.origin.requests.length === before, 'a damaged record of a known URL had the URL fetched again');
  await repairedInRedis(lab, lookups);
}

const PAYLOAD_DAMAGES = [
  'set_byte(payload, length(payload) / 2, get_byte(payload, length(payload) / 2) # 1)',
  'substring(payload from 1 for length(payload) / 2)',
  "''::bytea",
];
const JSON_DAMAGES = [`'{}'`, `'"text"'`, `'null'`, `'5'`];

async function damageColumns({ servers }: Lab, hashes: readonly string[]): Promise<void> {
  for (const [i, hash] of hashes.entries()) {
    const payload = PAYLOAD_DAMAGES[i % PAYLOAD_DAMAGES.length];
    const json = JSON_DAMAGES[i % JSON_DAMAGES.length];
    const found = await servers.sql(
      `with f as (update face_embeddings_cache set payload = ${payload} where content_hash = $1 returning 1),
            d as (update face_detection_cache set payload = ${payload} where content_hash = $1 returning 1),
            s as (update search_results_cache set results = ${json} where content_hash = $1 returning 1)
       select from f union all select from d union all select from s`,
      [hash],
    );
    must(found.length === 2, `${found.length} rows of ${hash} were damaged, and not two`);
  }
}

async function unlinked({ servers }: Lab, pattern: string): Promise<void> {
  await servers.redis(async (redis) => redis.unlink(...(await redis.keys(pattern)), 'nothing'));
}

/** @returns how many columns were damaged */
async function columns(lab: Lab, facts: Facts): Promise<number> {
  const damaged = facts.faces.length + facts.searches.length;
  const before = await corruptSeen(lab, 'postgres');
  await damageColumns(lab, facts.hashes);
  const total = damaged + facts.phashes.length;
  must((await facts.read()).right === total, 'Redis had the values, and they were not answered');
  await unlinked(lab, `hc:*:${TENANT}:*`);
  const { right, unknown } = await facts.read();
  must(unknown === damaged && right === facts.phashes.length, `${unknown} of ${damaged} damaged values are unknown`);
  const seen = (await corruptSeen(lab, 'postgres')) - before;
  must(seen === damaged, `${seen} of ${damaged} damaged columns were counted`);
  // Who is told that nothing is known computes it anew.
  await facts.write();
  must((await facts.read()).right === total, 'what was written over damaged columns was not answered');
  await unlinked(lab, `hc:*:${TENANT}:*`);
  must((await facts.read()).right === total, 'PostgreSQL does not have what was written over damaged columns');
  return damaged;
}

/** A worker that meets them works as if nothing were there. @returns how many columns were damaged */
async function columnsOfWorkers(lab: Lab, hashes: readonly string[]): Promise<number> {
  await damageColumns(lab, hashes);
  await unlinked(lab, 'hc:face_*:acme:*');
  const ids = await lab.embedAsForeigner(hashes);
  await lab.settled();
  for (const id of ids) {
    const job = await lab.app.queues.job('embedding', id);
    const { outcome } = (job?.outcome ?? {}) as { outcome?: string };
    must(outcome === 'embedded', `a job that met damaged faces ended as ${job?.state} ${outcome} ${job?.error}`);
  }
  return 2 * hashes.length;
}

/** What can become of a file. */
const FILE_DAMAGES: readonly ((path: string, random: () => number) => Promise<unknown>)[] = [
  async (path, random) => writeFile(path, flipped(await readFile(path), 0, random)),
  async (path, random) => truncate(path, Math.floor(random() * (await readFile(path)).length)),
  (path) => truncate(path, 0),
  (path) => rm(path),
  async (path) => {
    await rm(path);
    await mkdir(path);
  },
  // A picture like any other, and not the one that was fetched.
  async (path) => writeFile(path, await readFile(join(path, '..', OTHER_PICTURE))),
];
const OTHER_PICTURE = 'another.png';

interface Stored {
  readonly hash: string;
  readonly path: string;
  readonly bytes: Buffer;
}

/** Objects are damaged between their crawl and their embedding. @returns how many */
async function objects(lab: Lab, count: number, from: number): Promise<number> {
  const known = new Set((await contentsOf(lab)).map(({ hash }) => hash));
  const crawler = await lab.worker({ queues: ['crawl'] });
  await lab.enqueue(Array.from({ length: count }, (_, i) => lab.origin.imageUrl(from + i)));
  await until('the crawl to end', async () => (await contentsOf(lab)).length === known.size + count, 300_000);
  const stored = (await contentsOf(lab)).filter(({ hash }) => !known.has(hash));
  await until('the crawl to be told', async () => (await lab.app.queues.counts('crawl')).active === 0);
  await crawler.stop();
  const other = stored[0]?.bytes as Buffer;
  for (const [i, { path }] of stored.entries()) {
    const beside = join(path, '..', OTHER_PICTURE);
    if (i > 0) await writeFile(beside, other);
    const damage = i === 0 ? FILE_DAMAGES[0] : FILE_DAMAGES[i % FILE_DAMAGES.length];
    await damage?.(path, lab.random);
    await rm(beside, { force: true });
  }
  const worker = await lab.worker();
  await lab.settled();
  await objectsFailed(lab, stored);
  await storedAgain(lab, stored);
  // As `hybrid-cache failed retry` does.
  const failed = await jobsOf(lab, 'embedding', 'failed');
  for (const job of failed) await job.retry('failed');
  await lab.settled();
  must(worker.isAlive, 'a worker died of a damaged object');
  const { failed: still } = await lab.app.queues.counts('embedding');
  must(still === 0, `${still} embedding jobs failed again, with their objects stored again`);
  return count;
}

/** As an operator has it done who reads of the reason: `force`, on the URLs. */
async function storedAgain(lab: Lab, stored: readonly Stored[]): Promise<void> {
  // Where a folder lies in the way of a file, no writer removes it.
  for (const { path } of stored)
    if ((await stat(path).catch(() => null))?.isDirectory()) await rm(path, { recursive: true });
  const hashes = [stored.map(({ hash }) => hash)];
  const rows = await lab.servers.sql<{ url: string }>(
    'select url from crawl_cache where content_hash = any($1)',
    hashes,
  );
  must(rows.length === stored.length, `${rows.length} URLs serve ${stored.length} damaged objects`);
  await lab.enqueue(
    rows.map(({ url }) => url),
    { force: true },
  );
  await lab.settled();
  for (const { hash, path, bytes } of stored) {
    const now = await readFile(path).catch(() => null);
    must(now?.equals(bytes) ?? false, `the object of ${hash} is still damaged, after a forced crawl`);
  }
}

/** Each with a reason that says whose fault it is; nothing is remembered of the image, and nothing was made of it. */
async function objectsFailed(lab: Lab, stored: readonly Stored[]): Promise<void> {
  const jobs = await jobsOf(lab, 'embedding', 'failed');
  const reasons = new Map(jobs.map((job) => [job.data.contentHash as string, failureReasonOf(job.failedReason ?? '')]));
  for (const { hash } of stored) {
    must(reasons.get(hash) === 'storage', `the embedding of a damaged object ended as ${reasons.get(hash)}`);
  }
  const hashes = [stored.map(({ hash }) => hash)];
  const refused = await lab.servers.sql('select from rejection_cache where subject_hash = any($1)', hashes);
  must(refused.length === 0, `${refused.length} images are remembered as refused, because our copies are damaged`);
  const made = await lab.servers.sql('select from face_embeddings_cache where content_hash = any($1)', hashes);
  must(made.length === 0, `${made.length} images have the faces of damaged objects`);
}

async function contentsOf({ servers, folder }: Lab): Promise<Stored[]> {
  const rows = await servers.sql<{ hash: string; key: string }>(
    'select content_hash as hash, raw_key as key from crawl_content_cache order by stored_at',
  );
  const all = rows.map(async ({ hash, key }) => {
    const path = join(folder, key);
    return { hash, path, bytes: await readFile(path) };
  });
  return Promise.all(all);
}

const DAMAGED: Experiment = {
  id: 'E27',
  title: 'values of Redis, columns of PostgreSQL and objects are damaged',
  backends: ['redis'],
  run: (trial) =>
    inLab(trial, {}, async (lab) => {
      const count = trial.full ? 100 : 6;
      const facts = new Facts(lab, count);
      await facts.write();
      const figures: Record<string, number> = { 'values of Redis': await redisValues(lab, facts) };
      figures['columns of PostgreSQL'] = await columns(lab, facts);

      const worker = await lab.worker();
      const urls = Array.from({ length: count }, (_, i) => lab.origin.imageUrl(i));
      await lab.enqueue(urls);
      await lab.settled();
      await redisRecords(lab, urls);
      const hashes = (await contentsOf(lab)).map(({ hash }) => hash);
      figures['columns that workers met'] = await columnsOfWorkers(lab, hashes);
      must(worker.isAlive, 'a worker died of a damaged entry');
      await worker.stop();

      figures.objects = await objects(lab, count, count);
      return hold(await lab.check({ metrics: () => lab.metrics(), failedBefore: count }), figures);
    }),
};

export const CORRUPTION_EXPERIMENTS = [DAMAGED];
