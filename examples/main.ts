/** `npm run examples`: all five, against the servers that the environment names, or else against servers of their own. */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { namesNoServer, readEnv } from '../src/config.js';
import { migrate } from '../src/db/migrate.js';
import { startLocalStack } from '../src/local/stack.js';

const EXAMPLES = ['face-embeddings', 'perceptual-hash', 'crawl-duplicates', 'statistics', 'tenants'];

const local = resolve('.local');
const folder = `${local}/examples-${randomBytes(4).toString('hex')}`;
await using stack = namesNoServer(readEnv())
  ? await startLocalStack({ folder, ephemeral: true, cacheFolder: local })
  : undefined;
if (stack) await migrate({ connectionString: stack.env.DATABASE_URL }, { queueOnPostgres: false });

for (const name of EXAMPLES) {
  console.log(`\n== examples/${name}.ts`);
  const file = fileURLToPath(new URL(`${name}.js`, import.meta.url));
  const child = spawn(process.execPath, [file], { stdio: 'inherit', env: { ...readEnv(), ...stack?.env } });
  const [code] = await once(child, 'exit');
  if (code !== 0) {
    process.exitCode = 1;
    break;
  }
}
