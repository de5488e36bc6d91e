/** PostgreSQL: there, new enough, writable, durable, with connections left; what `tables.ts` says of its tables. */
import { Client } from 'pg';
import type { Config } from '../config.js';
import { POOL_SIZES } from '../db/client.js';
import { isMigrated } from '../db/migrate.js';
import { within } from '../lifecycle.js';
import { QUEUE_NAMES } from '../queues/contract.js';
import { type Check, type Finding, findingsOf, ok, problem, warning } from './check.js';
import { clockFinding, readClock } from './clock.js';
import { tablesCheck } from './tables.js';

const NAME = 'PostgreSQL';
const ANSWER_MS = 4_000;
const LEAVE_MS = 100;
const DEADLINE_MS = 20_000;
/** Functions with a body of plain SQL and `bit_count` came with it. */
const OLDEST = 14;
/** With any of them off, what was answered as written can be lost. */
const UNSAFE = ['fsync', 'full_page_writes', 'synchronous_commit'] as const;

export function postgresCheck(config: Config): Check {
  const { postgres, queue } = config;
  const how = 'connectionString' in postgres ? 'DATABASE_URL' : 'POSTGRES_HOST and its like';
  const bounded = { ...postgres, connectionTimeoutMillis: ANSWER_MS, query_timeout: ANSWER_MS };
  return {
    name: NAME,
    deadlineMs: DEADLINE_MS,
    remedy: (error) => remedyOf(error, how),
    run: async () => {
      const client = new Client({ ...bounded, application_name: 'hybrid-cache-service doctor' });
      client.on('error', () => undefined); // the query under way rejects with the same error
      try {
        await client.connect();
        const server = await serverFindings(client, mostConnections(config));
        const migrated = () => isMigrated(bounded, { queueOnPostgres: queue.backend === 'postgres' });
        return [...server, ...(await findingsOf(tablesCheck(client, migrated)))];
      } finally {
        // A frozen server would never take leave.
        await within(LEAVE_MS, client.end(), undefined).catch(() => undefined);
      }
    },
  };
}

/** What answers need not be started: appendix A of PostgreSQL's manual has the codes. @param how it is configured */
function remedyOf(error: unknown, how: string): string {
  const { code = '' } = (error ?? {}) as { code?: unknown };
  if (String(code).startsWith('28')) return `correct the user or the password in ${how}`;
  if (code === '3D000') return `create the database, or correct ${how}`;
  if (code === '53300') return 'raise max_connections, or end what holds them';
  return `start it, or correct ${how}`;
}

async function serverFindings(client: Client, connections: number): Promise<Finding[]> {
  const { rows } = await client.query<{ version: number; replica: boolean; free: number; off: string[] }>(
    `select current_setting('server_version_num')::int as version, pg_is_in_recovery() as replica,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
         - (select count(*) from pg_stat_activity where backend_type = 'client backend')::int as free,
       array(select name::text from pg_settings where name = any($1) and setting = 'off' order by name) as off`,
    [UNSAFE],
  );
  const { version = 0, replica = false, free = 0, off = [] } = rows[0] ?? {};
  const clock = await readClock(async () => {
    const answer = await client.query<{ ms: number }>(
      'select extract(epoch from clock_timestamp())::float8 * 1000 as ms',
    );
    return answer.rows[0]?.ms ?? 0;
  });
  return [
    postgresVersionFinding(version),
    ...(replica ? [problem(NAME, 'is a replica that takes no writes: name the primary')] : []),
    off.length > 0
      ? warning(NAME, `${off.join(' and ')} off: a crash of its machine loses what was answered as written, turn it on`)
      : ok(NAME, 'what it commits is on the disk'),
    connectionsFinding(free, connections),
    clockFinding(NAME, clock),
  ];
}

/** What a process opens at most that serves the API and runs all workers. */
export function mostConnections({ queue, crawl, embedding }: Config): number {
  const { cache, probes, queueState, queue: producer, worker } = POOL_SIZES;
  if (queue.backend === 'redis') return cache + probes;
  // A worker listens on a connection beside its pool.
  const workers = worker(crawl.concurrency) + 1 + worker(embedding.threads) + 1;
  return cache + probes + queueState + QUEUE_NAMES.length * producer + workers;
}

/** @param most what a process of ours opens */
export function connectionsFinding(free: number, most: number): Finding {
  if (free < most) {
    const remedy = 'raise max_connections, or end what holds them';
    return warning(NAME, `has ${free} connections left, where a process of ours may open ${most}: ${remedy}`);
  }
  return ok(NAME, `has ${free} connections left, enough for ${Math.floor(free / most)} more of our processes`);
}

/** @param version as in `server_version_num` */
export function postgresVersionFinding(version: number): Finding {
  const name = `${Math.floor(version / 10_000)}.${version % 10_000}`;
  if (version < OLDEST * 10_000) return problem(NAME, `is version ${name}: upgrade to ${OLDEST} or later`);
  return ok(NAME, `is version ${name}`);
}
