// Part of `npm run check`: fails where src/db/schema.ts says something that drizzle/ does not.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';

const migrations = (folder) => readdirSync(folder).filter((name) => name.endsWith('.sql'));

const folder = mkdtempSync('.drizzle-check-');
try {
  cpSync('drizzle', folder, { recursive: true });
  const options = [
    'generate',
    '--dialect',
    'postgresql',
    '--schema',
    'src/db/schema.ts',
    '--out',
    relative('.', folder),
  ];
  execFileSync('npx', ['drizzle-kit', ...options], { stdio: ['ignore', 'ignore', 'inherit'] });
  const missing = migrations(folder).filter((name) => !migrations('drizzle').includes(name));
  if (missing.length > 0) {
    process.stderr.write(
      `drizzle/ is behind src/db/schema.ts: run npm run db:generate (${join('drizzle', missing[0])})\n`,
    );
    process.exitCode = 1;
  }
} finally {
  rmSync(folder, { recursive: true });
}
