CREATE INDEX "rejection_cache_expires_at_idx" ON "rejection_cache" USING btree ("expires_at");
--> statement-breakpoint
-- What a table of cached facts holds, told in a time that does not grow with it. Only what is reachable counts: of each
-- tenant, the rows from its current generation on. Up to 10,000 rows and 1,000 tenants are counted; where there are
-- more, `is_exact` is false, and what the planner believes is told instead, dead rows included.
--
-- The settings: whatever the planner thinks of a table, each step reads a few neighbours in an index and stops. A bitmap
-- would collect all of them first, a scan of the table could pass over millions of dead rows, and to compile the query
-- takes longer than to run it.
CREATE FUNCTION cache_table_statistics(
  table_name text,
  OUT total_entries bigint,
  OUT is_exact boolean,
  OUT unique_tenants bigint,
  OUT oldest_entry timestamptz,
  OUT newest_entry timestamptz,
  OUT table_bytes bigint
)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
  most_entries CONSTANT bigint := 10000;
  most_tenants CONSTANT bigint := 1000;
  visited bigint;
  plan json;
BEGIN
  -- From tenant to tenant by the primary key; of each, as many rows as there is still room for. Beyond that one row
  -- tells whether the tenant counts. `''` is before every tenant.
  EXECUTE format($query$
    WITH RECURSIVE walk (tenant_id, visited, tenants, entries) AS (
      SELECT '', 0::bigint, 0::bigint, 0::bigint
      UNION ALL
      SELECT next.tenant_id, visited + 1, tenants + (found.entries > 0)::integer, walk.entries + found.entries
      FROM walk
      CROSS JOIN LATERAL (
        SELECT cached.tenant_id FROM %1$I AS cached WHERE cached.tenant_id > walk.tenant_id
        ORDER BY cached.tenant_id LIMIT 1
      ) AS next
      CROSS JOIN LATERAL (
        SELECT max(generation) AS reachable FROM cache_generations WHERE tenant_id IN (next.tenant_id, '*')
      ) AS current
      CROSS JOIN LATERAL (
        SELECT count(*) AS entries FROM (
          SELECT FROM %1$I AS cached
          WHERE cached.tenant_id = next.tenant_id AND cached.generation >= current.reachable
          LIMIT greatest($1 + 1 - walk.entries, 1)
        ) AS counted
      ) AS found
      WHERE visited <= $2
    )
    SELECT visited, tenants, entries FROM walk ORDER BY visited DESC LIMIT 1
  $query$, table_name) INTO visited, unique_tenants, total_entries USING most_entries, most_tenants;
  is_exact := total_entries <= most_entries AND visited <= most_tenants;

  IF NOT is_exact THEN
    -- The planner counts by the table's present size, also before the first ANALYZE, when reltuples says nothing.
    EXECUTE format('EXPLAIN (FORMAT json) SELECT FROM %I', table_name) INTO plan;
    total_entries := greatest(total_entries, (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint);
  END IF;
  IF visited > most_tenants THEN
    unique_tenants := greatest(unique_tenants, (
      SELECT CASE WHEN n_distinct < 0 THEN -n_distinct * total_entries ELSE n_distinct END
      FROM pg_stats
      WHERE schemaname = current_schema() AND tablename = table_name AND attname = 'tenant_id'
    )::bigint);
  END IF;

  -- At either end, the first row that is reachable; should thousands be dead there, for the moment until they are
  -- deleted, the first of those.
  IF total_entries > 0 THEN
    EXECUTE format($query$
      WITH first AS (SELECT tenant_id, generation, created_at FROM %1$I ORDER BY created_at LIMIT $1),
           last AS (SELECT tenant_id, generation, created_at FROM %1$I ORDER BY created_at DESC LIMIT $1)
      SELECT
        coalesce((
          SELECT created_at FROM first
          WHERE generation >= (
            SELECT max(g.generation) FROM cache_generations AS g WHERE g.tenant_id IN (first.tenant_id, '*')
          )
          ORDER BY created_at LIMIT 1
        ), (SELECT min(created_at) FROM %1$I)),
        coalesce((
          SELECT created_at FROM last
          WHERE generation >= (
            SELECT max(g.generation) FROM cache_generations AS g WHERE g.tenant_id IN (last.tenant_id, '*')
          )
          ORDER BY created_at DESC LIMIT 1
        ), (SELECT max(created_at) FROM %1$I))
    $query$, table_name) INTO oldest_entry, newest_entry USING most_entries;
  END IF;
  table_bytes := pg_total_relation_size(quote_ident(table_name)::regclass);
END $$;
--> statement-breakpoint
-- For people and dashboards; the first three types are named as the Python service named them.
CREATE VIEW cache_stats AS
SELECT
  CASE kind WHEN 'face_embedding' THEN 'face_embeddings' WHEN 'crawl_url' THEN 'crawl' ELSE kind END AS cache_type,
  total_entries,
  unique_tenants,
  oldest_entry,
  newest_entry,
  pg_size_pretty(table_bytes) AS table_size
FROM cache_kinds() CROSS JOIN LATERAL cache_table_statistics(table_name);
--> statement-breakpoint
-- How often each index of ours was used since the server's statistics began. One that stays at 0 helps nobody.
CREATE FUNCTION get_cache_index_usage()
RETURNS TABLE (table_name text, index_name text, index_size text, index_usage_count bigint)
LANGUAGE sql STABLE AS $$
  SELECT relname::text, indexrelname::text, pg_size_pretty(pg_relation_size(indexrelid)), idx_scan
  FROM pg_stat_user_indexes
  WHERE schemaname = current_schema() AND (
    relname IN (SELECT cached.table_name FROM cache_kinds() AS cached)
    OR relname IN ('perceptual_hash_bands', 'claims', 'cache_generations', 'redis_repairs')
  )
  ORDER BY relname, indexrelname
$$;
--> statement-breakpoint
-- Rows of this kind from before this moment are old. What crawling found out is kept four times as long, and at least
-- 30 days: to find it out again costs others a request, and the rest only costs us work.
CREATE FUNCTION cache_retention_limit(kind text, retention_days integer) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE
  days bigint := retention_days;
BEGIN
  IF days IS NULL OR days < 1 THEN
    RAISE EXCEPTION 'retention_days: expected a whole number of days from 1 on, not %', coalesce(days::text, 'null')
      USING ERRCODE = 'invalid_parameter_value',
        HINT = 'To delete everything there is, see clear_all_cache().';
  END IF;
  IF kind IN ('crawl_url', 'crawl_content') THEN
    days := greatest(4 * days, 30);
  END IF;
  -- Nothing is a million days old, and of much longer ago PostgreSQL knows no date.
  RETURN now() - make_interval(days => least(days, 1000000)::integer);
END $$;
--> statement-breakpoint
-- Deletes the next old rows of a kind, at most `batch` of them, and tells how many; `reached` is where the next batch
-- goes on, null at the end. It goes on and does not begin anew, since what was deleted stays in the index until vacuum
-- comes by. Callers commit in between: one long transaction would keep vacuum away, and its repairs, all at once, would
-- make every process stop believing Redis until they are worked off (`cache/coherence.ts`).
--
-- A row's age is that of its first writing; a refusal's days are counted from its end, since until then it counts.
--
-- Two sorts of old rows stay for a later run:
--   * A content that a URL refers to, whatever the age of either: a skip by that URL promises that the record exists.
--     Old URLs go before old contents, in the order of cache_kinds(), so only URLs that stay hold a content. Both rows
--     have one generation, since a tenant has no more than one that is reachable. Whoever stores a URL together with
--     its content locks the content's row: then it is passed over here, or is gone first and written anew there.
--   * The newest version of a URL, while an older version has a younger row (it served A, then B, then A again):
--     without it, the URL would be known as what it served before.
--
-- A row that somebody is writing is passed over too: waiting for it could end in a deadlock with its writer.
CREATE FUNCTION cleanup_cache_batch(
  kind text,
  retention_days integer,
  batch integer DEFAULT 1000,
  INOUT reached timestamptz DEFAULT '-infinity',
  OUT deleted bigint
)
LANGUAGE plpgsql AS $$
DECLARE
  limit_of_age CONSTANT timestamptz := cache_retention_limit(kind, retention_days);
  began_at CONSTANT timestamptz := reached;
  cached record;
  examined bigint;
BEGIN
  SELECT * INTO cached FROM cache_kinds() AS one WHERE one.kind = cleanup_cache_batch.kind;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'kind: % is none', coalesce(kind, 'null')
      USING ERRCODE = 'invalid_parameter_value', HINT = 'See cache_kinds().';
  END IF;
  IF batch IS NULL OR batch < 1 THEN
    RAISE EXCEPTION 'batch: expected a number of rows from 1 on, not %', coalesce(batch::text, 'null')
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  EXECUTE format(
    $query$
      WITH page AS MATERIALIZED (
        SELECT tenant_id, generation, %3$s, version, created_at, ctid AS place, %2$I AS since FROM %1$I
        WHERE %2$I < $1 AND %2$I >= $2 ORDER BY %2$I LIMIT $3
      ), unlocked AS MATERIALIZED (
        SELECT ctid AS place FROM %1$I
        WHERE ctid = ANY (ARRAY(SELECT place FROM page WHERE %4$s)) FOR UPDATE SKIP LOCKED
      ), gone AS (
        DELETE FROM %1$I WHERE ctid = ANY (ARRAY(SELECT place FROM unlocked))
        RETURNING tenant_id, concat_ws(':', $4, tenant_id, %3$s) AS entry, version
      ), repairs AS (
        -- Until Redis has dropped it, what is deleted here would still be served from there.
        INSERT INTO redis_repairs AS r (tenant_id, entry, version)
        SELECT tenant_id, entry, max(version) + 1 FROM gone GROUP BY tenant_id, entry ORDER BY entry
        ON CONFLICT (tenant_id, entry) DO UPDATE
          SET version = greatest(r.version, excluded.version), written_at = excluded.written_at
      )
      SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM page), (SELECT max(since) FROM page)
    $query$,
    cached.table_name,
    CASE kind WHEN 'rejection' THEN 'expires_at' ELSE 'created_at' END,
    (SELECT string_agg(quote_ident(name), ', ') FROM unnest(cached.key_columns) AS name),
    CASE kind
      WHEN 'crawl_content' THEN 'NOT EXISTS (
        SELECT FROM crawl_cache AS url
        WHERE url.tenant_id = page.tenant_id AND url.generation = page.generation
          AND url.content_hash = page.content_hash)'
      WHEN 'crawl_url' THEN 'NOT EXISTS (
        SELECT FROM crawl_cache AS older
        WHERE older.tenant_id = page.tenant_id AND older.generation = page.generation AND older.url_hash = page.url_hash
          AND older.version < page.version AND older.created_at > page.created_at)'
      ELSE 'true'
    END
  ) INTO deleted, examined, reached USING limit_of_age, began_at, batch, kind;
  IF examined < batch THEN
    reached := NULL;
  ELSIF deleted = 0 AND reached = began_at THEN
    -- A whole page of one moment, and all of it stays: the next one begins behind it.
    reached := reached + interval '1 microsecond';
  END IF;
END $$;
--> statement-breakpoint
-- Deletes all that is old, in one transaction. Where that is more than some thousand rows, `hybrid-cache cleanup` does
-- better: it commits in between.
CREATE FUNCTION cleanup_old_cache_entries(retention_days integer DEFAULT 7)
RETURNS TABLE (table_name text, deleted_count bigint) LANGUAGE plpgsql AS $$
DECLARE
  cached record;
  batch record;
BEGIN
  FOR cached IN SELECT * FROM cache_kinds() LOOP
    table_name := cached.table_name;
    SELECT * INTO batch FROM cleanup_cache_batch(cached.kind, retention_days);
    deleted_count := batch.deleted;
    WHILE batch.reached IS NOT NULL LOOP
      SELECT * INTO batch FROM cleanup_cache_batch(cached.kind, retention_days, reached => batch.reached);
      deleted_count := deleted_count + batch.deleted;
    END LOOP;
    RETURN NEXT;
  END LOOP;
END $$;
