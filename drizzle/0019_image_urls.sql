DROP INDEX "crawl_cache_content_idx";--> statement-breakpoint
CREATE INDEX "crawl_cache_content_idx" ON "crawl_cache" USING btree ("tenant_id","generation","content_hash","created_at");