/** The Redis of the cache and that of the queue: there, new enough, and set up for what each of them is for. */
import { Redis } from 'ioredis';
import type { Config } from '../config.js';
import { factsOf, parseInfo, type RedisFacts } from '../redis-info.js';
import { type Check, type Finding, ok, problem, warning } from './check.js';
import { type ClockReading, clockFinding, readClock } from './clock.js';

const ANSWER_MS = 3_000;
const DEADLINE_MS = 8_000;
/** BullMQ refuses anything older than the first, and warns below the second. */
const OLDEST = [5, 0] as const;
const RECOMMENDED = [6, 2] as const;

interface Visit {
  readonly version: string;
  readonly facts: RedisFacts;
  readonly clock: ClockReading;
}

type Visits = (url: string) => Promise<Visit>;

export function redisChecks({ redisUrl, queue }: Config): Check[] {
  const made = new Map<string, Promise<Visit>>();
  const visits: Visits = (url) => {
    const visit = made.get(url) ?? visited(url);
    made.set(url, visit);
    return visit;
  };
  const check = (name: string, variable: string, run: Check['run']): Check => ({
    name,
    deadlineMs: DEADLINE_MS,
    remedy: (error) =>
      isRefusal(error) ? `correct the user or the password in ${variable}` : `start it, or correct ${variable}`,
    run,
  });
  const queueUrl = queue.backend === 'redis' ? queue.url : null;
  return [
    ...(queueUrl
      ? [check("the queue's Redis", 'QUEUE_REDIS_URL', () => ofQueue("the queue's Redis", queueUrl, visits))]
      : []),
    redisUrl
      ? check("the cache's Redis", 'REDIS_URL', () => ofCache("the cache's Redis", redisUrl, queueUrl, visits))
      : check("the cache's Redis", 'REDIS_URL', async () => [
          ok("the cache's Redis", 'REDIS_URL is none: every look-up asks PostgreSQL'),
        ]),
  ];
}

async function ofQueue(check: string, url: string, visits: Visits): Promise<Finding[]> {
  const { version, facts, clock } = await visits(url);
  const evicts = facts.policy !== 'noeviction';
  return [
    redisVersionFinding(check, version),
    evicts
      ? problem(
          check,
          `maxmemory-policy is ${facts.policy || 'not told'}, so jobs can be lost without an error: set it to noeviction`,
        )
      : ok(check, 'maxmemory-policy is noeviction'),
    facts.appendOnly
      ? ok(check, 'every write goes to its append-only file')
      : warning(
          check,
          'a restart loses jobs, and writes are not journaled while PostgreSQL is away: set appendonly yes',
        ),
    clockFinding(check, clock),
  ];
}

async function ofCache(check: string, url: string, queueUrl: string | null, visits: Visits): Promise<Finding[]> {
  const { version, facts, clock } = await visits(url);
  const queue = queueUrl ? await visits(queueUrl).catch(() => null) : null;
  // Two addresses, or two numbers of a database, may well be one server.
  if (queue?.facts.runId === facts.runId) {
    return [
      ok(
        check,
        "is the queue's: it stops writing at 70 % of the memory, so that jobs go on; QUEUE_REDIS_URL names another",
      ),
    ];
  }
  return [redisVersionFinding(check, version), memoryFinding(check, facts), clockFinding(check, clock)];
}

function memoryFinding(check: string, { policy, limited }: RedisFacts): Finding {
  if (!limited) return warning(check, `no maxmemory is set, so it may take the machine's: set one (policy ${policy})`);
  if (policy === 'noeviction') {
    return warning(check, 'with noeviction the cache stops writing at 70 %: set maxmemory-policy allkeys-lru');
  }
  return ok(check, `maxmemory-policy is ${policy}`);
}

export function redisVersionFinding(check: string, version: string): Finding {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const below = ([first, second]: readonly [number, number]) => major < first || (major === first && minor < second);
  const recommended = RECOMMENDED.join('.');
  if (below(OLDEST)) return problem(check, `is Redis ${version}: upgrade to ${recommended} or later`);
  if (below(RECOMMENDED)) return warning(check, `is Redis ${version}: ${recommended} or later is recommended`);
  return ok(check, `is Redis ${version}`);
}

/** Of whoever we say we are. */
function isRefusal(error: unknown): boolean {
  return error instanceof Error && /^(WRONGPASS|NOAUTH|NOPERM)\b/.test(error.message);
}

async function visited(url: string): Promise<Visit> {
  const redis = new Redis(url, {
    lazyConnect: true,
    enableReadyCheck: false,
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
    connectTimeout: ANSWER_MS,
    commandTimeout: ANSWER_MS,
  });
  // Its words are better than "Connection is closed", which is what the command under way is told.
  let trouble: Error | undefined;
  redis.on('error', (error) => {
    trouble ??= error;
  });
  try {
    await redis.connect();
    const info = await redis.info();
    const clock = await readClock(async () => {
      const [seconds, microseconds] = await redis.time();
      return Number(seconds) * 1_000 + Number(microseconds) / 1_000;
    });
    return { version: parseInfo(info).redis_version ?? '0', facts: factsOf(info), clock };
  } catch (error) {
    throw trouble ?? error;
  } finally {
    redis.disconnect();
  }
}
