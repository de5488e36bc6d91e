-- Claims say who works on what right now. A crash of PostgreSQL may forget them: that costs a doubled fetch at worst,
-- and saves a WAL flush on every job. Records are guarded by the primary keys of their own tables.
ALTER TABLE "claims" SET UNLOGGED;
--> statement-breakpoint
-- Vectors do not compress. Kept uncompressed and inside the row up to a page, one face (2 KB) costs no second look-up.
ALTER TABLE "face_embeddings_cache" ALTER COLUMN "payload" SET STORAGE EXTERNAL, SET (toast_tuple_target = 8160);
--> statement-breakpoint
ALTER TABLE "face_detection_cache" ALTER COLUMN "payload" SET STORAGE EXTERNAL, SET (toast_tuple_target = 8160);
--> statement-breakpoint
-- A 64-bit hash as a number, or NULL for what the near-duplicate index must not hold: opaque strings, and the hashes of
-- flat images. A picture's hash has about 32 bits set, since each bit says "above the median"; a flat image's has few.
CREATE FUNCTION perceptual_hash_number(phash text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE
  WHEN phash ~ '^[0-9a-f]{16}$' AND bit_count(('x' || phash)::bit(64)) BETWEEN 12 AND 52
  THEN ('x' || phash)::bit(64)::bigint
END;
--> statement-breakpoint
-- Band b (0 to 3) of a hash: its bits 16 b to 16 b + 15, counted from the most significant.
CREATE FUNCTION perceptual_hash_band(hash bigint, band integer) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ((hash >> (48 - 16 * band)) & 65535)::integer;
--> statement-breakpoint
CREATE FUNCTION perceptual_hash_bands_add() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO perceptual_hash_bands (tenant_id, band, bits, phash, content_hash)
  SELECT hashed.tenant_id, n, perceptual_hash_band(hashed.number, n), hashed.number, hashed.content_hash
  FROM (SELECT tenant_id, content_hash, perceptual_hash_number(phash) AS number FROM new_rows) AS hashed,
       generate_series(0, 3) AS n
  WHERE hashed.number IS NOT NULL
  ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
--> statement-breakpoint
CREATE FUNCTION perceptual_hash_bands_remove() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM perceptual_hash_bands AS bands
  USING (SELECT tenant_id, content_hash, perceptual_hash_number(phash) AS number FROM old_rows) AS hashed,
        generate_series(0, 3) AS n
  WHERE bands.tenant_id = hashed.tenant_id AND bands.band = n
    AND bands.bits = perceptual_hash_band(hashed.number, n)
    AND bands.phash = hashed.number AND bands.content_hash = hashed.content_hash;
  RETURN NULL;
END $$;
--> statement-breakpoint
-- Statement-level, so that a batch of rows costs one trigger call. An update is a removal and an addition; PostgreSQL
-- allows transition tables for one event a trigger, hence four of them. They fire in the order of their names.
CREATE TRIGGER perceptual_hash_bands_1_update AFTER UPDATE ON perceptual_hash_cache
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION perceptual_hash_bands_remove();
--> statement-breakpoint
CREATE TRIGGER perceptual_hash_bands_2_update AFTER UPDATE ON perceptual_hash_cache
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION perceptual_hash_bands_add();
--> statement-breakpoint
CREATE TRIGGER perceptual_hash_bands_insert AFTER INSERT ON perceptual_hash_cache
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION perceptual_hash_bands_add();
--> statement-breakpoint
CREATE TRIGGER perceptual_hash_bands_delete AFTER DELETE ON perceptual_hash_cache
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION perceptual_hash_bands_remove();
