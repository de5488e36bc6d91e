/**
 * The environment becomes one typed, complete configuration here and nowhere else: every variable, its meaning, its
 * default and its check. All problems are reported at once. `.env.example` lists the same variables.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { type AddressRule, parseRules } from './address-rules.js';
import { ConfigError } from './errors.js';
import { LOG_LEVELS, type LogLevel } from './logger.js';
import { packageVersion } from './package.js';

export type Env = Readonly<Record<string, string | undefined>>;

export interface ApiToken {
  readonly token: string;
  /** The tenant it opens, or `*` for all. */
  readonly tenant: string;
}

export interface Config {
  /** The variables that this was read from, for a process of its own that is to be configured alike. */
  readonly env: Env;
  /** The cache's Redis; `null` turns the tier off. */
  readonly redisUrl: string | null;
  readonly queue: { readonly backend: 'redis'; readonly url: string } | { readonly backend: 'postgres' };
  readonly postgres: PostgresConfig;
  /** Where images' bytes are kept. */
  readonly storage: { readonly kind: 'file'; readonly folder: string } | S3Settings;
  readonly http: {
    readonly host: string;
    readonly port: number;
    readonly tokens: readonly ApiToken[];
    /** Images that one token may have enqueued in a minute; `null` is any number. */
    readonly imagesPerMinute: number | null;
  };
  /** Port of `/metrics`, `/healthz` and `/readyz` where only workers run. */
  readonly metricsPort: number;
  readonly crawl: { readonly concurrency: number };
  readonly embedding: { readonly threads: number };
  readonly fetch: {
    readonly maxBytes: number;
    readonly timeoutMs: number;
    readonly allow: readonly AddressRule[];
    readonly deny: readonly AddressRule[];
    /** Our product token, which robots.txt names; `null` passes over such rules. */
    readonly crawler: string | null;
    readonly userAgent: string;
    /** Requests to one host at once, over all processes. */
    readonly hostConcurrency: number;
    /** Milliseconds from one request to a host to the next. */
    readonly hostGapMs: number;
    /** A known URL is asked again after this many milliseconds; `null` never. */
    readonly revalidateAfterMs: number | null;
  };
  readonly images: { readonly maxPixels: number };
  /** Lifetimes in Redis, in seconds. */
  readonly ttl: {
    readonly embedding: number;
    readonly search: number;
    readonly phash: number;
    readonly faceDetection: number;
    readonly crawl: number;
  };
  /** Rows older than this many days are deleted once a day; `null` keeps them for ever. */
  readonly cleanupDays: number | null;
  readonly logLevel: LogLevel;
  readonly shutdownTimeoutMs: number;
}

export interface S3Settings {
  readonly kind: 's3';
  readonly bucket: string;
  /** First part of every key; empty, or ends in a slash. */
  readonly prefix: string;
  readonly region: string;
  /** Of a store that is not Amazon's; `undefined` for Amazon's own of the region. */
  readonly endpoint: string | undefined;
  /** The bucket in the path, and not in the host name: what most stores but Amazon's want. */
  readonly pathStyle: boolean;
}

/** Given to `pg` field by field, so that no character of a password can break or leak a URL. */
export type PostgresConfig =
  | { readonly connectionString: string }
  | {
      readonly host: string;
      readonly port: number;
      readonly database: string;
      readonly user: string;
      readonly password: string;
    };

interface Variable<T> {
  readonly expects: string;
  readonly fallback: T;
  /** The value, or `undefined` when the text is not what `expects` says. */
  readonly parse: (text: string) => T | undefined;
  /** Whether the value must not be shown, always or where it looks like it. */
  readonly secret?: boolean | ((text: string) => boolean);
}

const text = (fallback: string, secret = false): Variable<string> => ({
  expects: 'text',
  fallback,
  parse: (value) => value,
  secret,
});

const integer = (fallback: number, min: number, max = Number.MAX_SAFE_INTEGER): Variable<number> => ({
  expects: max === Number.MAX_SAFE_INTEGER ? `a whole number from ${min} on` : `a whole number from ${min} to ${max}`,
  fallback,
  parse: (value) => {
    const number = Number(value);
    return /^\d+$/.test(value) && number >= min && number <= max ? number : undefined;
  },
});

