/**
 * How many images a token may have enqueued in a minute, counted in PostgreSQL over all processes. A bucket that fills
 * up again all the time (the generic cell rate algorithm): a whole minute's images may come at once after a minute of
 * silence, and one more is free every minute's Nth part. One number a token is kept, the moment at which it is full.
 */
import type { FastifyRequest } from 'fastify';
import type { App } from '../app.js';
import type { Query } from '../cache/query.js';
import { TierUnavailableError } from '../errors.js';
import { sha256 } from '../kinds/identity.js';
import { within } from '../lifecycle.js';
import { bearer } from './access.js';
import { HttpProblem } from './problem.js';

const MINUTE_MS = 60_000;
/** Later than this it is not waited for: whoever posts is told within a second. */
const DEADLINE_MS = 500;

// Where the row is not written, the images do not fit yet: then the answer is how long that takes. Times are in
// milliseconds, by PostgreSQL's clock.
const TAKE = {
  name: 'take_image_quota',
  text: `with present as (select extract(epoch from clock_timestamp())::float8 * 1000 as ms),
    taken as (
      insert into queue_state.image_quotas as q (holder, full_at) select $1, ms + $2::float8 from present
      on conflict (holder) do update set full_at = greatest(q.full_at, (select ms from present)) + $2::float8
        where greatest(q.full_at, (select ms from present)) + $2::float8 <= (select ms from present) + ${MINUTE_MS}
      returning full_at
    )
    select case when exists (select from taken) then 0
      else greatest(1, coalesce((select full_at from queue_state.image_quotas where holder = $1), ms)
        + $2::float8 - ms - ${MINUTE_MS}) end as wait from present`,
};

export class ImageQuota {
  readonly #query: Query;
  readonly #perMinute: number | null;
  readonly #hasTokens: boolean;

  constructor({ connection, config }: App) {
    this.#query = connection.query;
    this.#perMinute = config.http.imagesPerMinute;
    this.#hasTokens = config.http.tokens.length > 0;
  }

  /** @throws {HttpProblem} 429 with the time to wait; 400 for more images than ever fit */
  async take(request: FastifyRequest, images: number): Promise<void> {
    const most = this.#perMinute;
    if (most === null || images === 0) return;
    if (images > most) {
      throw new HttpProblem(400, `images: at most ${most} a minute are taken, so no more in one request`, 'images');
    }
    const holder = sha256((this.#hasTokens && bearer(request)) || '');
    const waitMs = await this.#waitFor(holder, (images * MINUTE_MS) / most);
    if (waitMs === 0) return;
    const seconds = Math.ceil(waitMs / 1000);
    const detail = `at most ${most} images a minute are taken: try again in ${seconds} s`;
    throw new HttpProblem(429, detail, undefined, seconds);
  }

  /** Without PostgreSQL nobody counts, and nobody is turned away: the queue may well be up. */
  async #waitFor(holder: string, costMs: number): Promise<number> {
    const asked = this.#query<{ wait: number }>({ ...TAKE, values: [holder, costMs] }).then(
      ({ rows }) => rows[0]?.wait ?? 0,
      (error: unknown) => {
        if (error instanceof TierUnavailableError) return 0;
        throw error;
      },
    );
    return within(DEADLINE_MS, asked, 0);
  }
}
