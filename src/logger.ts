/** The one logger: JSON lines, constant messages plus fields, secrets removed before anything is written. */
import { type DestinationStream, type Logger, pino } from 'pino';
import { reasonOf } from './errors.js';

export type { Logger } from 'pino';

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Fields that may hold a secret wherever they appear, at the top or one level down. */
const SECRET_FIELDS = [
  'password',
  'token',
  'tokens',
  'authorization',
  'cookie',
  'connectionString',
  'redisUrl',
  'secret',
];

/**
 * Takes the credentials out of every URL in a text: `scheme://user:password@host` becomes `scheme://host`, and the
 * query of a URL, which may be a signature or name a password, is cut.
 */
export function withoutSecrets(text: string): string {
  return text
    .replace(/\b([a-z][a-z0-9+.-]*:\/\/)[^\s/?#]*@/gi, '$1')
    .replace(/\b([a-z][a-z0-9+.-]*:\/\/[^\s?#"']+)\?[^\s"']*/gi, '$1?…');
}

export function createLogger(level: LogLevel = 'info', destination?: DestinationStream): Logger {
  const options = {
    level,
    base: null,
    redact: { paths: SECRET_FIELDS.flatMap((field) => [field, `*.${field}`]), censor: '[secret]' },
    formatters: { level: (label: string) => ({ level: label }) },
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    serializers: { err: serializeError, url: (url: unknown) => withoutSecrets(String(url)) },
  };
  return destination ? pino(options, destination) : pino(options);
}

/** What an error was caused by, in words. */
export function causeOf({ cause }: Error): { cause?: string } {
  return cause === undefined ? {} : { cause: withoutSecrets(reasonOf(cause)) };
}

function serializeError(error: unknown): unknown {
  if (!(error instanceof Error)) return withoutSecrets(String(error));
  const { code } = error as { code?: unknown };
  return {
    type: error.name,
    message: withoutSecrets(error.message),
    ...(typeof code === 'string' ? { code } : {}),
    stack: withoutSecrets(error.stack ?? ''),
    ...causeOf(error),
  };
}
