/** The environment becomes a configuration, or a list of everything that is wrong with it. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { namesNoServer, toConfig, VARIABLE_NAMES } from '../src/config.js';
import { ConfigError } from '../src/errors.js';

const SECRET = 'hunter2-s3cr3t';

function problemsOf(env: Record<string, string>): readonly string[] {
  try {
    toConfig(env);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    const { problems, message } = error as ConfigError;
    for (const problem of problems) expect(message).toContain(problem);
    return problems;
  }
  return [];
}

test('with nothing set every default is the documented one [M16, M18]', () => {
  expect(toConfig({})).toMatchObject({
    redisUrl: 'redis://localhost:6379/0',
    queue: { backend: 'redis', url: 'redis://localhost:6379/0' },
    postgres: { host: 'localhost', port: 5432, database: 'mordeaux', user: 'mordeaux', password: '' },
    storage: { folder: resolve('data/objects') },
    http: { host: '127.0.0.1', port: 3000, tokens: [], imagesPerMinute: null },
    metricsPort: 3001,
    embedding: { threads: availableParallelism() },
    fetch: { maxBytes: 20 * 1024 * 1024, timeoutMs: 30_000, allow: [], deny: [] },
    images: { maxPixels: 100_000_000 },
    ttl: { embedding: 3600, search: 300, phash: 7200, faceDetection: 3600, crawl: 86_400 },
    logLevel: 'info',
    shutdownTimeoutMs: 15_000,
  });
});

test('an empty variable counts as unset', () => {
  const empty = Object.fromEntries(VARIABLE_NAMES.map((name) => [name, '']));
  expect(toConfig(empty)).toEqual(toConfig({}));
});

test('what is set is what is used', () => {
  const config = toConfig({
    REDIS_URL: 'rediss://user:pw@cache:7000/1',
    QUEUE_REDIS_URL: 'redis://queue:6380',
    POSTGRES_HOST: 'db',
    POSTGRES_PORT: '5433',
    STORAGE_URL: 'file:/var/objects',
    HOST: '::1',
    PORT: '0',
    CRAWL_CONCURRENCY: '7',
    EMBEDDING_THREADS: '2',
    CACHE_TTL_PHASH: '1',
    FETCH_TIMEOUT_MS: '5',
    USER_AGENT_CONTACT: 'https://example.com/bot',
    LOG_LEVEL: 'debug',
    SHUTDOWN_TIMEOUT_MS: '0',
  });
  expect(config).toMatchObject({
    redisUrl: 'rediss://user:pw@cache:7000/1',
    queue: { backend: 'redis', url: 'redis://queue:6380' },
    postgres: { host: 'db', port: 5433 },
    storage: { folder: '/var/objects' },
    http: { host: '::1', port: 0 },
    crawl: { concurrency: 7 },
    embedding: { threads: 2 },
    ttl: { phash: 1 },
    fetch: { timeoutMs: 5, userAgent: expect.stringContaining('(+https://example.com/bot)') },
    logLevel: 'debug',
    shutdownTimeoutMs: 0,
  });
});

test('a password is handed to PostgreSQL as it is, whatever is in it [M17]', () => {
  const password = 'a@b:c/d#e?f%20 "ü"';
  expect(toConfig({ POSTGRES_PASSWORD: password }).postgres).toMatchObject({ password });
  const url = 'postgres://u:p%40%3A%2F%23@db:5433/name';
  expect(toConfig({ DATABASE_URL: url, POSTGRES_HOST: 'ignored' }).postgres).toEqual({ connectionString: url });
});

test('the queue is on PostgreSQL where there is no Redis for it', () => {
  expect(toConfig({ REDIS_URL: 'none' })).toMatchObject({ redisUrl: null, queue: { backend: 'postgres' } });
  expect(toConfig({ QUEUE_BACKEND: 'postgres' })).toMatchObject({
    redisUrl: 'redis://localhost:6379/0',
    queue: { backend: 'postgres' },
  });
  expect(toConfig({ REDIS_URL: 'none', QUEUE_REDIS_URL: 'redis://q' })).toMatchObject({
    redisUrl: null,
    queue: { backend: 'redis', url: 'redis://q' },
  });
  expect(problemsOf({ REDIS_URL: 'none', QUEUE_BACKEND: 'redis' })).toEqual([
    expect.stringMatching(/^QUEUE_BACKEND: expected postgres, or a QUEUE_REDIS_URL .*; got "redis"$/),
  ]);
});

test.each([
  ['s3://images', { bucket: 'images', prefix: '', region: 'us-east-1', endpoint: undefined, pathStyle: false }],
  ['s3://images/a/b/?region=eu-central-1', { prefix: 'a/b/', region: 'eu-central-1', pathStyle: false }],
  ['s3://images?endpoint=http://127.0.0.1:9000', { endpoint: 'http://127.0.0.1:9000', pathStyle: true }],
  [
    's3://images?endpoint=https%3A%2F%2Fs3.example&pathStyle=false',
    { endpoint: 'https://s3.example', pathStyle: false },
  ],
  ['s3://images?pathStyle=true', { pathStyle: true }],
])('%s names a bucket', (STORAGE_URL, settings) => {
  expect(toConfig({ STORAGE_URL }).storage).toMatchObject({ kind: 's3', ...settings });
});

test.each([
  's3://',
  's3://Images',
  's3://key:hunter2@images',
  's3://images?endpoint=ftp://x',
  's3://images?acl=public',
  'gs://x',
])('%s names none, and nothing of it is told that may be secret', (STORAGE_URL) => {
  const [problem] = problemsOf({ STORAGE_URL });
  expect(problem).toMatch(/^STORAGE_URL: expected file:/);
  expect(problem).not.toContain('hunter2');
});

/** A file with a secret in it, as an orchestrator lays it out. */
function secretFile(content: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'hc-secret-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'secret');
  writeFileSync(file, content);
  return file;
}

