ALTER TABLE "queue_state"."hosts" ADD COLUMN "began_at" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
-- One step of a host's schedule, where the queue is on PostgreSQL: `src/queues/host-schedule.ts` says what the steps mean,
-- and `state-redis.ts` is the same for Redis. The host's row is locked, so that steps come one after another.
--
-- New: a gap counts from the last beginning, also where it was not known then (whoever reads a host's rules first has asked
-- for them under another one), and for who was booked before that.
CREATE OR REPLACE FUNCTION queue_state.visit(
  step text, visited text, visitor text, tenant text, most integer, gap_ms bigint, lease_ms bigint, cool_ms bigint
) RETURNS TABLE (job text, delay_ms bigint, booked boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  now_ms bigint;
  next_ms bigint;
  cooled_ms bigint;
  reached bigint;
  permit queue_state.host_permits;
  waiter queue_state.host_waiting;
  began_ms bigint;
  soonest bigint;
  ahead bigint;
  in_line boolean;
  begins boolean;
BEGIN
  INSERT INTO queue_state.hosts AS h (host) VALUES (visited) ON CONFLICT (host) DO UPDATE SET host = h.host
    RETURNING next_at, began_at, cooled_until, place INTO next_ms, began_ms, cooled_ms, reached;
  now_ms := extract(epoch FROM clock_timestamp()) * 1000;
  WITH dead AS (
    DELETE FROM queue_state.host_permits AS p WHERE p.host = visited AND p.expires_at <= now_ms RETURNING p.job, p.begun
  )
  INSERT INTO queue_state.host_waiting (host, job, tenant_id, place)
    SELECT visited, dead.job, '', reached FROM dead WHERE NOT dead.begun;

  began_ms := least(began_ms, now_ms);
  soonest := began_ms + gap_ms;
  next_ms := greatest(next_ms, soonest);

  IF step = 'leave' THEN
    DELETE FROM queue_state.host_permits AS p WHERE p.host = visited AND p.job = visitor RETURNING * INTO permit;
    IF NOT permit.begun THEN
      -- Nobody begins then: the next one may.
      next_ms := greatest(least(next_ms, permit.starts_at), soonest);
    ELSIF permit.begun AND cool_ms = 0 AND now_ms > cooled_ms THEN
      cooled_ms := 0;
    END IF;
    DELETE FROM queue_state.host_waiting AS w WHERE w.host = visited AND w.job = visitor;
    IF cool_ms > 0 THEN
      cooled_ms := greatest(cooled_ms, now_ms + cool_ms);
      next_ms := greatest(next_ms, cooled_ms);
      -- What was booked and has not begun gets a later time, before all others.
      SELECT least(min(place), 0) INTO ahead FROM queue_state.host_waiting WHERE host = visited;
      WITH put_off AS (
        DELETE FROM queue_state.host_permits AS p WHERE p.host = visited AND NOT p.begun RETURNING p.job, p.starts_at
      )
      INSERT INTO queue_state.host_waiting (host, job, tenant_id, place)
        SELECT visited, put_off.job, '', ahead - row_number() OVER (ORDER BY starts_at DESC) FROM put_off;
    END IF;
  ELSIF step IN ('enter', 'again', 'also') THEN
    SELECT * INTO permit FROM queue_state.host_permits AS p WHERE p.host = visited AND p.job = visitor;
    IF FOUND AND step <> 'again' AND now_ms < cooled_ms AND permit.starts_at < cooled_ms THEN
      DELETE FROM queue_state.host_permits AS p WHERE p.host = visited AND p.job = visitor;
      permit := NULL;
    END IF;
    IF permit.job IS NULL THEN
      INSERT INTO queue_state.host_waiting (host, job, tenant_id, place)
        SELECT visited, visitor, tenant, greatest(max(place), reached) + 1
          FROM queue_state.host_waiting WHERE host = visited AND tenant_id = tenant
        ON CONFLICT (host, job) DO NOTHING;
    ELSE
      IF step = 'again' OR (step = 'enter' AND permit.begun) THEN
        permit.starts_at := greatest(now_ms, next_ms);
      ELSIF NOT permit.begun THEN
        -- Somebody may have begun beside who was booked.
        permit.starts_at := greatest(permit.starts_at, soonest);
      END IF;
      permit.begun := permit.starts_at <= now_ms;
      IF permit.begun THEN
        began_ms := now_ms;
      END IF;
      next_ms := greatest(next_ms, greatest(permit.starts_at, now_ms) + gap_ms);
      UPDATE queue_state.host_permits AS p
        SET starts_at = permit.starts_at, begun = permit.begun,
          expires_at = greatest(permit.starts_at, now_ms) + lease_ms
        WHERE p.host = visited AND p.job = visitor;
    END IF;
  END IF;

  IF step = 'tend' THEN
    RETURN QUERY SELECT p.job, greatest(p.starts_at - now_ms, 0), true
      FROM queue_state.host_permits AS p WHERE p.host = visited AND NOT p.begun;
  END IF;
  IF cooled_ms > 0 THEN
    most := 1;
  END IF;
  -- Only the next beginning is booked: the one behind it is a gap after it really was, however late that may be.
  WHILE (
    SELECT count(*) < most AND (gap_ms = 0 OR coalesce(bool_and(p.begun), true))
    FROM queue_state.host_permits AS p WHERE p.host = visited
  ) LOOP
    DELETE FROM queue_state.host_waiting AS w
      WHERE w.host = visited AND w.job = (
        SELECT f.job FROM queue_state.host_waiting AS f WHERE f.host = visited ORDER BY f.place, f.arrival LIMIT 1)
      RETURNING * INTO waiter;
    EXIT WHEN NOT FOUND;
    reached := greatest(reached, waiter.place);
    next_ms := greatest(now_ms, next_ms);
    begins := waiter.job = visitor AND step <> 'look' AND next_ms <= now_ms;
    INSERT INTO queue_state.host_permits (host, job, starts_at, begun, expires_at)
      VALUES (visited, waiter.job, next_ms, begins, next_ms + lease_ms);
    IF begins THEN
      began_ms := now_ms;
    END IF;
    IF waiter.job <> visitor THEN
      RETURN QUERY SELECT waiter.job, next_ms - now_ms, true;
    END IF;
    next_ms := next_ms + gap_ms;
  END LOOP;

  IF step NOT IN ('leave', 'tend') THEN
    SELECT * INTO permit FROM queue_state.host_permits AS p WHERE p.host = visited AND p.job = visitor;
    IF FOUND THEN
      RETURN QUERY SELECT visitor, greatest(permit.starts_at - now_ms, 0), true;
    ELSE
      -- By then every permit ahead has come to its end, even where all their holders died.
      SELECT count(*) INTO ahead FROM queue_state.host_waiting AS w
        WHERE w.host = visited AND (w.place, w.arrival) <= (
          SELECT own.place, own.arrival FROM queue_state.host_waiting AS own
            WHERE own.host = visited AND own.job = visitor);
      RETURN QUERY SELECT visitor,
        greatest(next_ms - now_ms, 0) + (ahead * gap_ms) + ceil(ahead::numeric / most)::bigint * lease_ms, false;
    END IF;
  END IF;
  in_line := EXISTS (SELECT FROM queue_state.host_waiting AS w WHERE w.host = visited);
  UPDATE queue_state.hosts SET next_at = next_ms, began_at = began_ms, cooled_until = cooled_ms,
      place = CASE WHEN in_line THEN reached ELSE 0 END,
      due_at = (
        SELECT greatest(
          coalesce(
            min(p.starts_at) FILTER (WHERE NOT p.begun),
            CASE WHEN in_line THEN coalesce(min(p.expires_at), now_ms) END,
            greatest(max(p.expires_at), queue_state.host_meant_until(next_ms, cooled_ms))),
          CASE WHEN step = 'tend' THEN now_ms END)
        FROM queue_state.host_permits AS p WHERE p.host = visited)
    WHERE host = visited;
END $$;
