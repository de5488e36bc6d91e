/** An S3 API server on loopback, with one empty bucket. */
import { mkdtemp, rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import S3rver from 's3rver';

export interface S3Server extends AsyncDisposable {
  readonly bucket: string;
  /** For STORAGE_URL. */
  readonly url: string;
}

/** s3rver's own. */
export const S3_CREDENTIALS = { AWS_ACCESS_KEY_ID: 'S3RVER', AWS_SECRET_ACCESS_KEY: 'S3RVER' };

export async function startS3(prefix = ''): Promise<S3Server> {
  const directory = await mkdtemp(join(tmpdir(), 'hc-s3-'));
  const bucket = 'images';
  const server = new S3rver({
    address: '127.0.0.1',
    port: 0,
    silent: true,
    directory,
    configureBuckets: [{ name: bucket, configs: [] }],
  });
  const { port } = (await server.run()) as AddressInfo;
  const endpoint = encodeURIComponent(`http://127.0.0.1:${port}`);
  return {
    bucket,
    url: `s3://${bucket}/${prefix}?endpoint=${endpoint}`,
    [Symbol.asyncDispose]: async () => {
      await server.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
}