test('secrets come from files, too, without the line break at their end', () => {
  const config = toConfig({
    REDIS_URL_FILE: secretFile('rediss://user:pw@cache:7000/1\n'),
    QUEUE_REDIS_URL_FILE: secretFile('redis://queue:6380'),
    POSTGRES_PASSWORD_FILE: secretFile(' a@b \r\n\n'),
    API_TOKENS_FILE: secretFile('one=acme,two=*\n'),
    HOST: '0.0.0.0',
  });
  expect(config).toMatchObject({
    redisUrl: 'rediss://user:pw@cache:7000/1',
    queue: { backend: 'redis', url: 'redis://queue:6380' },
    postgres: { host: 'localhost', password: ' a@b ' },
    http: {
      host: '0.0.0.0',
      tokens: [
        { token: 'one', tenant: 'acme' },
        { token: 'two', tenant: '*' },
      ],
    },
  });
  const connectionString = 'postgres://u:pw@db/name';
  expect(toConfig({ DATABASE_URL_FILE: secretFile(`${connectionString}\n`) }).postgres).toEqual({ connectionString });
});

test.each(['REDIS_URL', 'QUEUE_REDIS_URL', 'DATABASE_URL', 'POSTGRES_PASSWORD', 'API_TOKENS'])(
  '%s_FILE that cannot be read, is empty, or stands beside %s is a problem; nothing of the content is told',
  (name) => {
    const missing = `${name}_FILE: expected the path of a file that can be read and is not empty; got `;
    expect(problemsOf({ [`${name}_FILE`]: '/nowhere/at/all' })).toEqual([`${missing}"/nowhere/at/all"`]);
    expect(problemsOf({ [`${name}_FILE`]: tmpdir() })).toEqual([missing + JSON.stringify(tmpdir())]);
    const empty = secretFile('\n');
    expect(problemsOf({ [`${name}_FILE`]: empty })).toEqual([missing + JSON.stringify(empty)]);
    const file = secretFile(SECRET);
    const both = problemsOf({ [`${name}_FILE`]: file, [name]: SECRET });
    expect(both).toContain(`${name}_FILE: expected either it or ${name}; got both`);
    expect(both.join()).not.toContain(SECRET);
    // As a password the content is good; as anything else it is told to be bad, under the name it was given by.
    const named = problemsOf({ [`${name}_FILE`]: file }).map((problem) => problem.replace(/: expected .*;/, ':'));
    expect(named).toEqual(name === 'POSTGRES_PASSWORD' ? [] : [`${name}_FILE: got [secret]`]);
  },
);

