/**
 * Telling one process from a later one with the same number: pid plus start time. Whatever is signalled on the word
 * of a file is checked against both, so that a reused pid never costs somebody else's process its life.
 */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { z } from 'zod';

export const processIdentity = z.object({ pid: z.number().int().positive(), started: z.string() });
export type ProcessIdentity = Readonly<z.infer<typeof processIdentity>>;

/** The identity of the process that has this pid now; `null` when none has, or only its exit status is left. */
export async function identify(pid: number): Promise<ProcessIdentity | null> {
  const started = process.platform === 'linux' ? await startedOnLinux(pid) : await startedByPs(pid);
  return started === null ? null : { pid, started };
}

export async function identifySelf(): Promise<ProcessIdentity> {
  const self = await identify(process.pid);
  if (!self) throw new Error('cannot read the start time of this process, from /proc or with ps');
  return self;
}

export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  return (await identify(identity.pid))?.started === identity.started;
}

export function sameProcess(a: ProcessIdentity, b: ProcessIdentity): boolean {
  return a.pid === b.pid && a.started === b.started;
}

/** True once the process is gone, false when it is still there after `ms`. Polls: it need not be our child. */
export async function gone(identity: ProcessIdentity, ms: number): Promise<boolean> {
  for (const end = Date.now() + ms; Date.now() < end; await delay(25)) {
    if (!(await isAlive(identity))) return true;
  }
  return false;
}

/** Ends a process that need not be our child: `signal`, and SIGKILL when it is still there after `graceMs`. */
export async function endProcess(identity: ProcessIdentity, signal: NodeJS.Signals, graceMs: number): Promise<void> {
  if (!(await isAlive(identity))) return;
  send(identity.pid, signal);
  // A stopped process takes no signal but these two.
  send(identity.pid, 'SIGCONT');
  if (await gone(identity, graceMs)) return;
  send(identity.pid, 'SIGKILL');
  if (!(await gone(identity, 5_000))) throw new Error(`process ${identity.pid} does not end; end it by hand`);
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

async function startedOnLinux(pid: number): Promise<string | null> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => null);
  if (stat === null) return null;
  // proc(5): the second field is the name in parentheses and may itself hold blanks and parentheses; the state is
  // the third, the start time in clock ticks since boot the twenty-second.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' || fields[0] === 'X' ? null : (fields[19] ?? null);
}

async function startedByPs(pid: number): Promise<string | null> {
  const args = ['-o', 'state=', '-o', 'lstart=', '-p', String(pid)];
  const printed = await promisify(execFile)('ps', args).catch(() => null);
  const line = printed?.stdout.trim() ?? '';
  return line === '' || line.startsWith('Z') ? null : line.slice(line.indexOf(' ')).trim();
}
