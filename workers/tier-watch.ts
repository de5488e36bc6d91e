/** Asks both tiers every few seconds whether they answer: a process that has nothing to ask would not notice an outage. */
import type { App } from '../src/app.js';
import { Periodic } from '../src/lifecycle.js';

const EVERY_MS = 5_000;

export function watchTiers({ connection: { tiers } }: App): Periodic {
  const look = async () => {
    await Promise.all([tiers.redis?.guard.check(), tiers.postgres.guard.check()]);
  };
  return new Periodic(EVERY_MS, look).start();
}
