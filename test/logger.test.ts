/** The log holds no secret, whichever way one comes in. */
import { expect, test } from 'vitest';
import { createLogger, type LogLevel, withoutSecrets } from '../src/logger.js';

const SECRET = 'hunter2-s3cr3t';

function logged(use: (log: ReturnType<typeof createLogger>) => void, level: LogLevel = 'trace') {
  const lines: string[] = [];
  use(createLogger(level, { write: (line: string) => void lines.push(line) }));
  return { text: lines.join(''), lines: lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

test.each([
  ['redis://:pw@host:6379/0', 'redis://host:6379/0'],
  ['redis://user:pw@host', 'redis://host'],
  ['rediss://user:p@w@host/1', 'rediss://host/1'],
  ['postgres://user:pw@host:5432/db', 'postgres://host:5432/db'],
  ['postgres://host/db?password=pw&sslmode=require', 'postgres://host/db?…'],
  ['https://user@host/a', 'https://host/a'],
  ['https://host/a?X-Amz-Signature=pw', 'https://host/a?…'],
  ['https://host/a?sig=pw#frag', 'https://host/a?…'],
  ['connect to redis://:pw@a and postgres://u:pw@b failed', 'connect to redis://a and postgres://b failed'],
  ['"https://host/a?token=pw", he said', '"https://host/a?…", he said'],
  ['mail@example.com wrote', 'mail@example.com wrote'],
  ['https://host/path@2x.png', 'https://host/path@2x.png'],
  ['is it so?', 'is it so?'],
  ['', ''],
])('%j is logged as %j', (given, expected) => {
  expect(withoutSecrets(given)).toBe(expected);
  expect(withoutSecrets(expected)).toBe(expected);
});

test('a field that may hold a secret is masked, at the top and one level down', () => {
  const fields = { password: SECRET, token: SECRET, authorization: SECRET, cookie: SECRET, redisUrl: SECRET };
  const more = { connectionString: SECRET, secret: SECRET, tokens: [SECRET] };
  const { text, lines } = logged((log) => {
    log.info({ ...fields, ...more }, 'top');
    log.info({ headers: fields, config: more }, 'below');
    log.child({ request: { authorization: SECRET } }).warn('child');
  });
  expect(text).not.toContain(SECRET);
  expect(lines[0]).toMatchObject({ msg: 'top', password: '[secret]', tokens: '[secret]' });
  expect(lines[1]).toMatchObject({ headers: { authorization: '[secret]' } });
  expect(lines).toHaveLength(3);
});

test('an error is logged by name, message, code and stack, without the credentials in them', () => {
  const error = Object.assign(new TypeError(`cannot reach redis://:${SECRET}@host`), {
    code: 'ECONNREFUSED',
    command: { name: 'auth', args: [SECRET] },
    client: { password: SECRET },
  });
  const { text, lines } = logged((log) => log.error({ err: error }, 'failed'));
  expect(text).not.toContain(SECRET);
  expect(lines[0]).toMatchObject({
    level: 'error',
    msg: 'failed',
    err: { type: 'TypeError', message: 'cannot reach redis://host', code: 'ECONNREFUSED' },
  });
  expect(Object.keys(lines[0]?.err as object).sort()).toEqual(['code', 'message', 'stack', 'type']);
});

test('what was thrown and is no error is logged as text', () => {
  const { lines } = logged((log) => log.error({ err: `redis://:${SECRET}@host` }, 'failed'));
  expect(lines[0]).toMatchObject({ err: 'redis://host' });
});

test('a signed URL is logged without its signature', () => {
  const { text, lines } = logged((log) => log.info({ url: `https://host/a.jpg?sig=${SECRET}` }, 'image crawled'));
  expect(text).not.toContain(SECRET);
  expect(lines[0]).toMatchObject({ url: 'https://host/a.jpg?…' });
});

test('lines are JSON with level and time, from the chosen level on', () => {
  const { lines } = logged((log) => {
    log.debug('hidden');
    log.info({ n: 1 }, 'shown');
    log.warn('shown too');
  }, 'info');
  expect(lines.map(({ level, msg }) => [level, msg])).toEqual([
    ['info', 'shown'],
    ['warn', 'shown too'],
  ]);
  expect(new Date(String(lines[0]?.time)).toISOString()).toBe(lines[0]?.time);
  expect(lines[0]).not.toHaveProperty('pid');
});
