/**
 * A proxy of the environment would resolve names for us and go where our rules forbid: it is not used. Tried in processes
 * of their own, because Node and undici read these variables when they start.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { startSite } from '../support/site.js';
import { SITE_TEST } from './certificate.js';

const VARIABLES = ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'http_proxy', 'https_proxy', 'all_proxy'];
const root = fileURLToPath(new URL('../..', import.meta.url));

/** Runs a module that is given `urls` and `ca`, and gives what it logs; an abort ends it. */
async function run(script: string, proxy: string, urls: string[], signal?: AbortSignal): Promise<string> {
  const { NO_PROXY: _none, no_proxy: _nobody, NODE_OPTIONS: _options, ...rest } = process.env;
  const env = { ...rest, NODE_USE_ENV_PROXY: '1', ...Object.fromEntries(VARIABLES.map((name) => [name, proxy])) };
  const given = `const urls = ${JSON.stringify(urls)}; const ca = ${JSON.stringify(SITE_TEST.cert)};`;
  const args = ['--import', 'tsx', '--input-type=module', '-e', `${given}\n${script}`];
  return (await promisify(execFile)(process.execPath, args, { env, cwd: root, signal })).stdout;
}

const OURS = `
  import { parseRules } from './src/address-rules.js';
  import { AddressPolicy } from './src/crawl/address.js';
  import { Fetcher } from './src/crawl/fetch.js';
  const policy = new AddressPolicy({ allow: parseRules('127.0.0.1:*') });
  const lookup = async () => [{ address: '127.0.0.1', family: 4 }];
  const fetcher = new Fetcher({ maxBytes: 1000, timeoutMs: 20_000, userAgent: 'bot/1', policy, lookup, ca });
  for (const url of urls) console.log((await fetcher.fetch(url)).bytes.toString());
  await fetcher.close();`;

/** What heeds the variables, so that a proxy that sees nothing was there to be seen. */
const SOMEBODY = `
  import { EnvHttpProxyAgent, request } from 'undici';
  for (const url of urls) await request(url, { dispatcher: new EnvHttpProxyAgent() });`;

describe('a proxy that the environment names', () => {
  it('sees no connection of ours', async () => {
    await using proxy = await startSite();
    await using plain = await startSite();
    await using secure = await startSite({ tls: SITE_TEST });
    for (const site of [plain, secure]) site.put('/a', { body: 'x' });
    const urls = [`http://site.test:${plain.port}/a`, `${plain.url}/a`, `https://site.test:${secure.port}/a`];
    expect(await run(OURS, proxy.url, urls)).toBe('x\nx\nx\n');
    expect([plain.countOf('/a'), secure.countOf('/a'), proxy.connections]).toEqual([2, 1, 0]);
  });

  it('is there for those who ask it', async () => {
    await using proxy = await startSite();
    await using plain = await startSite();
    const seen = new AbortController();
    const asked = run(SOMEBODY, proxy.url, [`${plain.url}/a`], seen.signal).catch(() => undefined);
    await proxy.until((site) => site.connections > 0);
    seen.abort();
    await asked;
    expect(plain.connections).toBe(0);
  });
});
