CREATE SEQUENCE "cache_generation" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 2 CACHE 1;
--> statement-breakpoint
CREATE TABLE "cache_generations" (
	"tenant_id" text PRIMARY KEY NOT NULL,
	"generation" bigint NOT NULL,
	"changed_xid" "xid8" DEFAULT pg_current_xact_id() NOT NULL,
	"changed_at" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
	"purged" bigint DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE TABLE "redis_repairs" (
	"tenant_id" text NOT NULL,
	"entry" text NOT NULL,
	"version" bigint NOT NULL,
	"written_at" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
	CONSTRAINT "redis_repairs_pk" PRIMARY KEY("tenant_id","entry")
);
--> statement-breakpoint
CREATE TABLE "search_results_cache" (
	"tenant_id" text NOT NULL,
	"generation" bigint NOT NULL,
	"content_hash" text NOT NULL,
	"top_k" integer NOT NULL,
	"results" json NOT NULL,
	"version" bigint NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "search_results_cache_pk" PRIMARY KEY("tenant_id","generation","content_hash","top_k")
);
--> statement-breakpoint
-- The row of all tenants: every other row and every entry has a generation at least as great.
-- It began before any write that was made without PostgreSQL.
INSERT INTO "cache_generations" ("tenant_id", "generation", "changed_at", "purged") VALUES ('*', 1, 'epoch', 1);
--> statement-breakpoint
DROP INDEX "crawl_cache_content_idx";
--> statement-breakpoint
ALTER TABLE "crawl_cache" DROP CONSTRAINT "crawl_cache_tenant_id_url_hash_content_hash_pk";
--> statement-breakpoint
ALTER TABLE "crawl_content_cache" DROP CONSTRAINT "crawl_content_cache_tenant_id_content_hash_pk";
--> statement-breakpoint
ALTER TABLE "face_detection_cache" DROP CONSTRAINT "face_detection_cache_tenant_id_content_hash_model_pk";
--> statement-breakpoint
ALTER TABLE "face_embeddings_cache" DROP CONSTRAINT "face_embeddings_cache_tenant_id_content_hash_model_pk";
--> statement-breakpoint
ALTER TABLE "perceptual_hash_bands" DROP CONSTRAINT "perceptual_hash_bands_tenant_id_band_bits_phash_content_hash_pk";
--> statement-breakpoint
ALTER TABLE "perceptual_hash_cache" DROP CONSTRAINT "perceptual_hash_cache_tenant_id_content_hash_pk";
--> statement-breakpoint
ALTER TABLE "rejection_cache" DROP CONSTRAINT "rejection_cache_tenant_id_subject_hash_pk";
--> statement-breakpoint
ALTER TABLE "crawl_cache" ADD COLUMN "generation" bigint NOT NULL DEFAULT 1;
--> statement-breakpoint
ALTER TABLE "crawl_cache" ALTER COLUMN "generation" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "crawl_cache" ADD COLUMN "version" bigint NOT NULL DEFAULT (extract(epoch from now()) * 1000000)::bigint;
--> statement-breakpoint
ALTER TABLE "crawl_cache" ALTER COLUMN "version" DROP DEFAULT;
--> statement-breakpoint
-- Versions of a URL are ordered by when they were fetched.
UPDATE "crawl_cache" SET "version" = (extract(epoch from "fetched_at") * 1000000)::bigint;
--> statement-breakpoint
ALTER TABLE "crawl_content_cache" ADD COLUMN "generation" bigint NOT NULL DEFAULT 1;
--> statement-breakpoint
ALTER TABLE "crawl_content_cache" ALTER COLUMN "generation" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "crawl_content_cache" ADD COLUMN "version" bigint NOT NULL DEFAULT (extract(epoch from now()) * 1000000)::bigint;
--> statement-breakpoint
ALTER TABLE "crawl_content_cache" ALTER COLUMN "version" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "face_detection_cache" ADD COLUMN "generation" bigint NOT NULL DEFAULT 1;
--> statement-breakpoint
ALTER TABLE "face_detection_cache" ALTER COLUMN "generation" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "face_detection_cache" ADD COLUMN "version" bigint NOT NULL DEFAULT (extract(epoch from now()) * 1000000)::bigint;
--> statement-breakpoint
ALTER TABLE "face_detection_cache" ALTER COLUMN "version" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "face_embeddings_cache" ADD COLUMN "generation" bigint NOT NULL DEFAULT 1;
--> statement-breakpoint
ALTER TABLE "face_embeddings_cache" ALTER COLUMN "generation" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "face_embeddings_cache" ADD COLUMN "version" bigint NOT NULL DEFAULT (extract(epoch from now()) * 1000000)::bigint;
--> statement-breakpoint
ALTER TABLE "face_embeddings_cache" ALTER COLUMN "version" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "perceptual_hash_bands" ADD COLUMN "generation" bigint NOT NULL DEFAULT 1;
--> statement-breakpoint
ALTER TABLE "perceptual_hash_bands" ALTER COLUMN "generation" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "perceptual_hash_cache" ADD COLUMN "generation" bigint NOT NULL DEFAULT 1;
--> statement-breakpoint
ALTER TABLE "perceptual_hash_cache" ALTER COLUMN "generation" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "perceptual_hash_cache" ADD COLUMN "version" bigint NOT NULL DEFAULT (extract(epoch from now()) * 1000000)::bigint;
--> statement-breakpoint
ALTER TABLE "perceptual_hash_cache" ALTER COLUMN "version" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "rejection_cache" ADD COLUMN "generation" bigint NOT NULL DEFAULT 1;
--> statement-breakpoint
ALTER TABLE "rejection_cache" ALTER COLUMN "generation" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "rejection_cache" ADD COLUMN "version" bigint NOT NULL DEFAULT (extract(epoch from now()) * 1000000)::bigint;
--> statement-breakpoint
ALTER TABLE "rejection_cache" ALTER COLUMN "version" DROP DEFAULT;
--> statement-breakpoint
ALTER TABLE "crawl_cache" ADD CONSTRAINT "crawl_cache_pk" PRIMARY KEY("tenant_id","generation","url_hash","content_hash");
--> statement-breakpoint
ALTER TABLE "crawl_content_cache" ADD CONSTRAINT "crawl_content_cache_pk" PRIMARY KEY("tenant_id","generation","content_hash");
--> statement-breakpoint
ALTER TABLE "face_detection_cache" ADD CONSTRAINT "face_detection_cache_pk" PRIMARY KEY("tenant_id","generation","content_hash","model");
--> statement-breakpoint
ALTER TABLE "face_embeddings_cache" ADD CONSTRAINT "face_embeddings_cache_pk" PRIMARY KEY("tenant_id","generation","content_hash","model");
--> statement-breakpoint
ALTER TABLE "perceptual_hash_bands" ADD CONSTRAINT "perceptual_hash_bands_pk" PRIMARY KEY("tenant_id","generation","band","bits","phash","content_hash");
--> statement-breakpoint
ALTER TABLE "perceptual_hash_cache" ADD CONSTRAINT "perceptual_hash_cache_pk" PRIMARY KEY("tenant_id","generation","content_hash");
--> statement-breakpoint
ALTER TABLE "rejection_cache" ADD CONSTRAINT "rejection_cache_pk" PRIMARY KEY("tenant_id","generation","subject_hash");
--> statement-breakpoint
CREATE INDEX "cache_generations_changed_xid_idx" ON "cache_generations" USING btree ("changed_xid");
--> statement-breakpoint
CREATE INDEX "redis_repairs_written_at_idx" ON "redis_repairs" USING btree ("written_at");
--> statement-breakpoint
CREATE INDEX "search_results_cache_created_at_idx" ON "search_results_cache" USING btree ("created_at");
--> statement-breakpoint
CREATE INDEX "crawl_cache_content_idx" ON "crawl_cache" USING btree ("tenant_id","generation","content_hash");