test('every problem is told at once, in the order of the variables: the variable, what was expected, and its value', () => {
  expect(
    problemsOf({
      PORT: 'eighty',
      METRICS_PORT: '65536',
      POSTGRES_PORT: '0',
      CACHE_TTL_CRAWL: '-1',
      FETCH_MAX_BYTES: '1e6',
      QUEUE_BACKEND: 'kafka',
      LOG_LEVEL: 'loud',
      STORAGE_URL: '/var/objects',
      FETCH_ALLOW: '10.0.0.0/99',
      IMAGE_MAX_PIXELS: '1.5',
    }),
  ).toEqual([
    'QUEUE_BACKEND: expected one of redis, postgres; got "kafka"',
    'POSTGRES_PORT: expected a whole number from 1 to 65535; got "0"',
    'STORAGE_URL: expected file:<path of a folder> or s3://<bucket>[/prefix][?endpoint=…&region=…&pathStyle=true|false]; got "/var/objects"',
    'PORT: expected a whole number from 0 to 65535; got "eighty"',
    'METRICS_PORT: expected a whole number from 0 to 65535; got "65536"',
    'CACHE_TTL_CRAWL: expected a whole number from 1 on; got "-1"',
    'FETCH_MAX_BYTES: expected a whole number from 1 to 1073741824; got "1e6"',
    'FETCH_ALLOW: expected host names or CIDRs, comma-separated, each with an optional :port or :*; got "10.0.0.0/99"',
    'IMAGE_MAX_PIXELS: expected a whole number from 1 on; got "1.5"',
    expect.stringMatching(/^LOG_LEVEL: expected one of trace, .*silent; got "loud"$/),
  ]);
});

