/** What docs/producers.md tells producers in other languages: its payloads are valid, and workers take them. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { Queue } from 'bullmq';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { createServer } from '../src/http/server.js';
import { jobOptions } from '../src/queues/contract.js';
import { type CrawlPayload, crawlPayload, crawlQueue } from '../src/queues/crawl.js';
import { embeddingPayload } from '../src/queues/embedding.js';
import { startWork, untilState } from './support/queue-work.js';
import { createWorld, type World } from './support/world.js';

const guide = readFileSync('docs/producers.md', 'utf8');
const schema = (name: string) => JSON.parse(readFileSync(`schemas/${name}.json`, 'utf8'));
const ajv = new Ajv2020({ strict: true, allErrors: true });
const isCrawlJob = ajv.compile(schema('crawl-job'));
const isEmbeddingJob = ajv.compile(schema('embedding-job'));

/** The one block of the guide in this language. */
function block(language: string): string {
  const found = [...guide.matchAll(/^```(\w+)\n([^]*?)^```$/gm)].filter(([, name]) => name === language);
  expect(found).toHaveLength(1);
  return found[0]?.[2] ?? '';
}

/** The two dictionaries that the Python example adds, with `url` and the digest put in as Python would. */
function pythonJob(): { data: unknown; options: Record<string, unknown> } {
  const code = block('python');
  const url = /^ {4}url = "(.*)"$/m.exec(code)?.[1] ?? '';
  const added = /queue\.add\(\s*"crawl",\s*(\{.*\}),\s*(\{[^]*\}),\s*\)\s*print/.exec(code);
  expect(url).not.toBe('');
  const json = (python = '') =>
    JSON.parse(
      python
        .replace(/"url": url/, `"url": "${url}"`)
        .replace(/\bFalse\b/g, 'false')
        .replace(/\bTrue\b/g, 'true')
        .replace(/str\(uuid4\(\)\)/, '"0a8e7d1c-51a3-4b7e-9a34-9f8f4a3c1f7d"')
        .replace(/sha256\(f".*?"\.encode\(\)\)\.hexdigest\(\)/, '"digest"')
        .replace(/,(\s*\})/g, '$1'),
    );
  return { data: json(added?.[1]), options: json(added?.[2]) };
}

let world: World;

beforeAll(async () => {
  world = await createWorld();
});

afterAll(() => world?.[Symbol.asyncDispose]());

describe('the schemas', () => {
  const HASH = 'ab'.repeat(32);
  const image = { v: 1, tenantId: 'acme', url: 'https://example.com/1.jpg' };
  test.each([
    [image, true],
    [{ ...image, sourceUrl: 'anything', force: true, added: 'later' }, true],
    [{ ...image, v: 2 }, false],
    [{ ...image, tenantId: '' }, false],
    [{ ...image, tenantId: 'a:b' }, false],
    [{ ...image, tenantId: 'x'.repeat(101) }, false],
    [{ v: 1, tenantId: 'acme' }, false],
    [{ ...image, url: 7 }, false],
    [{ ...image, sourceUrl: 'x'.repeat(2_049) }, false],
    [{ ...image, sourceUrl: null }, false],
    [{ ...image, force: 'yes' }, false],
    ['text', false],
  ])('and the worker agree on a crawl job: %j is %s', (payload, valid) => {
    expect(isCrawlJob(payload)).toBe(valid);
    expect(crawlPayload.safeParse(payload).success).toBe(valid);
  });

  test.each([
    [{ v: 1, tenantId: 'acme', contentHash: HASH }, true],
    [{ v: 1, tenantId: 'acme', contentHash: HASH.toUpperCase() }, false],
    [{ v: 1, tenantId: 'acme', contentHash: `${HASH}\n` }, false],
    [{ v: 1, tenantId: 'acme' }, false],
    [{ tenantId: 'acme', contentHash: HASH }, false],
  ])('and the worker agree on an embedding job: %j is %s', (payload, valid) => {
    expect(isEmbeddingJob(payload)).toBe(valid);
    expect(embeddingPayload.safeParse(payload).success).toBe(valid);
  });

  test('say what each property means', () => {
    for (const { properties } of [schema('crawl-job'), schema('embedding-job')]) {
      for (const property of Object.values(properties)) {
        expect(property).toEqual(expect.objectContaining({ description: expect.stringMatching(/\.$/) }));
      }
    }
  });
});

describe('the guide', () => {
  test('its JSON is a crawl job', () => {
    expect(isCrawlJob(JSON.parse(block('json'))), ajv.errorsText(isCrawlJob.errors)).toBe(true);
  });

  test('its request is accepted, image by image, and each becomes a crawl job', async () => {
    const app = world.app();
    const server = await createServer(app, { api: true });
    onTestFinished(() => server.close().then(() => undefined));
    const [, method, path, type, body = ''] =
      /curl -X (\w+) http:\/\/127\.0\.0\.1:3000(\S+) -H 'content-type: ([^']+)' \\\n +-d '(.*)'/.exec(block('sh')) ??
      [];
    const { images } = JSON.parse(body);
    const response = await server.inject({
      method: method as 'POST',
      url: String(path),
      headers: { 'content-type': String(type) },
      payload: body,
    });
    expect(response.statusCode).toBe(202);
    const jobs = await app.queues.get('crawl').getJobs(['waiting', 'prioritized']);
    expect(jobs.map(({ data }) => data.url).sort()).toEqual(images.map(({ url }: { url: string }) => url).sort());
    for (const { data } of jobs) expect(isCrawlJob(data), ajv.errorsText(isCrawlJob.errors)).toBe(true);
  });

  test('its Python job is valid, with the options that ours have, and a worker runs it', async () => {
    const { data, options } = pythonJob();
    expect(isCrawlJob(data), ajv.errorsText(isCrawlJob.errors)).toBe(true);
    const payload = crawlPayload.parse(data);
    const { jobId: _, removeOnComplete: __, removeOnFail: ___, ...ours } = jobOptions(crawlQueue, payload);
    expect(options).toEqual({ ...ours, jobId: expect.any(String), deduplication: { id: 'digest' } });

    const app = world.app({}, { queueNamespace: `${world.namespace}-py` });
    const seen: CrawlPayload[] = [];
    startWork(app, async (one) => {
      seen.push(one);
      return { outcome: 'stored' };
    });
    const url = new URL(world.redisUrl);
    const connection = { host: url.hostname, port: Number(url.port), password: decodeURIComponent(url.password) };
    const plain = new Queue('crawl', { connection, prefix: `${world.namespace}-py` });
    onTestFinished(() => plain.close());
    const job = await plain.add('crawl', data, options);
    await untilState(app, String(job.id), 'completed');
    expect(seen).toEqual([payload]);
  });

  test('its digest is the one of the service, so that both find each other’s twins', async () => {
    const text = /sha256\(f"(.*?)"\.encode/.exec(block('python'))?.[1];
    const url = 'https://example.com/portrait.jpg';
    const digest = createHash('sha256')
      .update(String(text).replace('{url}', url).replaceAll('\\n', '\n'))
      .digest('hex');
    expect(jobOptions(crawlQueue, { v: 1, tenantId: 'acme', url, force: false }).deduplication).toEqual({ id: digest });
  });
});
