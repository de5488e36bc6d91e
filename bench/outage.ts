/** Redis dead, and Redis frozen: what a read costs then, beside a cache that was never given a Redis. */
import { performance } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { type App, connect } from '../src/app.js';
import { toConfig } from '../src/config.js';
import { within } from '../src/lifecycle.js';
import type { LocalStack } from '../src/local/stack.js';
import { createLogger } from '../src/logger.js';
import { latency, type Row, timed } from './compare.js';
import type { Peer } from './peers.js';
import { HASHES, nth, TENANT } from './samples.js';
import { facesName, type World } from './world.js';

/** What a first caller may wait: the deadline of a Redis operation (cache/connect.ts), and some for PostgreSQL. */
const FIRST_CALL_MS = 250 + 50;
const PEER_PATIENCE_MS = 2_000;

/** Comes last: whoever is connected to this Redis loses it. */
export async function outageRows(world: World, stack: LocalStack): Promise<Row[]> {
  const withoutRedis = connect(toConfig({ ...stack.env, REDIS_URL: 'none' }), { logger: createLogger('silent') });
  try {
    const dead = await outageRow('Redis dead: read, p99 once the breaker is open', world, withoutRedis, () =>
      stack.kill('redis', 'SIGKILL'),
    );
    await stack.restart('redis');
    await untilUp(world.app, true);
    const frozen = await outageRow('Redis frozen: read, p99 once the breaker is open', world, withoutRedis, () =>
      stack.kill('redis', 'SIGSTOP'),
    );
    await stack.kill('redis', 'SIGCONT');
    await untilUp(world.app, true);
    return [dead, frozen];
  } finally {
    await withoutRedis.close();
  }
}

async function outageRow(work: string, { app, peers }: World, withoutRedis: App, strike: () => Promise<void>) {
  const read = (from: App, n: number) => from.cache.getCachedFaceEmbeddings(nth(HASHES, n), TENANT);
  // Everybody is connected before.
  await Promise.all([read(app, 0), read(withoutRedis, 0), ...peers.map((peer) => peer.get('nothing'))]);
  await strike();
  const firstCallMs = await timed(() => read(app, 0));
  await untilUp(app, false);
  const row = await latency({
    work,
    target: 1.5,
    turns: 30,
    quantile: 0.99,
    ours: (n) => read(app, n),
    raw: (n) => read(withoutRedis, n),
  });
  const theirs = await Promise.all(peers.filter(({ sql }) => sql).map((peer) => waitedFor(peer, row.raw ?? 0)));
  return {
    ...row,
    ok: row.ok && firstCallMs <= FIRST_CALL_MS,
    peers: Object.fromEntries(theirs),
    also: { firstCallMs },
  };
}

/** One call, since a peer may never answer. */
async function waitedFor(peer: Peer, rawMs: number): Promise<[string, number | string]> {
  const started = performance.now();
  const answered = await within(
    PEER_PATIENCE_MS,
    peer.get(facesName(nth(HASHES, 0))).then(
      () => true,
      () => true,
    ),
    false,
  );
  return [peer.name, answered ? (performance.now() - started) / rawMs : `> ${PEER_PATIENCE_MS / 1000} s`];
}

async function untilUp(app: App, up: boolean): Promise<void> {
  for (const end = performance.now() + 20_000; performance.now() < end; await pause(20)) {
    if (app.connection.tiers.redis?.guard.isUp === up) return;
  }
  throw new Error(`Redis was to be ${up ? 'back' : 'given up'} by now`);
}
