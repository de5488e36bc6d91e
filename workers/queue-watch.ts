/** Looks at start and every minute whether the queue's Redis keeps what it accepts. */
import type { App } from '../src/app.js';
import { Periodic } from '../src/lifecycle.js';

const EVERY_MS = 60_000;

export function watchQueueStore({ connection, events }: App): Periodic {
  let said: string | undefined;
  const look = async () => {
    const facts = await connection.journal?.facts().catch(() => null); // its outage is reported by whoever needs it
    if (!facts || facts.policy === said) return;
    said = facts.policy;
    if (facts.policy !== 'noeviction') events.queueAtRisk(facts.policy, facts.limited);
  };
  return new Periodic(EVERY_MS, look).start();
}
