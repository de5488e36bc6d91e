ALTER TABLE "cache_generations" ADD COLUMN "begun_under" text;
--> statement-breakpoint
-- Which history of the database is told on, and how far it has come: the table's own number tells when `pg_restore --clean`
-- has made it anew, the timeline a failover or a recovery to an earlier moment, and a position in the write-ahead log that
-- is on disk never falls.
--
-- New: from where the server went on when it was started. One that was started on an old copy may have written so much
-- since that its position tells nothing. Its last checkpoint stands where the log ended, until the next one. A standby
-- tells nothing of all this, a server that hides its log only when it was started. And under which start of the server the
-- incarnation was begun: a copy brings one that is older than the server that was started on it.
DROP FUNCTION cache_history();
--> statement-breakpoint
CREATE FUNCTION cache_history(
  OUT incarnation text, OUT begun_under text, OUT started_at text, OUT started_from text, OUT timeline text,
  OUT log_position text
) LANGUAGE plpgsql STABLE AS $$
DECLARE
  place pg_lsn;
  checkpoint pg_lsn;
BEGIN
  SELECT known.incarnation || '/' || known.tableoid, known.begun_under INTO incarnation, begun_under
    FROM cache_generations AS known WHERE tenant_id = '*';
  IF pg_is_in_recovery() THEN
    RETURN;
  END IF;
  started_at := extract(epoch FROM pg_postmaster_start_time());
  BEGIN
    SELECT checkpoint_lsn INTO checkpoint FROM pg_control_checkpoint();
    place := pg_current_wal_flush_lsn();
    timeline := left(pg_walfile_name(place), 8);
    started_from := (checkpoint - '0/0')::text;
    log_position := (place - '0/0')::text;
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
END $$;
--> statement-breakpoint
-- For who finds that the database was set back: begins another incarnation, unless somebody has done so since `ended`, and
-- gives out no generation again that was known. New: notes under which start of the server that was.
DROP FUNCTION begin_cache_incarnation(text, bigint);
--> statement-breakpoint
CREATE FUNCTION begin_cache_incarnation(ended text, greatest_generation bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM cache_generations WHERE tenant_id = '*' FOR UPDATE;
  PERFORM setval('cache_generation', greatest_generation)
    FROM cache_generation WHERE last_value <= greatest_generation;
  UPDATE cache_generations AS own SET incarnation = gen_random_uuid(), begun_under = present.started_at
    FROM cache_history() AS present WHERE own.tenant_id = '*' AND present.incarnation = ended;
END $$;
