/** PostgreSQL for whatever is no look-up of an entry: statements with the guard's deadline and its errors. */
import type { Pool, QueryConfig, QueryResult, QueryResultRow } from 'pg';
import type { TierOperation } from '../events.js';
import type { Guard } from './guard.js';

/** @throws {TierUnavailableError} when PostgreSQL is away */
export type Query = <Row extends QueryResultRow>(
  statement: QueryConfig & { rowMode?: 'array' },
  operation?: TierOperation,
) => Promise<QueryResult<Row>>;

export function queryThrough(pool: Pool, guard: Guard): Query {
  return (statement, operation = 'query') => guard.run(operation, () => pool.query(statement));
}
