-- The near-duplicate index is out of reach together with the hashes it was made of.
CREATE OR REPLACE FUNCTION perceptual_hash_bands_add() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO perceptual_hash_bands (tenant_id, generation, band, bits, phash, content_hash)
  SELECT hashed.tenant_id, hashed.generation, n, perceptual_hash_band(hashed.number, n), hashed.number, hashed.content_hash
  FROM (SELECT tenant_id, generation, content_hash, perceptual_hash_number(phash) AS number FROM new_rows) AS hashed,
       generate_series(0, 3) AS n
  WHERE hashed.number IS NOT NULL
  ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
--> statement-breakpoint
CREATE OR REPLACE FUNCTION perceptual_hash_bands_remove() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM perceptual_hash_bands AS bands
  USING (SELECT tenant_id, generation, content_hash, perceptual_hash_number(phash) AS number FROM old_rows) AS hashed,
        generate_series(0, 3) AS n
  WHERE bands.tenant_id = hashed.tenant_id AND bands.generation = hashed.generation AND bands.band = n
    AND bands.bits = perceptual_hash_band(hashed.number, n)
    AND bands.phash = hashed.number AND bands.content_hash = hashed.content_hash;
  RETURN NULL;
END $$;
--> statement-breakpoint
-- Where each kind is kept, and the columns that follow the tenant in an entry's name: as `src/kinds/` declares it.
CREATE FUNCTION cache_kinds() RETURNS TABLE (kind text, table_name text, key_columns text[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  VALUES
    ('face_embedding', 'face_embeddings_cache', ARRAY['content_hash', 'model']),
    ('face_detection', 'face_detection_cache', ARRAY['content_hash', 'model']),
    ('perceptual_hash', 'perceptual_hash_cache', ARRAY['content_hash']),
    ('search_results', 'search_results_cache', ARRAY['content_hash', 'top_k']),
    ('crawl_url', 'crawl_cache', ARRAY['url_hash']),
    ('crawl_content', 'crawl_content_cache', ARRAY['content_hash']),
    ('rejection', 'rejection_cache', ARRAY['subject_hash'])
$$;
--> statement-breakpoint
-- Makes every row of the tenant unreachable and counts them. Invalidations come one after another (they lock the row of
-- all tenants), so that a greater number is a later commit, and no row is counted by two of them.
CREATE FUNCTION invalidate_tenant_cache(tenant text, OUT new_generation bigint, OUT invalidated bigint)
LANGUAGE plpgsql AS $$
DECLARE
  reachable bigint;
  cached record;
  rows_of_kind bigint;
BEGIN
  PERFORM FROM cache_generations WHERE tenant_id = '*' FOR UPDATE;
  reachable := (SELECT max(generation) FROM cache_generations WHERE tenant_id IN (tenant, '*'));
  new_generation := nextval('cache_generation');
  INSERT INTO cache_generations (tenant_id, generation) VALUES (tenant, new_generation)
  ON CONFLICT (tenant_id) DO UPDATE
    SET generation = excluded.generation, changed_xid = pg_current_xact_id(), changed_at = clock_timestamp();
  invalidated := 0;
  FOR cached IN SELECT * FROM cache_kinds() LOOP
    EXECUTE format('SELECT count(*) FROM %I WHERE tenant_id = $1 AND generation >= $2', cached.table_name)
      INTO rows_of_kind USING tenant, reachable;
    invalidated := invalidated + rows_of_kind;
  END LOOP;
END $$;
--> statement-breakpoint
-- Deletes every cached fact of every tenant. What other processes still have in Redis is out of reach with it.
CREATE FUNCTION clear_all_cache(OUT new_generation bigint) LANGUAGE plpgsql AS $$
BEGIN
  -- Whoever reads a table for long must not hold up everybody who would read it after us.
  PERFORM set_config('lock_timeout', '2s', true);
  UPDATE cache_generations
    SET generation = nextval('cache_generation'), changed_xid = pg_current_xact_id(), changed_at = clock_timestamp()
    WHERE tenant_id = '*' RETURNING generation INTO new_generation;
  EXECUTE (
    SELECT format('TRUNCATE perceptual_hash_bands, redis_repairs, %s', string_agg(quote_ident(table_name), ', '))
    FROM cache_kinds()
  );
  UPDATE cache_generations SET purged = new_generation;
END $$;
