/** How far a server's clock is from this machine's. */
import { type Finding, ok, problem, warning } from './check.js';

/** Clocks that NTP keeps differ by milliseconds. */
const NOTED_MS = 1_000;
/** Writes that were made without PostgreSQL are ordered by the clocks of both servers; tombstones last 10 s. */
const HARMFUL_MS = 10_000;

export interface ClockReading {
  /** The server's clock less this machine's, in milliseconds. */
  readonly skewMs: number;
  /** It may be off by as much: half of the way there and back. */
  readonly marginMs: number;
}

/** @param ask resolves with milliseconds since the epoch */
export async function readClock(ask: () => Promise<number>): Promise<ClockReading> {
  const before = Date.now();
  const theirs = await ask();
  const after = Date.now();
  return { skewMs: theirs - (before + after) / 2, marginMs: (after - before) / 2 };
}

export function clockFinding(check: string, { skewMs, marginMs }: ClockReading): Finding {
  const off = Math.max(0, Math.abs(skewMs) - marginMs);
  const where = `${(off / 1000).toFixed(1)} s ${skewMs < 0 ? 'behind' : 'ahead of'} this machine's`;
  if (off >= HARMFUL_MS) return problem(check, `its clock is ${where}: run NTP on both, writes are ordered by clocks`);
  if (off >= NOTED_MS) return warning(check, `its clock is ${where}: run NTP on both`);
  return ok(check, "its clock agrees with this machine's");
}
