/**
 * Objects in a bucket of S3, or of any store that speaks its API. The SDK is loaded at the first use, so that nobody else
 * pays for it. Credentials are found as every AWS client finds them: environment, files, the machine's role.
 */
import type { S3Client } from '@aws-sdk/client-s3';
import type { S3Settings } from '../config.js';
import type { ObjectStore } from './object-store.js';

/** Milliseconds for a connection. */
const CONNECT_MS = 5_000;
/** Milliseconds in which nothing is sent and nothing comes. A whole transfer may take longer: pictures are large, links slow. */
const SILENCE_MS = 30_000;
const ATTEMPTS = 3;

type Sdk = typeof import('@aws-sdk/client-s3');

export class S3Store implements ObjectStore {
  #opened: Promise<{ sdk: Sdk; client: S3Client }> | undefined;

  constructor(
    private readonly settings: S3Settings,
    private readonly silenceMs = SILENCE_MS,
  ) {}

  /** S3 shows an object once it has all of it. */
  async put(key: string, bytes: Uint8Array): Promise<void> {
    const { sdk, client } = await this.#open();
    const input = { Bucket: this.settings.bucket, Key: this.#keyOf(key), Body: bytes, ContentLength: bytes.length };
    await client.send(new sdk.PutObjectCommand(input));
  }

  async get(key: string): Promise<Buffer | null> {
    const { sdk, client } = await this.#open();
    try {
      const { Body } = await client.send(
        new sdk.GetObjectCommand({ Bucket: this.settings.bucket, Key: this.#keyOf(key) }),
      );
      return Body ? Buffer.from(await Body.transformToByteArray()) : null;
    } catch (error) {
      if (error instanceof sdk.NoSuchKey) return null;
      throw error;
    }
  }

  /** A write that was cut short leaves nothing there. */
  async tidy(): Promise<number> {
    return 0;
  }

  async close(): Promise<void> {
    (await this.#opened)?.client.destroy();
  }

  #keyOf(key: string): string {
    return this.settings.prefix + key;
  }

  #open(): Promise<{ sdk: Sdk; client: S3Client }> {
    this.#opened ??= import('@aws-sdk/client-s3').then((sdk) => {
      const { endpoint, region, pathStyle } = this.settings;
      const client = new sdk.S3Client({
        region,
        forcePathStyle: pathStyle,
        ...(endpoint ? { endpoint } : {}),
        maxAttempts: ATTEMPTS,
        // Checksums that other stores do not know are only computed where the operation needs them.
        requestChecksumCalculation: 'WHEN_REQUIRED',
        responseChecksumValidation: 'WHEN_REQUIRED',
        // The SDK asks before it sends 2 MiB and more, which costs a connection of its own; some stores never answer that.
        expectContinueHeader: false,
        // `requestTimeout` would bound an upload as a whole, and end with the head of an answer: a body may stall as well.
        requestHandler: { connectionTimeout: CONNECT_MS, socketTimeout: this.silenceMs },
      });
      return { sdk, client };
    });
    return this.#opened;
  }
}
