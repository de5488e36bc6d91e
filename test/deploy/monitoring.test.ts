/** The rules, alerts and panels of deploy/, in a real Prometheus that scrapes processes of the service at work. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { App } from '../../src/app.js';
import type { TierErrorReason } from '../../src/events.js';
import { createServer } from '../../src/http/server.js';
import { sha256 } from '../../src/kinds/identity.js';
import type { LookupResult, RunResult } from '../../src/metrics.js';
import { startWorkers, type Workers } from '../../workers/start.js';
import { crawled, crawlJob, idle } from '../support/crawl-run.js';
import { parseExposition } from '../support/exposition.js';
import { noiseImage } from '../support/images.js';
import { type Prometheus, promtool, startPrometheus } from '../support/prometheus.js';
import { PuppetEngine } from '../support/puppet-engine.js';
import { type Site, startSite } from '../support/site.js';
import { until } from '../support/until.js';
import { createWorld, type World } from '../support/world.js';

const FOLDER = 'deploy/prometheus';
const RULES = ['recording.yml', 'alerts.yml'].map((name) => resolve(FOLDER, name));

interface Panel {
  readonly title: string;
  readonly type: string;
  readonly targets?: readonly { readonly expr: string }[];
}

const dashboard: { panels: Panel[] } = JSON.parse(readFileSync('deploy/grafana/dashboard.json', 'utf8'));

/** As Grafana sends it, with every process chosen. */
const sent = (expression: string) => expression.replaceAll('$__rate_interval', '30s').replaceAll('$instance', '.*');

const panelQueries = dashboard.panels.flatMap(({ title, targets = [] }) =>
  targets.map(({ expr }): [string, string] => [title, sent(expr)]),
);

describe('promtool', () => {
  test('finds the configuration and the rules in order', async () => {
    const config = await promtool('check', 'config', '--lint=all', '--lint-fatal', `${FOLDER}/prometheus.yml`);
    expect(config.said).toContain('SUCCESS: 2 rule files found');
    expect(config.code, config.said).toBe(0);
    const rules = await promtool('check', 'rules', '--lint=all', '--lint-fatal', ...RULES);
    expect(rules.code, rules.said).toBe(0);
  });

  test('sees every alert fire when it should, and be silent when all is well', async () => {
    const { code, said } = await promtool('test', 'rules', `${FOLDER}/rules.test.yml`);
    expect(code, said).toBe(0);
    const alerts = [...readFileSync(`${FOLDER}/alerts.yml`, 'utf8').matchAll(/- alert: (\w+)/g)].map(
      ([, name]) => name,
    );
    const cases = readFileSync(`${FOLDER}/rules.test.yml`, 'utf8');
    expect(alerts.length).toBeGreaterThan(8);
    for (const name of alerts) {
      expect(cases, `${name} is silent`).toMatch(new RegExp(`alertname: ${name}, exp_alerts: \\[\\]`));
      expect(cases, `${name} fires`).toMatch(new RegExp(`alertname: ${name}\\n +exp_alerts:\\n`));
    }
  });
});

