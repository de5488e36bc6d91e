CREATE TABLE "queue_state"."numberings" (
	"queue" text PRIMARY KEY NOT NULL,
	"numbering" bigint NOT NULL,
	"base" bigint DEFAULT 0 NOT NULL,
	"former" bigint DEFAULT 0 NOT NULL,
	"since" bigint,
	"owner" text,
	"leased_until" bigint
);
--> statement-breakpoint
ALTER TABLE "queue_state"."tenant_turns" ADD COLUMN "taken_at" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "queue_state"."tenant_turns" ADD COLUMN "newest" text;
--> statement-breakpoint
-- Whose job runs next, where the queue is on PostgreSQL: `src/queues/turns.ts` says what a turn is, and
-- `turns-redis.ts` is the same for Redis. How far turns are given out may be forgotten in a crash, and costs no WAL flush:
-- the present turn is read off the jobs. What their numbers mean may not.
ALTER TABLE "queue_state"."tenant_turns" SET UNLOGGED;
--> statement-breakpoint
DROP FUNCTION queue_state.take_turns(text, text, bigint, bigint);
--> statement-breakpoint
-- The numbering that a queue's priorities are in; read off its first job where nothing is kept of it. Like those below, it
-- finds BullMQ's tables `job` and `dedup` by the search path, which `take_turns` and `renumber` set.
CREATE FUNCTION queue_state.numbering_of(queue_name text) RETURNS queue_state.numberings
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
  found queue_state.numberings;
BEGIN
  SELECT * INTO found FROM queue_state.numberings WHERE queue = queue_name;
  IF found.queue IS NULL THEN
    INSERT INTO queue_state.numberings (queue, numbering)
      SELECT queue_name, coalesce((
        SELECT priority % 2 FROM job WHERE job.queue = queue_name AND state = 'waiting' AND priority > 1
        ORDER BY priority, seq LIMIT 1), 0)
      ON CONFLICT DO NOTHING;
    SELECT * INTO found FROM queue_state.numberings WHERE queue = queue_name;
  END IF;
  RETURN found;
END $$;
--> statement-breakpoint
-- The latest turn that a job of the queue has come to, never earlier than before; kept as that of the tenant `:present`.
CREATE FUNCTION queue_state.present_turn(line queue_state.numberings) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan TO off AS $$
DECLARE
  present bigint;
  reached bigint;
BEGIN
  SELECT last_turn INTO present FROM queue_state.tenant_turns WHERE queue = line.queue AND tenant_id = ':present';
  SELECT max(CASE WHEN priority % 2 = line.numbering % 2 THEN line.base ELSE line.former END + priority / 2)
    INTO reached
    FROM (
      (SELECT priority FROM job WHERE queue = line.queue AND state = 'waiting' AND priority > 1
        ORDER BY priority, seq LIMIT 1)
      UNION ALL SELECT priority FROM job WHERE queue = line.queue AND state = 'active'
      UNION ALL (SELECT priority FROM job WHERE queue = line.queue AND state = 'completed'
        ORDER BY finished_at_ms DESC LIMIT 1)
    ) AS seen WHERE priority > 1;
  reached := greatest(reached, line.base + 1);
  IF present IS NULL OR reached > present THEN
    INSERT INTO queue_state.tenant_turns AS t (queue, tenant_id, last_turn) VALUES (line.queue, ':present', reached)
      ON CONFLICT (queue, tenant_id) DO UPDATE SET last_turn = greatest(t.last_turn, reached)
      RETURNING last_turn INTO present;
  END IF;
  RETURN present;
END $$;
--> statement-breakpoint
-- Turns for jobs on their way into a queue of the BullMQ schema `bull`: job i is of tenants[i], and its twins' identity is
-- identities[i]. Answers with their priorities, and whether jobs wait to be renumbered.
CREATE FUNCTION queue_state.take_turns(
  bull text, queue_name text, most bigint, in_flight_ms bigint, tenants text[], identities text[]
) RETURNS TABLE (priorities integer[], outdated boolean) LANGUAGE plpgsql SET enable_seqscan TO off AS $$
#variable_conflict use_column
DECLARE
  now_ms CONSTANT bigint := extract(epoch FROM clock_timestamp()) * 1000;
  line queue_state.numberings;
  present bigint;
