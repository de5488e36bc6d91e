/** The command that looks at everything the service stands on. */
import type { Command } from 'commander';
import type { Config } from './config.js';
import { type Finding, findingsOfConfig, worst } from './doctor/check.js';
import { ConfigError } from './errors.js';
import { coloured, print, table } from './output.js';

const COLOURS = { ok: 'green', warning: 'yellow', problem: 'red' } as const;

/** `configured` gives the configuration that every other command would use. */
export function addDoctorCommand(program: Command, configured: () => Promise<Config>): void {
  program
    .command('doctor')
    .description(
      'check servers, storage, models, ports and settings, and say what to do; exit 1 where there is a problem',
    )
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const findings = await findingsWith(configured);
      const verdict = worst(findings);
      const rows = findings.map(({ verdict, check, says }) => [verdict, check, says]);
      print(json, { verdict, findings }, coloured(table(['verdict', 'check', ''], rows), COLOURS));
      if (verdict === 'problem') process.exitCode = 1;
    });
}

async function findingsWith(configured: () => Promise<Config>): Promise<Finding[]> {
  try {
    const config = await configured();
    const { examine } = await import('./doctor/doctor.js');
    return await examine(config);
  } catch (error) {
    if (error instanceof ConfigError) return findingsOfConfig(error);
    throw error;
  }
}
