CREATE SCHEMA "queue_state";
--> statement-breakpoint
CREATE TABLE "queue_state"."host_permits" (
	"host" text NOT NULL,
	"job" text NOT NULL,
	"starts_at" bigint NOT NULL,
	"begun" boolean DEFAULT false NOT NULL,
	"expires_at" bigint NOT NULL,
	CONSTRAINT "host_permits_pk" PRIMARY KEY("host","job")
);
--> statement-breakpoint
CREATE TABLE "queue_state"."host_waiting" (
	"host" text NOT NULL,
	"place" bigint NOT NULL,
	"job" text NOT NULL,
	CONSTRAINT "host_waiting_pk" PRIMARY KEY("host","place")
);
--> statement-breakpoint
CREATE TABLE "queue_state"."hosts" (
	"host" text PRIMARY KEY NOT NULL,
	"next_at" bigint DEFAULT 0 NOT NULL,
	"cooled_until" bigint DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE TABLE "robots_cache" (
	"tenant_id" text NOT NULL,
	"generation" bigint NOT NULL,
	"origin_hash" text NOT NULL,
	"origin" text NOT NULL,
	"rules" text NOT NULL,
	"trouble" text,
	"fetched_at" timestamp with time zone NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	"version" bigint NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "robots_cache_pk" PRIMARY KEY("tenant_id","generation","origin_hash")
);
--> statement-breakpoint
CREATE TABLE "queue_state"."tenant_turns" (
	"queue" text NOT NULL,
	"tenant_id" text NOT NULL,
	"last_turn" bigint NOT NULL,
	CONSTRAINT "tenant_turns_pk" PRIMARY KEY("queue","tenant_id")
);
--> statement-breakpoint
ALTER TABLE "crawl_cache" ADD COLUMN "etag" text;--> statement-breakpoint
ALTER TABLE "crawl_cache" ADD COLUMN "last_modified" text;--> statement-breakpoint
CREATE UNIQUE INDEX "host_waiting_job_idx" ON "queue_state"."host_waiting" USING btree ("host","job");--> statement-breakpoint
CREATE INDEX "robots_cache_created_at_idx" ON "robots_cache" USING btree ("created_at");