/** How much the cache may write into a Redis that it shares with a queue. `memory.test.ts` is the same with a server. */
import { setTimeout as pause } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { MemoryBudget } from '../../src/cache/memory-budget.js';
import { factsOf } from '../../src/redis-info.js';

test('who writes more than one helping asks how much is left before it is gone', async () => {
  const facts = factsOf('maxmemory_policy:noeviction\r\nmaxmemory:40000000\r\nused_memory:1000000\r\n');
  let asked = 0;
  const budget = new MemoryBudget(async () => {
    asked += 1;
    return facts;
  });
  budget.learn(facts);
  // A helping is a quarter of what the cache may still take: 6.75 MB.
  for (let n = 0; n < 20; n++) {
    expect(budget.take(600_000)).toBe(true);
    await pause(25);
  }
  expect(asked).toBeGreaterThan(1);
});
