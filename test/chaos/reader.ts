/**
 * A process that reads perceptual hashes of tenants on and on, by the library, and can be told to invalidate one. It
 * remembers when it was last given something of each tenant.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { readEnv, toConfig } from '../../src/config.js';
import { openChaosApp } from './app.js';
import { pick, randomFor } from './random.js';

import { ACTOR, type FromReader, SEED, type ToReader } from './reader-messages.js';

/** Others on the machine have work too. */
const BETWEEN_READS_MS = 5;

const env = readEnv();
const app = openChaosApp(toConfig(env));
const random = randomFor(Number(env[SEED]), env[ACTOR] ?? '');
const last: Record<string, number> = {};
let reads = 0;

process.on('message', async (message: ToReader) => {
  if (message.do === 'read') return void readOn(message.tenants, message.hashes);
  if (message.do === 'tell') return tell({ say: 'seen', last, reads });
  const { tenantId } = message;
  const count = await app.cache.invalidateTenantCache(tenantId).catch(String);
  tell({ say: 'invalidated', tenantId, count });
});
// A run that is gone wants no readers.
process.on('disconnect', () => process.exit(1));

async function readOn(tenants: readonly string[], hashes: readonly string[]): Promise<never> {
  for (;;) {
    for (const tenantId of tenants) {
      const some = Array.from({ length: 10 }, () => pick(random, hashes));
      const found = await app.cache.getCachedPerceptualHashBatch(some, tenantId);
      if (found.some((phash) => phash !== null)) last[tenantId] = Date.now();
      reads += 1;
      await pause(BETWEEN_READS_MS);
    }
  }
}

function tell(message: FromReader): void {
  process.send?.(message, () => undefined);
}
