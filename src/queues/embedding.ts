/** The embedding job: find and embed the faces of one stored image. */
import { z } from 'zod';
import { CONTENT_HASH } from '../kinds/kind.js';
import { type QueueContract, tenantId } from './contract.js';

export const embeddingPayload = z.object({
  v: z.literal(1),
  tenantId,
  contentHash: z.string().regex(CONTENT_HASH, 'expected a SHA-256 as 64 lower-case hex characters'),
});

export type EmbeddingPayload = z.infer<typeof embeddingPayload>;

export const embeddingQueue: QueueContract<EmbeddingPayload> = {
  name: 'embedding',
  payload: embeddingPayload,
  identity: ({ tenantId, contentHash }) => [tenantId, contentHash],
  attempts: 5,
};
