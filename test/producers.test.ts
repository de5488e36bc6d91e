/** What docs/producers.md tells producers in other languages: its payloads are valid, and workers take them. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { Queue } from 'bullmq';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { toConfig } from '../src/config.js';
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
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** The one block of the guide in this language. */
function block(language: string): string {
  const found = [...guide.matchAll(/^```(\w+)\n([^]*?)^```$/gm)].filter(([, name]) => name === language);
  expect(found).toHaveLength(1);
  return found[0]?.[2] ?? '';
}

/** Has the names of BullMQ's client for Python that the example uses, and says with which arguments they are called. */
const STAND_IN = `
import json

class Job:
    def __init__(self, id):
        self.id = id

class Queue:
    def __init__(self, name: str, opts={}):
        self.made = {"queue": name, "queueOptions": opts}

    async def add(self, name: str, data, opts={}):
        print(json.dumps({**self.made, "name": name, "data": data, "options": opts}))
        return Job(opts["jobId"])

    async def close(self) -> None:
        print("closed")
`;

interface PythonJob {
  readonly queue: string;
  readonly queueOptions: unknown;
  readonly name: string;
  readonly data: unknown;
  readonly options: Readonly<Record<string, unknown>>;
}

/** What the Python example adds when Python runs it. */
async function pythonJob(): Promise<PythonJob> {
  const folder = await mkdtemp(join(tmpdir(), 'hc-producers-'));
  onTestFinished(() => rm(folder, { recursive: true }));
  await writeFile(join(folder, 'bullmq.py'), STAND_IN);
  await writeFile(join(folder, 'example.py'), block('python'));
  const { stdout } = await promisify(execFile)('python3', ['-B', join(folder, 'example.py')]).catch((error) => {
    if (error.code !== 'ENOENT') throw error;
    throw new Error('python3 is missing: run apt-get install -y --no-install-recommends python3-minimal');
  });
  const [added = '', id, closed] = stdout.split('\n');
  const job: PythonJob = JSON.parse(added);
  expect([id, closed]).toEqual([job.options.jobId, 'closed']);
  return job;
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
    const { queue, queueOptions, name, data, options } = await pythonJob();
    // Where nothing is said of the prefix, both clients take BullMQ's own, as the service does.
    expect([queue, name, queueOptions]).toEqual(['crawl', 'crawl', { connection: toConfig({}).redisUrl }]);
    expect(isCrawlJob(data), ajv.errorsText(isCrawlJob.errors)).toBe(true);
    const payload = crawlPayload.parse(data);
    // The digest is the service's own too, so that both find each other's twins.
    const { jobId, removeOnComplete: _, removeOnFail: __, ...ours } = jobOptions(crawlQueue, payload);
    expect(options).toEqual({ ...ours, jobId: expect.stringMatching(UUID) });
    expect(jobId).toMatch(UUID);

    const app = world.app({}, { queueNamespace: `${world.namespace}-py` });
    const seen: CrawlPayload[] = [];
    startWork(app, async (one) => {
      seen.push(one);
      return { outcome: 'stored' };
    });
    const url = new URL(world.redisUrl);
    const connection = { host: url.hostname, port: Number(url.port), password: decodeURIComponent(url.password) };
    const plain = new Queue(queue, { connection, prefix: `${world.namespace}-py` });
    onTestFinished(() => plain.close());
    const job = await plain.add(name, data, options);
    await untilState(app, String(job.id), 'completed');
    expect(seen).toEqual([payload]);
  });
});
