/** The servers' passwords: made once, kept beside the data that they open, readable by the owner alone. */
import { randomBytes } from 'node:crypto';
import { readFile, rename, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';

const secrets = z.object({ postgres: z.string().min(1), redis: z.string().min(1) });
export type Secrets = z.infer<typeof secrets>;

/** The passwords of the data in `home`; new ones where there is no data yet. */
export async function loadSecrets(home: string, dataFolder: string): Promise<Secrets> {
  const file = join(home, 'secrets.json');
  const text = await readFile(file, 'utf8').catch(() => null);
  if (text !== null) return secrets.parse(JSON.parse(text));
  if (await stat(dataFolder).catch(() => null)) {
    throw new Error(
      `${file}, the password of the data in ${dataFolder}, is missing: restore it, or remove that folder`,
    );
  }
  // Hexadecimal, so that it needs no escaping in a URL or a configuration file.
  const made = { postgres: randomBytes(24).toString('hex'), redis: randomBytes(24).toString('hex') };
  await writeFile(`${file}.new`, JSON.stringify(made), { mode: 0o600 });
  await rename(`${file}.new`, file);
  return made;
}