const choice = <T extends string>(fallback: T, choices: readonly T[]): Variable<T> => ({
  expects: `one of ${choices.join(', ')}`,
  fallback,
  parse: (value) => choices.find((one) => one === value),
});

const url = (protocols: readonly string[], also: readonly string[] = []): Variable<string> => ({
  expects: `${[...protocols.map((protocol) => `${protocol}//…`), ...also].join(' or ')}, with @ / ? # of a password as %40 %2F %3F %23`,
  fallback: '',
  parse: (value) => {
    if (also.includes(value)) return value;
    // A password with such a character moves the host's place: its tail would be looked up, and logged, as a name.
    if (value.split('@').length > 2 || value.includes('#') || /^[^/]*\/\/[^@]*[/?][^@]*@/.test(value)) return undefined;
    return URL.canParse(value) && protocols.includes(new URL(value).protocol) ? value : undefined;
  },
  secret: true,
});

const tokens: Variable<readonly ApiToken[]> = {
  expects: 'token=tenant or token=* pairs, comma-separated, tokens in printable ASCII without blanks',
  fallback: [],
  secret: true,
  parse: (value) => {
    const pairs = value.split(',').map((pair) => pair.trim());
    // A bare word would be cut into all but its last letter and a tenant of that name.
    if (!pairs.every((pair) => pair.includes('='))) return undefined;
    const parsed = pairs.map((pair) => {
      const cut = pair.lastIndexOf('=');
      return { token: pair.slice(0, cut), tenant: pair.slice(cut + 1) };
    });
    // What an Authorization header cannot carry in one piece would open nothing.
    const good = ({ token, tenant }: ApiToken) =>
      /^[\x21-\x7e]+$/.test(token) && /^(\*|[A-Za-z0-9._-]{1,100})$/.test(tenant);
    return parsed.every(good) ? parsed : undefined;
  },
};

const storage: Variable<Config['storage']> = {
  expects: 'file:<path of a folder> or s3://<bucket>[/prefix][?endpoint=…&region=…&pathStyle=true|false]',
  fallback: { kind: 'file', folder: resolve('data/objects') },
  // Whoever writes keys into it should not find them in a log.
  secret: (value) => /[@?]/.test(value),
  parse: (value) => {
    const path = /^file:(?:\/\/)?(.+)$/.exec(value)?.[1];
    return path === undefined ? s3Settings(value) : { kind: 'file', folder: resolve(path) };
  },
};

function s3Settings(value: string): S3Settings | undefined {
  if (!value.startsWith('s3://') || !URL.canParse(value)) return undefined;
  const { hostname: bucket, pathname, searchParams, username, password } = new URL(value);
  const { endpoint, region = 'us-east-1', pathStyle, ...unknown } = Object.fromEntries(searchParams);
  const good =
    /^[a-z0-9][a-z0-9.-]{1,62}$/.test(bucket) &&
    username + password === '' &&
    Object.keys(unknown).length === 0 &&
    (endpoint === undefined || /^https?:$/.test(URL.canParse(endpoint) ? new URL(endpoint).protocol : '')) &&
    (pathStyle === undefined || pathStyle === 'true' || pathStyle === 'false');
  if (!good) return undefined;
  const folder = pathname.replace(/^\/+|\/+$/g, '');
  const prefix = folder === '' ? '' : `${folder}/`;
  // Amazon's own host names hold the bucket; those of others seldom do.
  return { kind: 's3', bucket, prefix, region, endpoint, pathStyle: pathStyle ? pathStyle === 'true' : !!endpoint };
}

const contact: Variable<string> = {
  expects: 'a URL or mail address in printable ASCII, as HTTP headers carry it',
  fallback: '',
  parse: (value) => (/^[\x20-\x7e]+$/.test(value) ? value : undefined),
};

const addressRules: Variable<readonly AddressRule[]> = {
  expects: 'host names or CIDRs, comma-separated, each with an optional :port or :*',
  fallback: [],
  parse: (value) => {
    try {
      return parseRules(value);
    } catch {
      return undefined;
    }
  },
};

/** Stands behind the variable whose value it holds, as Docker and Kubernetes hand out secrets. */
const file: Variable<string> = {
  expects: 'the path of a file that can be read and is not empty',
  fallback: '',
  parse: contentOf,
};