describe('a Prometheus that scrapes two processes at work', () => {
  let world: World;
  let site: Site;
  let app: App;
  /** Without Redis, as a process that has lost it. */
  let crippled: App;
  let workers: Workers;
  let prometheus: Prometheus;
  const closing: (() => Promise<unknown>)[] = [];
  let waves = 0;

  beforeAll(async () => {
    world = await createWorld();
    site = await startSite();
    const FETCH_ALLOW = `127.0.0.1/32:${site.port}`;
    app = world.app({ FETCH_ALLOW }, { engine: new PuppetEngine(), retryBaseMs: 1 });
    crippled = world.app({ REDIS_URL: 'redis://127.0.0.1:1/0', QUEUE_REDIS_URL: world.redisUrl });
    workers = startWorkers(app, ['crawl', 'embedding']);
    prometheus = await startPrometheus(
      JSON.stringify({
        global: { scrape_interval: '500ms', scrape_timeout: '500ms', evaluation_interval: '500ms' },
        rule_files: RULES,
        scrape_configs: [
          {
            job_name: 'hybrid-cache',
            static_configs: [
              { targets: [await served(app, true)], labels: { role: 'api' } },
              { targets: [await served(crippled, false)], labels: { role: 'worker' } },
            ],
          },
        ],
      }),
    );
  });

  afterAll(async () => {
    await prometheus?.[Symbol.asyncDispose]();
    for (const close of closing) await close();
    await workers?.stop(5_000);
    await site?.close();
    await world?.[Symbol.asyncDispose]();
  });

  async function served(one: App, api: boolean): Promise<string> {
    const server = await createServer(one, { api });
    closing.push(() => server.close());
    return new URL(await server.listen({ host: '127.0.0.1', port: 0 })).host;
  }

  /** A little of everything: stored, skipped, rejected, failed; look-ups of every answer; faces. */
  async function wave(): Promise<void> {
    const n = ++waves;
    const url = site.put(`/${n}.png`, { body: await noiseImage(64, 48, n), type: 'image/png' });
    await crawled(app, 'acme', url);
    await crawled(app, 'acme', url);
    await crawled(app, 'acme', site.put(`/${n}.txt`, { body: Buffer.from('not an image'), type: 'text/plain' }));
    await crawlJob(app, 'acme', site.put(`/${n}-broken`, { status: 500, body: Buffer.from('no') }));
    await idle(app, 'embedding');
    const content = sha256(`wave ${n}`);
    await crippled.cache.cachePerceptualHash(content, 'acme', '0123456789abcdef');
    await crippled.cache.getCachedPerceptualHash(content, 'acme');
    await app.cache.getCachedPerceptualHash(content, 'acme');
    await app.cache.getCachedPerceptualHash(content, 'acme');
    await app.cache.getCachedPerceptualHash(sha256(`nobody's ${n}`), 'acme');
  }

  /** Works on until Prometheus has a number for it: two scrapes with something between them. */
  const answered = (expression: string) =>
    until(expression, async () => {
      const samples = await prometheus.query(expression);
      if (samples.some(({ value }) => Number.isFinite(value))) return samples;
      await wave();
      return null;
    });

  test('answers every query of every panel', async () => {
    expect(panelQueries.length).toBeGreaterThan(25);
    await wave();
    for (const [title, query] of panelQueries) expect(await answered(query), title).not.toHaveLength(0);
  });

  test('evaluates every rule, and records every series', async () => {
    const rules = await until('every rule is evaluated', async () => {
      const response = await fetch(`${prometheus.url}/api/v1/rules`);
      const { data } = (await response.json()) as { data: { groups: { rules: RuleState[] }[] } };
      const all = data.groups.flatMap((group) => group.rules);
      return all.every(({ health }) => health !== 'unknown') ? all : null;
    });
    expect(rules.length).toBeGreaterThan(15);
    expect(rules.filter(({ health }) => health !== 'ok')).toEqual([]);
    for (const { name, type } of rules) if (type === 'recording') await answered(name);
  });

  test('is asked for nothing that the service does not expose', async () => {
    const response = await fetch(`http://${await served(world.app(), true)}/metrics`);
    const families = parseExposition(await response.text());
    const exposed = [...families.values()].flatMap(({ name, type }) =>
      type === 'histogram' ? ['bucket', 'sum', 'count'].map((suffix) => `${name}_${suffix}`) : [name],
    );
    const recorded = [...readFileSync(`${FOLDER}/recording.yml`, 'utf8').matchAll(/- record: (\S+)/g)].map(
      ([, n]) => n,
    );
    const known = new Set(['up', ...exposed, ...recorded]);
    const asked = [...panelQueries.map(([, query]) => query), ...ruleQueries()].flatMap(metricsIn);
    expect(new Set(asked).size).toBeGreaterThan(20);
    expect([...new Set(asked)].filter((name) => !known.has(name))).toEqual([]);
  });

  test('is asked for label values that exist', async () => {
    const reasons: TierErrorReason[] = ['full', 'corrupt', 'wrong'];
    const results: (LookupResult | RunResult)[] = ['redis_hit', 'postgres_hit', 'error', 'failed', 'stalled'];
    const states = (await prometheus.query('count by (state) (bullmq_job_count)')).map(({ metric }) => metric.state);
    const existing: Record<string, readonly (string | undefined)[]> = {
      reason: reasons,
      result: results,
      state: states,
      outcome: ['stored', 'skipped', 'rejected', 'failed'],
      tier: ['redis', 'postgres'],
      role: ['api', 'worker'],
      server: ['cache', 'queue'],
    };
    const matchers = [...panelQueries.map(([, query]) => query), ...ruleQueries()].flatMap((query) => [
      ...query.matchAll(/[{,]\s*(\w+)\s*(?:=~|!=|=)\s*"([^"]*)"/g),
    ]);
    expect(matchers.length).toBeGreaterThan(20);
    for (const [, label = '', values = ''] of matchers) {
      if (label === 'job' || label === 'instance') continue;
      for (const value of values.split('|')) expect(existing[label], label).toContain(value);
    }
  });
});

interface RuleState {
  readonly name: string;
  readonly type: string;
  readonly health: string;
  readonly lastError?: string;
}

/** The expressions of both rule files, one line or several. */
function ruleQueries(): string[] {
  return RULES.flatMap((file) =>
    [...readFileSync(file, 'utf8').matchAll(/^ {8}expr: (?:\|\n((?: {10}.*\n)+)|(.+)\n)/gm)].map(
      ([, block, line]) => block ?? line ?? '',
    ),
  );
}

/** The names of series in a query: what is left without texts, matchers, groupings, functions, numbers and words of PromQL. */
function metricsIn(query: string): string[] {
  const bare = query
    .replace(/\{[^}]*\}/g, '')
    .replace(/\[[^\]]*\]/g, '')
    .replace(/\b(by|on|ignoring|without)\s*\([^)]*\)/g, '');
  const names = [...bare.matchAll(/(?<![\w:.])([a-zA-Z_:][\w:]*)\b(?!\s*\()/g)].map(([, name = '']) => name);
  return names.filter((name) => !/^(and|or|unless|offset|by|sum|max|min|count|rate)$/.test(name) && !/^\d/.test(name));
}
