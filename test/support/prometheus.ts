/** A real Prometheus and its promtool, of Debian's package: installed, or the tests that want them fail. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const INSTALL = 'apt-get update && apt-get install -y --no-install-recommends prometheus';

function program(name: 'prometheus' | 'promtool'): string {
  const path = `/usr/bin/${name}`;
  if (!existsSync(path)) throw new Error(`${path} is missing: run ${INSTALL}`);
  return path;
}

/** What promtool said, on both streams. */
export function promtool(...args: string[]): Promise<{ code: number; said: string }> {
  return new Promise((done) => {
    execFile(program('promtool'), args, (error, out, err) =>
      done({ code: error ? Number(error.code) : 0, said: out + err }),
    );
  });
}

interface PromSample {
  readonly metric: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Prometheus extends AsyncDisposable {
  readonly url: string;
  /** Rejects with Prometheus's own words where the query is not one. */
  query(expression: string): Promise<PromSample[]>;
}

/** On loopback, with its data in a folder that goes with it. Hold it with `await using`. */
export async function startPrometheus(config: string): Promise<Prometheus> {
  const folder = await mkdtemp(join(tmpdir(), 'hc-prometheus-'));
  await writeFile(join(folder, 'prometheus.yml'), config);
  const args = [
    `--config.file=${folder}/prometheus.yml`,
    `--storage.tsdb.path=${folder}/data`,
    '--web.listen-address=127.0.0.1:0',
  ];
  const child = spawn(program('prometheus'), args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const dispose = async () => {
    await stopped(child);
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const url = `http://${await addressOf(child)}`;
    return { url, query: (expression) => query(url, expression), [Symbol.asyncDispose]: dispose };
  } catch (error) {
    await dispose();
    throw error;
  }
}

/** Said in its log, which is read to the end, or its pipe would fill. */
function addressOf(child: ChildProcess): Promise<string> {
  return new Promise((found, failed) => {
    const lines: string[] = [];
    if (!child.stderr) throw new Error('no log');
    createInterface(child.stderr).on('line', (line) => {
      lines.push(line);
      const address = /Listening on.* address=(127\.0\.0\.1:\d+)/.exec(line)?.[1];
      if (address) found(address);
    });
    child.once('error', failed);
    child.once('exit', (code) => failed(new Error(`prometheus ended with ${code}: ${lines.slice(-3).join('\n')}`)));
  });
}

async function stopped(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGKILL'); // its data goes anyway
  await once(child, 'exit');
}

async function query(url: string, expression: string): Promise<PromSample[]> {
  const response = await fetch(`${url}/api/v1/query?${new URLSearchParams({ query: expression })}`);
  const answer = (await response.json()) as {
    status: string;
    error?: string;
    data: { result: { metric: Record<string, string>; value: [number, string] }[] };
  };
  if (answer.status !== 'success') throw new Error(`${answer.error}: ${expression}`);
  return answer.data.result.map(({ metric, value }) => ({ metric, value: Number(value[1]) }));
}
