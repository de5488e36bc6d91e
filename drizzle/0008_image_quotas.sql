CREATE TABLE "queue_state"."image_quotas" (
	"holder" text PRIMARY KEY NOT NULL,
	"full_at" double precision NOT NULL
);
--> statement-breakpoint
-- What a minute's counting is worth: nothing after a crash, and no WAL flush.
ALTER TABLE "queue_state"."image_quotas" SET UNLOGGED;
