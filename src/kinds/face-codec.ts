/**
 * The packed form of face records, the same bytes in Redis and in PostgreSQL.
 *
 *     u8  layout (1)
 *     u32 length of the JSON, little-endian like all that follows
 *     JSON: an array with each record less its vector
 *     for each record: u8 bytes per number (0 = no vector, 4, 8), u32 count, the numbers
 *
 * A vector is stored as float32 where that loses nothing, else as float64, so that numbers come back exactly as given.
 */

const LAYOUT = 1;

type FaceRecord = { embedding?: number[] } & Record<string, unknown>;

export function packFaces(records: readonly FaceRecord[]): Buffer {
  const vectors = records.map(({ embedding }) => (embedding ? packVector(embedding) : undefined));
  const rest = Buffer.from(JSON.stringify(records.map(({ embedding: _, ...record }) => record)));
  const head = Buffer.allocUnsafe(5);
  head.writeUInt8(LAYOUT, 0);
  head.writeUInt32LE(rest.length, 1);
  const parts = vectors.flatMap((vector) => {
    const size = Buffer.alloc(5);
    if (!vector) return [size];
    size.writeUInt8(vector.BYTES_PER_ELEMENT, 0);
    size.writeUInt32LE(vector.length, 1);
    return [size, Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength)];
  });
  return Buffer.concat([head, rest, ...parts]);
}

/** @throws {RangeError} on bytes that `packFaces` did not make. */
export function unpackFaces(bytes: Buffer): FaceRecord[] {
  if (bytes.length < 5 || bytes[0] !== LAYOUT) throw new RangeError('not a packed list of faces');
  let at = 5 + bytes.readUInt32LE(1);
  if (at > bytes.length) throw new RangeError('a packed list of faces ends early');
  const records = JSON.parse(bytes.toString('utf8', 5, at)) as FaceRecord[];
  for (const record of records) {
    const width = bytes.readUInt8(at);
    const count = bytes.readUInt32LE(at + 1);
    at += 5;
    if (width === 0) continue;
    record.embedding = unpackVector(bytes, at, width, count);
    at += width * count;
  }
  if (at !== bytes.length) throw new RangeError('a packed list of faces has a wrong length');
  return records;
}

function packVector(numbers: readonly number[]): Float32Array | Float64Array {
  const single = Float32Array.from(numbers);
  for (let i = 0; i < numbers.length; i++) {
    if (single[i] !== numbers[i]) return Float64Array.from(numbers);
  }
  return single;
}

function unpackVector(bytes: Buffer, at: number, width: number, count: number): number[] {
  const end = at + width * count;
  if ((width !== 4 && width !== 8) || end > bytes.length) throw new RangeError('a packed vector ends early');
  // Copied, because a typed array needs an aligned start and the bytes begin anywhere.
  const copy = bytes.buffer.slice(bytes.byteOffset + at, bytes.byteOffset + end);
  return Array.from(width === 4 ? new Float32Array(copy) : new Float64Array(copy));
}