test.each(['@', '/', '?', '#'])(
  'a password with a bare %s, which would move the place of the host, is refused',
  (character) => {
    for (const [name, scheme] of [
      ['REDIS_URL', 'redis'],
      ['DATABASE_URL', 'postgres'],
    ] as const) {
      const [problem] = problemsOf({ [name]: `${scheme}://user:123${character}${SECRET}@host` });
      expect(problem).toMatch(/with @ \/ \? # of a password as %40 %2F %3F %23; got \[secret\]$/);
      const encoded = `${scheme}://user:123${encodeURIComponent(character)}x@host`;
      expect(toConfig({ [name]: encoded }).env).toEqual({ [name]: encoded });
    }
  },
);

test('no message repeats a secret', () => {
  const problems = problemsOf({
    REDIS_URL: `http://user:${SECRET}@host`,
    QUEUE_REDIS_URL: `${SECRET}@host`,
    DATABASE_URL: `mysql://user:${SECRET}@host/db`,
    API_TOKENS: SECRET,
  });
  expect(problems.map((problem) => problem.split(':')[0])).toEqual([
    'REDIS_URL',
    'QUEUE_REDIS_URL',
    'DATABASE_URL',
    'API_TOKENS',
  ]);
  expect(problems.join()).not.toContain(SECRET);
});

test('tokens are split at their last =, and one may stand in several pairs', () => {
  const config = toConfig({ API_TOKENS: 'abcdefgh==tenant-1, abcdefgh==tenant.2 ,other-token=*' });
  expect(config.http.tokens).toEqual([
    { token: 'abcdefgh=', tenant: 'tenant-1' },
    { token: 'abcdefgh=', tenant: 'tenant.2' },
    { token: 'other-token', tenant: '*' },
  ]);
});

const TOKENS_EXPECTED =
  'expected token=tenant or token=* pairs, comma-separated, tokens in printable ASCII without blanks; got [secret]';

test.each(['token', '=tenant', 'token=', 'token=a:b', 'token=**', 'token=a,', `token=${'x'.repeat(101)}`])(
  '%j is no list of tokens',
  (tokens) => {
    expect(problemsOf({ API_TOKENS: tokens })).toEqual([`API_TOKENS: ${TOKENS_EXPECTED}`]);
  },
);

test.each([
  'two words=acme',
  'token =acme',
  'tab\tbed=acme',
  'tökén=*',
  'токен=*',
  'zero\u200bwidth=*',
  'del\x7f=*',
  'good=acme,b ad=acme',
])('%j holds a token that no request could bring', (tokens) => {
  expect(problemsOf({ API_TOKENS: tokens })).toEqual([`API_TOKENS: ${TOKENS_EXPECTED}`]);
});

test('a line of a file is no pair of its own', () => {
  const file = secretFile('one=acme\ntwo=*\n');
  expect(problemsOf({ API_TOKENS_FILE: file })).toEqual([`API_TOKENS_FILE: ${TOKENS_EXPECTED}`]);
});

test('every printable character may be part of a token', () => {
  const token = Array.from({ length: 0x7e - 0x20 }, (_, n) => String.fromCharCode(0x21 + n)).join('');
  const pair = `${token.replace(',', '')}=acme`;
  expect(toConfig({ API_TOKENS: pair }).http.tokens).toEqual([{ token: token.replace(',', ''), tenant: 'acme' }]);
});

test.each(['0.0.0.0', '::', '192.168.1.5', 'example.com', '127.0.0.1.example.com'])(
  'without tokens the server does not listen on %s',
  (HOST) => {
    const problem = `HOST: expected a loopback address while no API_TOKENS are set; got ${JSON.stringify(HOST)}`;
    expect(problemsOf({ HOST })).toEqual([problem]);
    expect(toConfig({ HOST, API_TOKENS: 'long-enough=*' }).http.host).toBe(HOST);
  },
);

test.each(['127.0.0.1', '127.8.9.10', '::1', 'localhost'])('without tokens it listens on %s', (HOST) => {
  expect(toConfig({ HOST }).http.host).toBe(HOST);
});

test('a bad list of tokens is not also told to be missing', () => {
  expect(problemsOf({ API_TOKENS: 'nonsense', HOST: '0.0.0.0' })).toHaveLength(1);
});

test('only variables that name a server keep the service from bringing its own', () => {
  expect(namesNoServer({})).toBe(true);
  expect(namesNoServer({ PORT: '1', API_TOKENS: 'x', REDIS_URL: '', DATABASE_URL: '' })).toBe(true);
  for (const name of ['REDIS_URL', 'QUEUE_REDIS_URL', 'DATABASE_URL', 'POSTGRES_HOST', 'POSTGRES_PASSWORD']) {
    expect(namesNoServer({ [name]: 'x' }), name).toBe(false);
    if (name !== 'POSTGRES_HOST') expect(namesNoServer({ [`${name}_FILE`]: '/x' }), name).toBe(false);
  }
});

test('.env.example lists every variable, in order, and can be used as it is', () => {
  const file = resolve('.env.example');
  expect(existsSync(file)).toBe(true);
  const lines = readFileSync(file, 'utf8').split('\n');
  const pairs = lines.flatMap((line) => {
    const pair = /^([A-Z0-9_]+)=(.*)$/.exec(line);
    return pair ? [[pair[1], pair[2]] as [string, string]] : [];
  });
  expect(pairs.map(([name]) => name)).toEqual(VARIABLE_NAMES);
  expect(lines.filter((line) => line !== '' && !line.startsWith('#'))).toHaveLength(pairs.length);
  const given = Object.fromEntries(pairs.filter(([, value]) => value));
  expect(toConfig(Object.fromEntries(pairs))).toEqual({ ...toConfig({}), env: given });
});
