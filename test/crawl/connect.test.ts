/** The bound on the wire, which counts what never becomes a body. */
import { Agent } from 'undici';
import { describe, expect, it } from 'vitest';
import { PinnedConnector } from '../../src/crawl/connect.js';
import { RejectedError } from '../../src/errors.js';
import { type Behaviour, type Site, startSite } from '../support/site.js';
import { SITE_TEST } from './certificate.js';
import { allClosed, LOOPBACK, MiB, policyOf } from './support.js';

const LIMIT = 4 * MiB;

/** Asks over a connection whose responses are bounded, and reads the body without counting it. */
function asker(site: Site) {
  const connector = new PinnedConnector({
    policy: policyOf('127.0.0.1:*'),
    lookup: async () => [LOOPBACK],
    timeoutMs: 20_000,
    maxWireBytes: LIMIT,
    ca: SITE_TEST.cert,
  });
  const agent = new Agent({ connect: connector.connect, connections: 1, pipelining: 1 });
  const origin = `${new URL(site.url).protocol}//site.test:${site.port}`;
  return {
    ask: async (path: string) => {
      const leave = connector.enter(origin);
      const { body } = await agent.request({ origin, path, method: 'GET' }).finally(leave);
      let bytes = 0;
      for await (const chunk of body) bytes += chunk.length;
      return bytes;
    },
    [Symbol.asyncDispose]: () => agent.destroy(),
  };
}

describe.each([
  ['http', {}],
  ['https', { tls: SITE_TEST }],
])('a response over %s', (_scheme, options) => {
  it.each<Behaviour>(['endless-hints', 'endless-extension', 'endless'])(
    'that is %s ends at the bound, and its socket is closed',
    async (behaviour) => {
      await using site = await startSite(options);
      await using client = asker(site);
      site.behave('/a', behaviour);
      const error = await client.ask('/a').catch((reason) => reason);
      expect(error).toEqual(new RejectedError('too-large', `more than ${LIMIT} bytes in all`));
      await site.until(allClosed);
      expect(site.bytesSent).toBeLessThan(32 * MiB);
    },
  );

  it('has the whole bound for itself, however many there were over its connection', async () => {
    await using site = await startSite(options);
    await using client = asker(site);
    site.put('/a', { body: Buffer.alloc(LIMIT - 10_000) });
    for (let n = 0; n < 4; n++) expect(await client.ask('/a')).toBe(LIMIT - 10_000);
    expect(site.connections).toBe(1);
  });
});
