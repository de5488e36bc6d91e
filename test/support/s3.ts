/** S3 API servers on loopback: a whole one with one empty bucket, and one that answers as a test tells it to. */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type RequestListener } from 'node:http';
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

export async function startStoreThat(answers: RequestListener): Promise<S3Server> {
  const server = createServer(answers).on('checkContinue', answers);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const endpoint = encodeURIComponent(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  return {
    bucket: 'images',
    url: `s3://images?endpoint=${endpoint}`,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
