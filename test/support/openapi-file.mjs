// openapi.json at the top of the package: `--write` writes it; without, as part of `npm run check`, fails where it is
// behind what src/http declares.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { openApiDocument } from '../../dist/src/http/openapi.js';

const FILE = 'openapi.json';
const text = `${JSON.stringify(openApiDocument(), null, 2)}\n`;

if (process.argv.includes('--write')) {
  writeFileSync(FILE, text);
} else if (!existsSync(FILE) || readFileSync(FILE, 'utf8') !== text) {
  process.stderr.write(`${FILE} is behind src/http: run npm run openapi\n`);
  process.exitCode = 1;
}
