CREATE TABLE "claims" (
	"tenant_id" text NOT NULL,
	"subject" text NOT NULL,
	"holder" text NOT NULL,
	"claimed_at" timestamp with time zone NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	CONSTRAINT "claims_tenant_id_subject_pk" PRIMARY KEY("tenant_id","subject")
);
--> statement-breakpoint
CREATE TABLE "crawl_cache" (
	"tenant_id" text NOT NULL,
	"url_hash" text NOT NULL,
	"content_hash" text NOT NULL,
	"url" text NOT NULL,
	"source_url" text,
	"raw_key" text NOT NULL,
	"thumbnail_key" text,
	"job_id" text,
	"fetched_at" timestamp with time zone NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "crawl_cache_tenant_id_url_hash_content_hash_pk" PRIMARY KEY("tenant_id","url_hash","content_hash")
);
--> statement-breakpoint
CREATE TABLE "crawl_content_cache" (
	"tenant_id" text NOT NULL,
	"content_hash" text NOT NULL,
	"raw_key" text NOT NULL,
	"thumbnail_key" text,
	"mime_type" text,
	"byte_size" integer,
	"width" integer,
	"height" integer,
	"job_id" text,
	"stored_at" timestamp with time zone NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "crawl_content_cache_tenant_id_content_hash_pk" PRIMARY KEY("tenant_id","content_hash")
);
--> statement-breakpoint
CREATE TABLE "face_detection_cache" (
	"tenant_id" text NOT NULL,
	"content_hash" text NOT NULL,
	"model" text NOT NULL,
	"faces" integer NOT NULL,
	"payload" "bytea" NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "face_detection_cache_tenant_id_content_hash_model_pk" PRIMARY KEY("tenant_id","content_hash","model")
);
--> statement-breakpoint
CREATE TABLE "face_embeddings_cache" (
	"tenant_id" text NOT NULL,
	"content_hash" text NOT NULL,
	"model" text NOT NULL,
	"faces" integer NOT NULL,
	"payload" "bytea" NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "face_embeddings_cache_tenant_id_content_hash_model_pk" PRIMARY KEY("tenant_id","content_hash","model")
);
--> statement-breakpoint
CREATE TABLE "perceptual_hash_bands" (
	"tenant_id" text NOT NULL,
	"band" smallint NOT NULL,
	"bits" integer NOT NULL,
	"phash" bigint NOT NULL,
	"content_hash" text NOT NULL,
	CONSTRAINT "perceptual_hash_bands_tenant_id_band_bits_phash_content_hash_pk" PRIMARY KEY("tenant_id","band","bits","phash","content_hash")
);
--> statement-breakpoint
CREATE TABLE "perceptual_hash_cache" (
	"tenant_id" text NOT NULL,
	"content_hash" text NOT NULL,
	"phash" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "perceptual_hash_cache_tenant_id_content_hash_pk" PRIMARY KEY("tenant_id","content_hash")
);
--> statement-breakpoint
CREATE TABLE "rejection_cache" (
	"tenant_id" text NOT NULL,
	"subject_hash" text NOT NULL,
	"reason" text NOT NULL,
	"detail" text NOT NULL,
	"job_id" text,
	"rejected_at" timestamp with time zone NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "rejection_cache_tenant_id_subject_hash_pk" PRIMARY KEY("tenant_id","subject_hash")
);
--> statement-breakpoint
CREATE INDEX "claims_expires_at_idx" ON "claims" USING btree ("expires_at");--> statement-breakpoint
CREATE INDEX "crawl_cache_content_idx" ON "crawl_cache" USING btree ("tenant_id","content_hash");--> statement-breakpoint
CREATE INDEX "crawl_cache_created_at_idx" ON "crawl_cache" USING btree ("created_at");--> statement-breakpoint
CREATE INDEX "crawl_content_cache_created_at_idx" ON "crawl_content_cache" USING btree ("created_at","tenant_id","content_hash");--> statement-breakpoint
CREATE INDEX "face_detection_cache_created_at_idx" ON "face_detection_cache" USING btree ("created_at");--> statement-breakpoint
CREATE INDEX "face_embeddings_cache_created_at_idx" ON "face_embeddings_cache" USING btree ("created_at");--> statement-breakpoint
CREATE INDEX "perceptual_hash_cache_created_at_idx" ON "perceptual_hash_cache" USING btree ("created_at");--> statement-breakpoint
CREATE INDEX "rejection_cache_created_at_idx" ON "rejection_cache" USING btree ("created_at");