/** Where images' bytes are kept, by key. Content-addressed: a key's bytes never change, so writing twice is harmless. */
export interface ObjectStore {
  /** Whole or not at all: a reader never sees a part. Resolves when the bytes are durable. */
  put(key: string, bytes: Uint8Array): Promise<void>;
  /** The bytes, or `null` where the key holds none. */
  get(key: string): Promise<Buffer | null>;
  /** Removes what writers that died have left, once it is older than any write takes. @returns how much that was */
  tidy(olderThanMs?: number): Promise<number>;
  /** Lets go of connections. */
  close(): Promise<void>;
}

const EXTENSIONS: Readonly<Record<string, string>> = {
  'image/jpeg': 'jpg',
  'image/png': 'png',
  'image/webp': 'webp',
  'image/gif': 'gif',
  'image/avif': 'avif',
  'image/heif': 'heif',
  'image/tiff': 'tiff',
};

/** `tenant=` keeps a tenant named `..` a plain folder name. */
export function rawKey(tenantId: string, contentHash: string, mimeType: string): string {
  return `raw/tenant=${tenantId}/${contentHash.slice(0, 2)}/${contentHash}.${EXTENSIONS[mimeType] ?? 'bin'}`;
}

export function thumbnailKey(tenantId: string, contentHash: string): string {
  return `thumbnail/tenant=${tenantId}/${contentHash.slice(0, 2)}/${contentHash}.jpg`;
}
