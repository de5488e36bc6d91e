/** How long a query may take: by the time for which this process runs. */
import { Pool, type QueryResult } from 'pg';
import { beforeAll, expect, onTestFinished, test } from 'vitest';
import { SocketsFirstClient } from '../../src/db/client.js';
import { standStill } from '../support/stand-still.js';
import { createWorld, type World } from '../support/world.js';

const TIMEOUT_MS = 300;
const LATE = 'Query read timeout';

let world: World;

beforeAll(async () => {
  world = await createWorld();
  return () => world[Symbol.asyncDispose]();
});

async function connected(): Promise<SocketsFirstClient> {
  const client = new SocketsFirstClient({ connectionString: world.databaseUrl, query_timeout: TIMEOUT_MS });
  client.on('error', () => undefined);
  await client.connect();
  onTestFinished(() => client.end());
  return client;
}

test.each<[string, (client: SocketsFirstClient) => Promise<{ rows: unknown[] }>]>([
  ['a promise', (client) => client.query('select 1 as one')],
  ['values', (client) => client.query('select $1::int as one', [1])],
  [
    'a callback',
    (client) =>
      new Promise((resolve, reject) => {
        client.query('select 1 as one', [], (error: Error | null, result: QueryResult) =>
          error ? reject(error) : resolve(result),
        );
      }),
  ],
])('an answer that came while this process stood still counts (with %s)', async (_, ask) => {
  const client = await connected();
  const asked = ask(client);
  standStill(3 * TIMEOUT_MS);
  expect((await asked).rows).toEqual([{ one: 1 }]);
});

test('a query that takes longer is given up with its connection', async () => {
  const client = await connected();
  const ended = new Promise((resolve) => client.once('end', resolve));
  await expect(client.query('select pg_sleep(30)')).rejects.toThrow(LATE);
  await ended;
  await expect(client.query('select 1')).rejects.toThrow('not queryable');
});

test('a query has as long as it says itself', async () => {
  const client = await connected();
  await client.query({ text: `select pg_sleep(${(2 * TIMEOUT_MS) / 1_000})`, query_timeout: 60_000 });
  await expect(client.query({ text: 'select pg_sleep(30)', query_timeout: 50 })).rejects.toThrow(LATE);
});

test('a pool goes on with another connection', async () => {
  const options = {
    connectionString: world.databaseUrl,
    query_timeout: TIMEOUT_MS,
    max: 1,
    Client: SocketsFirstClient,
  };
  const pool = new Pool(options);
  onTestFinished(() => pool.end());
  await expect(pool.query('select pg_sleep(30)')).rejects.toThrow(LATE);
  expect((await pool.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
});
