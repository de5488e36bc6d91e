/** `hybrid-cache enqueue`: a list of URLs becomes crawl jobs, and it can wait for what becomes of them. */
import { open as openFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import type { Command } from 'commander';
import type { App } from './app.js';
import { ArgumentError } from './errors.js';
import { onShutdownSignal } from './lifecycle.js';
import { tenantId } from './option-values.js';
import { coloured, examples, print, table } from './output.js';
import { Progress } from './progress.js';
import { type CrawlPayload, crawlPayload, crawlQueue } from './queues/crawl.js';
import { type OutcomeCount, outcomesOf } from './queues/outcomes.js';
import { check } from './schema-check.js';

const BATCH = 1_000;
/** What a shell expects of a program that was told to end. */
const EXIT_CODES: Partial<Record<NodeJS.Signals, number>> = { SIGINT: 130, SIGTERM: 143 };

interface EnqueueOptions {
  readonly tenant: string;
  readonly force?: boolean;
  readonly wait?: boolean;
  readonly json?: boolean;
}

interface Refused {
  /** Its number in the list, from 1 on. */
  readonly line: number;
  readonly what: string;
}

/** What `--json` prints. */
interface Summary {
  /** Jobs that are new. */
  readonly enqueued: number;
  /** Lines whose job was there before: enqueued by somebody else, or for an earlier line. */
  readonly duplicates: number;
  readonly refused: readonly Refused[];
  /** How the jobs ended, with `--wait`. */
  readonly outcomes?: readonly OutcomeCount[];
}

/** `open` gives an app that is closed when the command ends. */
export function addEnqueueCommand(program: Command, open: () => Promise<App & AsyncDisposable>): void {
  program
    .command('enqueue')
    .description('enqueue the image URLs of a file, or of standard input (-), one a line')
    .argument('<file>', 'a file, or - for standard input')
    .requiredOption('--tenant <id>', 'whose images they are', tenantId)
    .option('--force', 'fetch also what is known')
    .option('--wait', 'wait for the outcomes; exit 1 if any job failed')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples(
        'hybrid-cache enqueue urls.txt --tenant acme --wait',
        `grep -o 'https://[^"]*[.]jpg' page.html | hybrid-cache enqueue - --tenant acme --json`,
      ),
    )
    .addHelpText(
      'after',
      '\nExits with 1 if a line was refused or, with --wait, a job failed. Ctrl-C ends the command; its jobs go on.',
    )
    .action(async (file: string, options: EnqueueOptions) => {
      const stop = new AbortController();
      const end = enqueueList(open, file, options, stop.signal);
      onShutdownSignal(async (signal) => {
        stop.abort();
        await end;
        return EXIT_CODES[signal] ?? 1;
      });
      const isWhole = await end;
      // A command that was told to end leaves the exit to the signal's handler.
      if (stop.signal.aborted) await new Promise<never>(() => undefined);
      if (!isWhole) process.exitCode = 1;
    });
}

/**
 * @returns whether no line was refused and no job failed
 * @throws {ArgumentError} before anything is enqueued
 */
async function enqueueList(
  open: () => Promise<App & AsyncDisposable>,
  file: string,
  options: EnqueueOptions,
  signal: AbortSignal,
): Promise<boolean> {
  const list = await openList(file);
  await using app = await open();
  const { ids, enqueued, duplicates, refused } = await enqueueLines(app, list, options, signal);
  const outcomes = options.wait ? await wait(app, ids, signal) : undefined;
  const summary: Summary = { enqueued, duplicates, refused, ...(outcomes ? { outcomes } : {}) };
  print(options.json, summary, coloured(report(summary), { failed: 'red', refused: 'yellow' }));
  if (signal.aborted) process.stderr.write(`Stopped. ${goingOn(ids.size, outcomes)}\n`);
  return refused.length === 0 && !outcomes?.some(({ outcome }) => outcome === 'failed');
}

interface List {
  readonly input: Readable;
  /** Lines, where they can be counted beforehand. */
  readonly length: number | undefined;
}