BEGIN
  PERFORM set_config('search_path', quote_ident(bull), true);
  line := queue_state.numbering_of(queue_name);
  present := queue_state.present_turn(line);
  IF line.since IS NULL AND present - line.base > most / 2 THEN
    -- The first number is for those whose turn has come before, and did not end with it.
    UPDATE queue_state.numberings AS n
      SET former = n.base, base = present - 2, numbering = n.numbering + 1, since = now_ms
      WHERE n.queue = queue_name AND n.numbering = line.numbering;
    line := queue_state.numbering_of(queue_name);
  END IF;

  INSERT INTO queue_state.tenant_turns (queue, tenant_id, last_turn)
    SELECT DISTINCT queue_name, tenant, 0 FROM unnest(tenants) AS tenant ORDER BY tenant
    ON CONFLICT (queue, tenant_id) DO NOTHING;
  PERFORM 1 FROM queue_state.tenant_turns AS t WHERE t.queue = queue_name AND t.tenant_id = ANY (tenants)
    ORDER BY t.tenant_id FOR UPDATE;

  WITH asked AS (
    SELECT a.tenant, a.identity, a.place,
      twin.job_id IS NULL AND row_number() OVER (PARTITION BY a.identity COLLATE "C" ORDER BY a.place) = 1 AS is_new
    FROM unnest(tenants, identities) WITH ORDINALITY AS a (tenant, identity, place)
    LEFT JOIN dedup AS twin ON twin.queue = queue_name AND twin.dedup_id = a.identity
  ), counted AS (
    SELECT tenant, place, count(*) FILTER (WHERE is_new) OVER (
      PARTITION BY tenant COLLATE "C" ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier
    FROM asked
  ), wanted AS (
    SELECT tenant, count(*) AS jobs, (array_agg(identity ORDER BY place DESC))[1] AS newest
    FROM asked WHERE is_new GROUP BY tenant
  ), standing AS (
    SELECT t.tenant_id AS tenant, greatest(present, 1 + CASE
      WHEN job.state IN ('waiting', 'delayed') THEN t.last_turn
      WHEN live.job_id IS NULL AND t.taken_at > now_ms - in_flight_ms THEN t.last_turn
      ELSE 0 END) AS first
    FROM queue_state.tenant_turns AS t
    LEFT JOIN dedup AS live ON live.queue = queue_name AND live.dedup_id = t.newest
    LEFT JOIN job ON job.queue = queue_name AND job.id = live.job_id
    WHERE t.queue = queue_name AND t.tenant_id = ANY (tenants)
  ), taken AS (
    UPDATE queue_state.tenant_turns AS t
    SET last_turn = least(first + jobs - 1, line.base + most), taken_at = now_ms, newest = wanted.newest
    FROM standing JOIN wanted USING (tenant)
    WHERE t.queue = queue_name AND t.tenant_id = standing.tenant
  )
  SELECT array_agg((2 * least(first + earlier - line.base, most) + line.numbering % 2)::integer ORDER BY place)
    INTO priorities FROM counted JOIN standing USING (tenant);
  outdated := line.since IS NOT NULL;
  RETURN NEXT;
END $$;
--> statement-breakpoint
-- Gives one page of jobs their numbers in the present numbering, lowest first; those that a worker is taking right now it
-- passes over. `place` says where to go on: a state, and of those that wait the priority. Answers with nothing where it is
-- somebody else's to do, or done.
CREATE FUNCTION queue_state.renumber(
  bull text, queue_name text, most bigint, holder text, lease_ms bigint, page integer, place text
) RETURNS TABLE (next text, renumbered bigint, age_ms bigint) LANGUAGE plpgsql SET enable_seqscan TO off AS $$
#variable_conflict use_column
DECLARE
  now_ms CONSTANT bigint := extract(epoch FROM clock_timestamp()) * 1000;
  states CONSTANT text[] := '{waiting,delayed,active,completed,failed}';
  of_state CONSTANT text := coalesce(nullif(split_part(place, ' ', 1), ''), 'waiting');
  lowest CONSTANT integer := coalesce(nullif(split_part(place, ' ', 2), ''), '2')::integer;
  line queue_state.numberings;
  highest integer;
BEGIN
  PERFORM set_config('search_path', quote_ident(bull), true);
  UPDATE queue_state.numberings AS n SET owner = holder, leased_until = now_ms + lease_ms
    WHERE n.queue = queue_name AND n.since IS NOT NULL AND (n.owner = holder OR coalesce(n.leased_until, 0) <= now_ms)
    RETURNING n.* INTO line;
  IF line.queue IS NULL THEN
    RETURN;
  END IF;
  -- The last of the numbers may stand for any number of turns: such jobs line up anew behind their tenant's others.
  WITH page_of_jobs AS (
    SELECT id, seq, priority, priority / 2 >= most AS is_last, data ->> 'tenantId' AS tenant FROM job
    WHERE queue = queue_name AND state = of_state::job_state
      AND priority >= lowest AND priority % 2 <> line.numbering % 2
    ORDER BY priority, seq LIMIT page FOR UPDATE SKIP LOCKED
  ), turned AS (
    SELECT id, priority, is_last, tenant, CASE WHEN is_last
      THEN greatest(t.last_turn + 1, line.former + most) - 1
        + row_number() OVER (PARTITION BY is_last, tenant ORDER BY priority, seq)
      ELSE line.former + priority / 2 END AS turn
    FROM page_of_jobs LEFT JOIN queue_state.tenant_turns AS t
      ON is_last AND t.queue = queue_name AND t.tenant_id = tenant
  ), lined_up AS (
    UPDATE queue_state.tenant_turns AS t SET last_turn = least(last.turn, line.base + most)
    FROM (SELECT tenant, max(turn) AS turn FROM turned WHERE is_last GROUP BY tenant ORDER BY tenant) AS last
    WHERE t.queue = queue_name AND t.tenant_id = last.tenant
  ), done AS (
    UPDATE job SET priority = 2 * least(greatest(turn - line.base, 1), most) + line.numbering % 2
    FROM turned WHERE job.queue = queue_name AND job.id = turned.id
  )
  SELECT count(*), max(priority) INTO renumbered, highest FROM turned;
  age_ms := now_ms - line.since;
  IF renumbered < page THEN
    next := states[array_position(states, of_state) + 1];
  ELSE
    next := of_state || CASE WHEN of_state = 'waiting' THEN ' ' || highest ELSE '' END;
  END IF;
  RETURN NEXT;
END $$;
--> statement-breakpoint
-- Gives back what `renumber` leased; where every job has its number, the next numbering may begin when it is due.
CREATE FUNCTION queue_state.leave_numbering(queue_name text, holder text, ended boolean) RETURNS void LANGUAGE sql AS $$
  UPDATE queue_state.numberings
  SET since = CASE WHEN NOT ended THEN since END, former = CASE WHEN ended THEN base ELSE former END,
    owner = NULL, leased_until = NULL
  WHERE queue = queue_name AND owner = holder
$$;