/** Without the line break that most editors leave at the end: a password may well end in a blank. */
function contentOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').replace(/[\r\n]+$/, '') || undefined;
  } catch {
    return undefined;
  }
}

/** In the order of `.env.example`. */
const VARIABLES = {
  REDIS_URL: url(['redis:', 'rediss:'], ['none']),
  REDIS_URL_FILE: file,
  QUEUE_REDIS_URL: url(['redis:', 'rediss:']),
  QUEUE_REDIS_URL_FILE: file,
  QUEUE_BACKEND: choice<'redis' | 'postgres' | ''>('', ['redis', 'postgres']),
  DATABASE_URL: url(['postgres:', 'postgresql:']),
  DATABASE_URL_FILE: file,
  POSTGRES_HOST: text('localhost'),
  POSTGRES_PORT: integer(5432, 1, 65535),
  POSTGRES_DB: text('mordeaux'),
  POSTGRES_USER: text('mordeaux'),
  POSTGRES_PASSWORD: text('', true),
  POSTGRES_PASSWORD_FILE: file,
  STORAGE_URL: storage,
  HOST: text('127.0.0.1'),
  PORT: integer(3000, 0, 65535),
  METRICS_PORT: integer(3001, 0, 65535),
  API_TOKENS: tokens,
  API_TOKENS_FILE: file,
  API_IMAGES_PER_MINUTE: { ...integer(0, 1, 1_000_000), fallback: null } as Variable<number | null>,
  CRAWL_CONCURRENCY: integer(16, 1, 1000),
  EMBEDDING_THREADS: integer(availableParallelism(), 1, 256),
  CACHE_TTL_EMBEDDING: integer(3600, 1),
  CACHE_TTL_SEARCH: integer(300, 1),
  CACHE_TTL_PHASH: integer(7200, 1),
  CACHE_TTL_FACE_DETECTION: integer(3600, 1),
  CACHE_TTL_CRAWL: integer(86_400, 1),
  CLEANUP_DAYS: { ...integer(0, 1), fallback: null } as Variable<number | null>,
  FETCH_MAX_BYTES: integer(20 * 1024 * 1024, 1, 1024 ** 3),
  FETCH_TIMEOUT_MS: integer(30_000, 1, 3_600_000),
  FETCH_HOST_CONCURRENCY: integer(4, 1, 1_000),
  FETCH_HOST_GAP_MS: integer(250, 0, 3_600_000),
  FETCH_ROBOTS: choice<'honour' | 'ignore'>('honour', ['honour', 'ignore']),
  CRAWL_REVALIDATE_AFTER: { ...integer(0, 1), fallback: null } as Variable<number | null>,
  FETCH_ALLOW: addressRules,
  FETCH_DENY: addressRules,
  USER_AGENT_CONTACT: contact,
  IMAGE_MAX_PIXELS: integer(100_000_000, 1),
  LOG_LEVEL: choice<LogLevel>('info', LOG_LEVELS),
  SHUTDOWN_TIMEOUT_MS: integer(15_000, 0, 3_600_000),
} satisfies Record<string, Variable<unknown>>;

export const VARIABLE_NAMES = Object.keys(VARIABLES);

type Values = { [K in keyof typeof VARIABLES]: (typeof VARIABLES)[K]['fallback'] };

const SERVER_VARIABLES = [
  'REDIS_URL',
  'QUEUE_REDIS_URL',
  'DATABASE_URL',
  'POSTGRES_HOST',
  'POSTGRES_PORT',
  'POSTGRES_DB',
  'POSTGRES_USER',
  'POSTGRES_PASSWORD',
];

/** Whether no server is named at all, so that `start` brings its own. */
export function namesNoServer(env: Env): boolean {
  return SERVER_VARIABLES.every((name) => !env[name] && !env[`${name}_FILE`]);
}

/** The environment as it is. The only reader of `process.env`. */
export function readEnv(): Env {
  return process.env;
}

