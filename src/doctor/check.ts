/** A check ends in findings, whatever happens to it: none can hang, and none can throw. */
import { type ConfigError, reasonOf } from '../errors.js';
import { within } from '../lifecycle.js';
import { withoutSecrets } from '../logger.js';

export type Verdict = 'ok' | 'warning' | 'problem';

export interface Finding {
  /** What was looked at. */
  readonly check: string;
  /** `warning`: it works, and there is something to know; `problem`: something does not work, or loses what it holds. */
  readonly verdict: Verdict;
  /** One sentence; where not all is well it says what to do. */
  readonly says: string;
}

export interface Check {
  readonly name: string;
  readonly deadlineMs: number;
  /** What to do where the check fails, with this error, or takes too long. */
  readonly remedy: string | ((error?: unknown) => string);
  run(): Promise<readonly Finding[]>;
}

export const ok = (check: string, says: string): Finding => ({ check, verdict: 'ok', says });
export const warning = (check: string, says: string): Finding => ({ check, verdict: 'warning', says });
export const problem = (check: string, says: string): Finding => ({ check, verdict: 'problem', says });

/** The findings of a check; its failure, or its silence, is one too. */
export async function findingsOf({ name, deadlineMs, remedy, run }: Check): Promise<Finding[]> {
  const remedyOf = (error?: unknown) => (typeof remedy === 'string' ? remedy : remedy(error));
  const late = [problem(name, `no answer within ${deadlineMs / 1000} s: ${remedyOf()}`)];
  const running = Promise.resolve()
    .then(run)
    .catch((error: unknown) => [problem(name, `${reasonOf(error)}: ${remedyOf(error)}`)]);
  const findings = await within(deadlineMs, running, late);
  return findings.map((finding) => ({ ...finding, says: oneLine(withoutSecrets(finding.says)) }));
}

/** What is wrong with a configuration that could not be read. */
export function findingsOfConfig(error: ConfigError): Finding[] {
  return error.problems.map((says) => problem('configuration', oneLine(says)));
}

export function worst(findings: readonly Finding[]): Verdict {
  const verdicts = findings.map(({ verdict }) => verdict);
  return verdicts.includes('problem') ? 'problem' : verdicts.includes('warning') ? 'warning' : 'ok';
}

function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ').trim();
}
