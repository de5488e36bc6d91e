/** A service that looks nothing up, over servers of its own that go. */
import { expect, test } from 'vitest';
import { run } from '../../workers/main.js';
import { startOwnStack } from '../support/own-stack.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { until } from '../support/until.js';

test('an outage is noticed, said once and shown, though nobody asks for anything', async () => {
  await using stack = await startOwnStack();
  const app = stack.app({ METRICS_PORT: '0' }, { engine: new PuppetEngine() });
  const running = await run(app, { workers: [], api: false });
  const shown = async (tier: string) => {
    const text = await (await fetch(`${running.address}/metrics`)).text();
    return new RegExp(`^hybrid_cache_tier_up{tier="${tier}"} (\\d)$`, 'm').exec(text)?.[1];
  };
  try {
    for (const tier of ['redis', 'postgres'] as const) {
      await until(`${tier} to be up`, async () => (await shown(tier)) === '1');
      await stack.servers.kill(tier, 'SIGSTOP');
      await until(`${tier} to be missed`, async () => (await shown(tier)) === '0');
      await stack.servers.kill(tier, 'SIGCONT');
      await until(`${tier} to be back`, async () => (await shown(tier)) === '1');
    }
    const said = stack.logs.map(({ msg }) => String(msg)).filter((msg) => /cache unavailable/i.test(msg));
    expect(said).toHaveLength(2);
  } finally {
    await running.stop();
  }
});