/** @throws {ConfigError} naming every bad variable, what was expected and, unless it is a secret, its value. */
export function toConfig(env: Env): Config {
  const problems: string[] = [];
  const values = readValues(env, problems);
  // Redis' own default address counts once any server is named; `none` is a decision, and an empty value is not.
  const redisUrl = values.REDIS_URL || 'redis://localhost:6379/0';
  const queueUrl = values.QUEUE_REDIS_URL || (redisUrl === 'none' ? '' : redisUrl);
  const backend = values.QUEUE_BACKEND || (queueUrl ? 'redis' : 'postgres');
  if (backend === 'redis' && !queueUrl) {
    problems.push(
      'QUEUE_BACKEND: expected postgres, or a QUEUE_REDIS_URL beside it, since REDIS_URL is none; got "redis"',
    );
  }
  if (!env.API_TOKENS && !env.API_TOKENS_FILE && !isLoopback(values.HOST)) {
    problems.push(`HOST: expected a loopback address while no API_TOKENS are set; got ${JSON.stringify(values.HOST)}`);
  }
  if (problems.length > 0) throw new ConfigError(problems);
  return {
    env: Object.fromEntries(VARIABLE_NAMES.flatMap((name) => (env[name] ? [[name, env[name]]] : []))),
    redisUrl: redisUrl === 'none' ? null : redisUrl,
    queue: backend === 'redis' ? { backend, url: queueUrl } : { backend },
    postgres: toPostgres(values),
    storage: values.STORAGE_URL,
    http: {
      host: values.HOST,
      port: values.PORT,
      tokens: values.API_TOKENS,
      imagesPerMinute: values.API_IMAGES_PER_MINUTE,
    },
    metricsPort: values.METRICS_PORT,
    crawl: { concurrency: values.CRAWL_CONCURRENCY },
    embedding: { threads: values.EMBEDDING_THREADS },
    fetch: {
      maxBytes: values.FETCH_MAX_BYTES,
      timeoutMs: values.FETCH_TIMEOUT_MS,
      allow: values.FETCH_ALLOW,
      deny: values.FETCH_DENY,
      crawler: values.FETCH_ROBOTS === 'honour' ? PRODUCT : null,
      userAgent: userAgent(values.USER_AGENT_CONTACT),
      hostConcurrency: values.FETCH_HOST_CONCURRENCY,
      hostGapMs: values.FETCH_HOST_GAP_MS,
      revalidateAfterMs: values.CRAWL_REVALIDATE_AFTER === null ? null : values.CRAWL_REVALIDATE_AFTER * 1_000,
    },
    images: { maxPixels: values.IMAGE_MAX_PIXELS },
    ttl: {
      embedding: values.CACHE_TTL_EMBEDDING,
      search: values.CACHE_TTL_SEARCH,
      phash: values.CACHE_TTL_PHASH,
      faceDetection: values.CACHE_TTL_FACE_DETECTION,
      crawl: values.CACHE_TTL_CRAWL,
    },
    cleanupDays: values.CLEANUP_DAYS,
    logLevel: values.LOG_LEVEL,
    shutdownTimeoutMs: values.SHUTDOWN_TIMEOUT_MS,
  };
}

function readValues(env: Env, problems: string[]): Values {
  const entries = Object.entries(VARIABLES).map(([name, variable]: [string, Variable<unknown>]) => {
    const path = `${name}_FILE` in VARIABLES && env[`${name}_FILE`];
    const given = env[name] || (path && contentOf(path));
    if (env[name] && path) problems.push(`${name}_FILE: expected either it or ${name}; got both`);
    if (!given) return [name, variable.fallback];
    const value = variable.parse(given);
    if (value === undefined) {
      const source = env[name] ? name : `${name}_FILE`;
      problems.push(`${source}: expected ${variable.expects}; got ${shown(variable, given)}`);
    }
    return [name, value ?? variable.fallback];
  });
  return Object.fromEntries(entries) as Values;
}

function shown({ secret = false }: Variable<unknown>, given: string): string {
  const hidden = typeof secret === 'function' ? secret(given) : secret;
  return hidden ? '[secret]' : JSON.stringify(given);
}

function toPostgres(values: Values): PostgresConfig {
  if (values.DATABASE_URL) return { connectionString: values.DATABASE_URL };
  return {
    host: values.POSTGRES_HOST,
    port: values.POSTGRES_PORT,
    database: values.POSTGRES_DB,
    user: values.POSTGRES_USER,
    password: values.POSTGRES_PASSWORD,
  };
}

/** How we are called in robots.txt. */
const PRODUCT = 'hybrid-cache-service';

function userAgent(contact: string): string {
  return `${PRODUCT}/${packageVersion()}${contact ? ` (+${contact})` : ''}`;
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host);
}
