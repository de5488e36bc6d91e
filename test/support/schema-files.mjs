// schemas/*.json, for producers in other languages: `--write` writes them; without, as part of `npm run check`, fails
// where they are behind the payloads of src/queues.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { z } from 'zod';
import { crawlPayload } from '../../dist/src/queues/crawl.js';
import { embeddingPayload } from '../../dist/src/queues/embedding.js';

const FOLDER = 'schemas';
const TENANT = 'Whose facts they are.';
// What zod cannot turn into JSON Schema is said in words; a worker checks it all the same.
const FILES = {
  'crawl-job.json': {
    payload: crawlPayload,
    title: 'A job of the queue "crawl": fetch one image for one tenant',
    properties: {
      v: 'Version of this format.',
      tenantId: TENANT,
      url: 'An absolute http or https URL without credentials, of at most 2,048 characters once escaped.',
      sourceUrl: 'The page that showed the image. No NUL and no half of a surrogate pair.',
      force: 'Passes over the known URL and remembered rejections, and always fetches.',
    },
  },
  'embedding-job.json': {
    payload: embeddingPayload,
    title: 'A job of the queue "embedding": find and embed the faces of one stored image',
    properties: {
      v: 'Version of this format.',
      tenantId: TENANT,
      contentHash: "SHA-256 of the image's bytes, in lower-case hex.",
    },
  },
};

let behind = false;
for (const [name, { payload, title, properties }] of Object.entries(FILES)) {
  const { $schema, ...schema } = z.toJSONSchema(payload, { io: 'input' });
  for (const [property, description] of Object.entries(properties)) {
    Object.assign(schema.properties[property], { description });
  }
  const undescribed = Object.keys(schema.properties).filter((property) => !(property in properties));
  if (undescribed.length > 0) throw new Error(`${name}: describe ${undescribed.join(', ')} in this file`);
  const description = 'Properties that are not named here are passed over.';
  const text = `${JSON.stringify({ $schema, title, description, ...schema }, null, 2)}\n`;
  const file = `${FOLDER}/${name}`;
  if (process.argv.includes('--write')) {
    mkdirSync(FOLDER, { recursive: true });
    writeFileSync(file, text);
  } else if (!existsSync(file) || readFileSync(file, 'utf8') !== text) {
    process.stderr.write(`${file} is behind src/queues: run npm run schemas\n`);
    behind = true;
  }
}
if (behind) process.exitCode = 1;
