ALTER TABLE "cache_generations" ADD COLUMN "incarnation" uuid;
--> statement-breakpoint
CREATE INDEX "cache_generations_unpurged_idx" ON "cache_generations" USING btree ("tenant_id") WHERE purged < generation;
--> statement-breakpoint
UPDATE "cache_generations" SET "incarnation" = gen_random_uuid() WHERE "tenant_id" = '*';
--> statement-breakpoint
-- Which history of the database is told on, and how far it has come: the table's own number tells when `pg_restore --clean`
-- has made it anew, the timeline a failover or a recovery to an earlier moment, and a position in the write-ahead log that
-- is on disk never falls. A standby, and a server that hides its log, tell neither of the latter.
CREATE FUNCTION cache_history(OUT incarnation text, OUT timeline text, OUT log_position text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  place pg_lsn;
BEGIN
  SELECT known.incarnation || '/' || known.tableoid INTO incarnation
    FROM cache_generations AS known WHERE tenant_id = '*';
  BEGIN
    place := pg_current_wal_flush_lsn();
    timeline := left(pg_walfile_name(place), 8);
    log_position := (place - '0/0')::text;
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
END $$;
--> statement-breakpoint
-- For who finds that the database was set back: begins another incarnation, unless somebody has done so since `known`, and
-- gives out no generation again that was known.
CREATE FUNCTION begin_cache_incarnation(known text, greatest_generation bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM cache_generations WHERE tenant_id = '*' FOR UPDATE;
  PERFORM setval('cache_generation', greatest_generation)
    FROM cache_generation WHERE last_value <= greatest_generation;
  UPDATE cache_generations SET incarnation = gen_random_uuid()
    WHERE tenant_id = '*' AND known = (SELECT history.incarnation FROM cache_history() AS history);
END $$;
--> statement-breakpoint
-- New: waits for its turn before it draws its number, as `invalidate_tenant_cache` does, so that here too the greater number
-- is the later commit.
CREATE OR REPLACE FUNCTION clear_all_cache(OUT new_generation bigint) LANGUAGE plpgsql AS $$
BEGIN
  -- Whoever reads a table for long must not hold up everybody who would read it after us.
  PERFORM set_config('lock_timeout', '2s', true);
  PERFORM FROM cache_generations WHERE tenant_id = '*' FOR UPDATE;
  UPDATE cache_generations
    SET generation = nextval('cache_generation'), changed_xid = pg_current_xact_id(), changed_at = clock_timestamp()
    WHERE tenant_id = '*' RETURNING generation INTO new_generation;
  EXECUTE (
    SELECT format('TRUNCATE perceptual_hash_bands, redis_repairs, %s', string_agg(quote_ident(table_name), ', '))
    FROM cache_kinds()
  );
  UPDATE cache_generations SET purged = new_generation;
END $$;