/** @throws {ArgumentError} where there is nothing to read */
async function openList(file: string): Promise<List> {
  if (file === '-') return { input: process.stdin, length: undefined };
  try {
    const handle = await openFile(file);
    const found = await handle.stat();
    if (found.isDirectory()) throw new ArgumentError('file', `${file} is a folder; expected a list of URLs`);
    const input = handle.createReadStream();
    return { input, length: found.isFile() ? await countLines(file) : undefined };
  } catch (error) {
    if (error instanceof ArgumentError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'does not exist' : `cannot be read (${code})`;
    throw new ArgumentError('file', `${file} ${why}`);
  }
}

async function countLines(file: string): Promise<number> {
  let lines = 0;
  let last = 10;
  await using handle = await openFile(file);
  for await (const chunk of handle.createReadStream({ autoClose: false }) as AsyncIterable<Buffer>) {
    for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10, at + 1)) lines += 1;
    last = chunk.at(-1) ?? last;
  }
  return last === 10 ? lines : lines + 1;
}

async function enqueueLines(app: App, list: List, options: EnqueueOptions, signal: AbortSignal) {
  const progress = new Progress();
  const refused: Refused[] = [];
  const ids = new Set<string>();
  let [enqueued, duplicates] = [0, 0];
  progress.begin('enqueuing', list.length);
  try {
    for await (const { payloads, lines } of batches(list.input, options, refused, signal)) {
      if (signal.aborted) break;
      for (const { id, isTwin } of await app.queues.enqueueTellingTwins(crawlQueue, payloads)) {
        ids.add(id);
        if (isTwin) duplicates += 1;
        else enqueued += 1;
      }
      progress.at(lines);
    }
  } finally {
    progress.end();
  }
  for (const { line, what } of refused) process.stderr.write(`refused line ${line}: ${what}\n`);
  return { ids, enqueued, duplicates, refused };
}

/** The payloads of some lines, and how many lines have been read by then. */
async function* batches(
  input: Readable,
  { tenant, force }: EnqueueOptions,
  refused: Refused[],
  signal: AbortSignal,
): AsyncGenerator<{ payloads: CrawlPayload[]; lines: number }> {
  let payloads: CrawlPayload[] = [];
  let lines = 0;
  for await (const text of createInterface({ input, signal })) {
    lines += 1;
    if (text.trim() === '') continue;
    const line = { v: 1, tenantId: tenant, url: text.trim(), ...(force ? { force } : {}) };
    const { data, problem } = check(crawlPayload, line);
    if (problem) refused.push({ line: lines, what: problem.expectation });
    else payloads.push(data);
    if (payloads.length < BATCH) continue;
    yield { payloads, lines };
    payloads = [];
  }
  yield { payloads, lines };
}

async function wait(app: App, ids: ReadonlySet<string>, signal: AbortSignal): Promise<OutcomeCount[]> {
  using progress = new Progress();
  progress.begin('crawling', ids.size);
  const outcomes = await outcomesOf(app.queues, ids, signal, ({ ended, putOff, isAway }) => {
    const notes = [
      ...(putOff > 0 ? [`${putOff.toLocaleString('en')} put off until later`] : []),
      ...(isAway ? ['the queue is unavailable'] : []),
    ];
    progress.at(ended, notes.join(', '));
  });
  progress.end();
  return outcomes;
}

function report({ enqueued, duplicates, refused, outcomes }: Summary): string {
  const reasons = new Map<string, number>();
  for (const { what } of refused) reasons.set(what, (reasons.get(what) ?? 0) + 1);
  const lines: [string, string, number][] = [
    ['enqueued', '', enqueued],
    ...(duplicates > 0 ? [['duplicate', 'the job was there before', duplicates] as [string, string, number]] : []),
    ...[...reasons].map(([what, count]): [string, string, number] => ['refused', what, count]),
  ];
  const ends = outcomes?.map(({ outcome, reason, count }) => [outcome, reason ?? '', count]);
  const sections = [table(['lines', 'reason', 'count'], lines)];
  if (ends && ends.length > 0) sections.push(table(['outcome', 'reason', 'count'], ends));
  return sections.join('\n\n');
}

function goingOn(jobs: number, outcomes: readonly OutcomeCount[] | undefined): string {
  const left = outcomes ? (outcomes.find(({ outcome }) => outcome === 'waiting')?.count ?? 0) : jobs;
  if (left === 0) return 'No job is left.';
  return left === 1 ? 'Its job goes on.' : `Its ${left.toLocaleString('en')} jobs go on.`;
}
