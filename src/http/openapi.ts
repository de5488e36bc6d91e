/** The API as an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1.html), from its declarations. */
import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { packageVersion } from '../package.js';
import { type Operation, operations, SECURITY, serve } from './api.js';
import { TITLES } from './problem.js';
import { namedSchemas, problem } from './schemas.js';

type Json = Record<string, unknown>;

const DESCRIPTION = `Every call needs a token of API_TOKENS, as \`Authorization: Bearer …\`; health, metrics and this \
document are open. A token for one tenant finds nothing of another: 404. Where no token is set the server listens on \
loopback only, and none is needed. Errors are \`application/problem+json\` (RFC 9457). Every answer names its request in \
\`x-request-id\`, which is the caller’s own where one was sent.`;

/** Open: no tenant's data is in it. */
export function documentRoute(server: FastifyInstance): void {
  const document = openApiDocument();
  serve(server, operations.openapi, async () => document);
}

export function openApiDocument(): { openapi: string } & Json {
  const declared: readonly Operation[] = Object.values(operations);
  const used = new Set(declared.flatMap(problemsOf));
  return {
    openapi: '3.1.1',
    info: {
      title: 'hybrid-cache-service',
      version: packageVersion(),
      description: DESCRIPTION,
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: '/' }],
    paths: pathsOf(declared),
    components: {
      securitySchemes: {
        token: { type: 'http', scheme: 'bearer', description: 'A token of API_TOKENS.' },
        password: {
          type: 'http',
          scheme: 'basic',
          description: 'Any name, and a token as the password: for browsers. The dashboard needs one for all tenants.',
        },
      },
      schemas: componentSchemas(),
      responses: {
        Problem: problemResponse('Any other error.'),
        ...Object.fromEntries([...used].sort().map((status) => [`Problem${status}`, problemOf(status)])),
      },
      headers: {
        RequestId: { description: 'Names the request; the log does too.', schema: { type: 'string' } },
        ETag: { description: 'Names these bytes, for `If-None-Match`.', schema: { type: 'string' } },
        RetryAfter: { description: 'Seconds to wait.', schema: { type: 'integer' } },
        Challenge: { description: 'What to authenticate by.', schema: { type: 'string' } },
      },
    },
  };
}

function pathsOf(declared: readonly Operation[]): Json {
  const paths: Record<string, Json> = {};
  for (const operation of declared) {
    paths[operation.path] = { ...paths[operation.path], [operation.method.toLowerCase()]: operationObject(operation) };
  }
  return paths;
}

function operationObject(operation: Operation): Json {
  const { id, summary, description, access, params, query, body, answer, also, tagged } = operation;
  const told = headers('RequestId', ...(tagged ? ['ETag'] : []));
  const success = (about: string) => ({ description: about, headers: told, content: contentOf(answer) });
  const parameters = [...parametersOf('path', params), ...parametersOf('query', query)];
  return {
    operationId: id,
    summary,
    ...(description ? { description } : {}),
    security: SECURITY[access].map((scheme) => ({ [scheme]: [] })),
    ...(parameters.length > 0 ? { parameters } : {}),
    ...(body ? { requestBody: { required: true, content: { 'application/json': { schema: refTo(body) } } } } : {}),
    responses: {
      [answer.status]: success(answer.description),
      ...(also ? { [also.status]: success(also.description) } : {}),
      ...(tagged ? { 304: { description: 'What `If-None-Match` names is still the answer.', headers: told } } : {}),
      ...Object.fromEntries(problemsOf(operation).map((status) => [status, response(`Problem${status}`)])),
      default: response('Problem'),
    },
  };
}

/** Without a token, under a name that is not ours, from a page of another origin; a body that is bad, large or no JSON. */
function problemsOf({ method, access, body, problems = [] }: Operation): number[] {
  return [
    ...(body ? [400, 413, 415] : []),
    ...(access === 'open' ? [] : [401, 421]),
    ...(method === 'GET' ? [] : [403]),
    ...problems,
  ].sort();
}

function problemOf(status: number): Json {
  if (status === 401) return problemResponse(TITLES[status], 'Challenge');
  return problemResponse(TITLES[status], ...(status === 429 || status === 503 ? ['RetryAfter'] : []));
}

function problemResponse(description = 'Error', ...also: string[]): Json {
  return {
    description,
    headers: headers('RequestId', ...also),
    content: { 'application/problem+json': { schema: refTo(problem) } },
  };
}

const HEADER_NAMES: Readonly<Record<string, string>> = {
  RequestId: 'x-request-id',
  ETag: 'etag',
  RetryAfter: 'retry-after',
  Challenge: 'www-authenticate',
};

function headers(...names: string[]): Json {
  return Object.fromEntries(
    names.map((name) => [HEADER_NAMES[name], { $ref: `#/components/headers/${name}` }] as const),
  );
}

const response = (name: string) => ({ $ref: `#/components/responses/${name}` });

function contentOf({ schema, type }: Operation['answer']): Json {
  // Bytes have no schema (3.1, "Considerations for File Uploads"), and text none that says anything.
  return type ? { [type]: {} } : { 'application/json': { schema: refTo(schema) } };
}

function parametersOf(place: 'path' | 'query', schema: z.ZodObject | undefined): Json[] {
  if (!schema) return [];
  const { properties = {}, required = [] } = toJson(schema) as {
    properties?: Record<string, Json>;
    required?: string[];
  };
  return Object.entries(properties).map(([name, { description, ...rest }]) => ({
    name,
    in: place,
    required: required.includes(name),
    ...(description ? { description } : {}),
    schema: rest,
  }));
}

/** By its name, where it has one. */
function refTo(schema: z.ZodType): Json {
  const id = namedSchemas.get(schema)?.id;
  return id ? { $ref: `#/components/schemas/${id}` } : toJson(schema);
}

// `input` on both ways: what a later version adds to an answer is no break of this one.
const OPTIONS = { io: 'input' } as const;

function toJson(schema: z.ZodType): Json {
  return bare(z.toJSONSchema(schema, OPTIONS));
}

function componentSchemas(): Json {
  const { schemas } = z.toJSONSchema(namedSchemas, { ...OPTIONS, uri: (id) => `#/components/schemas/${id}` });
  return Object.fromEntries(Object.entries(schemas).map(([id, schema]) => [id, bare(schema)]));
}

/** The document says once for all which dialect its schemas are written in, and a component is known by its place. */
function bare({ $schema, $id, ...schema }: Json): Json {
  return schema;
}
