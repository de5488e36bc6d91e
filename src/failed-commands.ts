/** The commands about jobs that failed for good: what failed and why, and running it again. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { App } from './app.js';
import { FAILURE_REASONS } from './errors.js';
import { canonicalUrl } from './kinds/url.js';
import { tenantId, wholeNumberFrom } from './option-values.js';
import { examples, figures, print, table } from './output.js';
import { Progress } from './progress.js';
import { QUEUE_NAMES } from './queues/contract.js';
import {
  type FailedFilter,
  type FailedJob,
  type FailedSummary,
  listFailed,
  retryFailed,
  type Watch,
} from './queues/failed.js';

/** `open` gives an app that is closed when the command ends. */
export function addFailedCommands(program: Command, open: () => Promise<App & AsyncDisposable>): void {
  const failed = program
    .command('failed')
    .description('the jobs that failed for good: what they are, running them again');

  filtered(failed.command('list'))
    .description('count failed jobs by reason and by host, and show the newest')
    .option('--limit <n>', 'how many jobs to show', wholeNumberFrom(0), 20)
    .addHelpText(
      'after',
      examples('hybrid-cache failed list --reason timeout', 'hybrid-cache failed list --tenant acme --limit 0 --json'),
    )
    .option('--json', 'print JSON')
    .action(async ({ limit, json, ...filter }: FailedFilter & { limit: number; json?: boolean }) => {
      await using app = await open();
      using progress = new Progress();
      const summary = await listFailed(app.queues, filter, limit, shownBy(progress, 'reading'));
      print(json, summary, report(summary, filter));
    });

  filtered(failed.command('retry'))
    .description('run failed jobs again, with all of their attempts; a job whose twin waits or runs is left')
    .option('--all', 'whatever failed')
    .addHelpText(
      'after',
      examples('hybrid-cache failed retry --reason timeout --host example.com', 'hybrid-cache failed retry --all'),
    )
    .option('--json', 'print JSON')
    .action(async (options: FailedFilter & { all?: boolean; json?: boolean }, command: Command) => {
      const { all = false, json, ...filter } = options;
      if (all === Object.keys(filter).length > 0) {
        command.error(
          'error: say which jobs: with --queue, --reason, --host or --tenant, or with --all; not with both',
        );
      }
      await using app = await open();
      using progress = new Progress();
      const { retried, twins, gone } = await retryFailed(app.queues, filter, shownBy(progress, 'retrying'));
      const rows: [string, number][] = [
        ['retried', retried],
        ['left: a twin waits or runs', twins],
        ['gone meanwhile', gone],
      ];
      print(json, { retried, twins, gone }, figures(rows.filter(([, jobs], i) => i === 0 || jobs > 0)));
    });
}

function filtered(command: Command): Command {
  return command
    .addOption(new Option('--queue <queue>', 'only of this queue').choices(QUEUE_NAMES))
    .addOption(new Option('--reason <reason>', 'only those that failed for it').choices(FAILURE_REASONS))
    .option('--host <host>', 'only images of this host, such as example.com (on any port) or example.com:8080', host)
    .option('--tenant <id>', 'only of this tenant', tenantId);
}

/** The bar goes when all is done. */
function shownBy(progress: Progress, label: string): Watch {
  let total: number | undefined;
  return (done, of) => {
    if (of !== total) progress.begin(label, of);
    total = of;
    if (done < of) progress.at(done);
    else progress.clear();
  };
}

/** As the canonical URLs of the jobs spell it. */
function host(text: string): string {
  try {
    const { host, pathname, search } = new URL(canonicalUrl(`http://${text}`));
    if (`${pathname}${search}` === '/') return host;
  } catch {
    // Said below.
  }
  throw new InvalidArgumentError('expected a host, such as example.com or example.com:8080');
}

function report({ failed, reasons, hosts, hostCount, jobs }: FailedSummary, filter: FailedFilter): string {
  if (failed === 0) return Object.keys(filter).length > 0 ? 'No failed jobs match.' : 'No failed jobs.';
  const sections = [table(['reason', 'failed'], Object.entries(reasons))];
  if (hosts.length > 0) {
    const more = hostCount - hosts.length;
    const rows = hosts.map((one) => [one.host, one.failed]);
    sections.push(table(['host', 'failed'], rows) + (more > 0 ? `\nand ${more} more` : ''));
  }
  if (jobs.length > 0) {
    const heads = ['failed at', 'queue', 'reason', 'attempts', 'tenant', 'job', 'image, or what is wrong'];
    const more = failed - jobs.length;
    sections.push(table(heads, jobs.map(row)) + (more > 0 ? `\nand ${more} older` : ''));
  }
  return sections.join('\n\n');
}

function row(job: FailedJob): (string | number)[] {
  const at = job.failedAt.toISOString().replace(/\.\d+Z$/, 'Z');
  // Without an image the payload is at fault, and the error says how.
  const image = job.contentHash ?? (job.host === null ? job.error : `${job.host}${job.path}`);
  return [at, job.queue, job.reason, job.attempts, job.tenantId ?? '-', job.id, image];
}
