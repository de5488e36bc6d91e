/** The commands about the cache: what it holds, forgetting, and whether both tiers agree. */
import type { Command } from 'commander';
import type { App } from './app.js';
import { explain } from './cache/explain.js';
import { verify } from './cache/verify.js';
import { allowedGap } from './crawl/robots.js';
import { tenantId, wholeNumberFrom } from './option-values.js';
import { examples, figures, print } from './output.js';

const PASSED_OVER = `

passedOver counts what Redis holds and nobody is served, so that it is not compared:
  void         of an earlier run of that server, or expired meanwhile
  dead         of a tenant that was invalidated since
  repairing    older than an overwrite that Redis has not confirmed yet
  unjournaled  served only while PostgreSQL is away
`;

interface Output {
  readonly json?: boolean;
}

/** `open` gives an app that is closed when the command ends. */
export function addCacheCommands(program: Command, open: () => Promise<App & AsyncDisposable>): void {
  program
    .command('stats')
    .description('what both tiers hold')
    .option('--json', 'print JSON')
    .action(async ({ json }: Output) => {
      await using app = await open();
      // What this process looked up itself is nothing.
      const { service: _, ...stats } = await app.cache.getCacheStats();
      print(json, stats, figures([...rows('redis', stats.redisStats), ...rows('postgres', stats.postgresStats)]));
      if ('error' in stats.redisStats && 'error' in stats.postgresStats) process.exitCode = 1;
    });

  program
    .command('explain')
    .description('what is known of a URL, and whether a crawl of it would skip it')
    .argument('<url>')
    .requiredOption('--tenant <id>', 'whose crawl it would be', tenantId)
    .addHelpText('after', examples('hybrid-cache explain https://example.com/portrait.jpg --tenant acme'))
    .option('--json', 'print JSON')
    .action(async (url: string, { tenant, json }: Output & { tenant: string }) => {
      await using app = await open();
      const { crawler, revalidateAfterMs } = app.config.fetch;
      const found = await explain(app.connection.hybrid, tenant, url, revalidateAfterMs, { crawler, allowedGap });
      print(json, found, figures(rows('', found)));
    });

  program
    .command('invalidate')
    .description('forget everything of a tenant, crawl records included; its objects stay')
    .argument('<tenant>', 'its id', tenantId)
    .addHelpText('after', examples('hybrid-cache invalidate acme'))
    .option('--json', 'print JSON')
    .action(async (tenant: string, { json }: Output) => {
      await using app = await open();
      const invalidated = await app.cache.invalidateTenantCache(tenant);
      print(json, { tenant, invalidated }, figures([['rows made unreachable', invalidated]]));
    });

  program
    .command('clear')
    .description('forget everything of all tenants: no queue, no object')
    .requiredOption('--confirm', 'yes, of all tenants')
    .addHelpText('after', examples('hybrid-cache clear --confirm'))
    .option('--json', 'print JSON')
    .action(async ({ json }: Output) => {
      await using app = await open();
      // Without PostgreSQL it throws, and nothing is done.
      const cleared = await app.connection.invalidation.clear();
      const left = 'PostgreSQL is empty. Redis is away: what it has is out of reach, and expires.';
      print(json, { postgres: 'empty', redis: cleared ? 'empty' : 'away' }, cleared ? 'Both tiers are empty.' : left);
      if (!cleared) process.exitCode = 1;
    });

  program
    .command('cleanup')
    .description('forget what is older than some days (crawl records: four times as long, at least 30 days)')
    .requiredOption('--days <n>', 'whole days, from 1 on', wholeNumberFrom(1))
    .addHelpText('after', examples('hybrid-cache cleanup --days 7'))
    .option('--json', 'print JSON')
    .action(async ({ days, json }: Output & { days: number }) => {
      await using app = await open();
      const cleaned = await app.connection.cleanup(days);
      print(json, cleaned, figures(cleaned.map(({ tableName, deletedCount }) => [tableName, deletedCount])));
    });

  program
    .command('verify')
    .description('compare samples of both tiers; exit 1 if they differ')
    .option('--sample <n>', 'entries of each kind, and of Redis', wholeNumberFrom(1), 1_000)
    .addHelpText('after', examples('hybrid-cache verify --sample 10000 --json') + PASSED_OVER)
    .option('--json', 'print JSON')
    .action(async ({ sample, json }: Output & { sample: number }) => {
      await using app = await open();
      const found = await verify(app.connection, { sample });
      const { differences, ...rest } = found;
      const lines = differences.map(({ id, what }): [string, string] => [id, what]);
      print(json, found, figures([...rows('', rest), ['differences', differences.length], ...lines]));
      if (found.compared === 0) process.stderr.write('Nothing was compared: no entry of Redis is of use.\n');
      if (differences.length > 0) process.exitCode = 1;
    });
}

/** Figures one below the other, those within others with the names of both. */
function rows(prefix: string, figures: object): [string, unknown][] {
  return Object.entries(figures).flatMap(([name, figure]): [string, unknown][] => {
    const label = prefix ? `${prefix} ${name}` : name;
    if (Array.isArray(figure)) return [[label, figure.join(', ') || '-']];
    return typeof figure === 'object' && figure !== null ? rows(label, figure) : [[label, figure ?? '-']];
  });
}
