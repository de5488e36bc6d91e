/**
 * The packed form of face records, the same bytes in Redis and in PostgreSQL. Numbers are little-endian.
 *
 *     u8  layout (1)
 *     u32 CRC-32 of all that follows
 *     u32 length of the JSON
 *     JSON: an array with each record less its vector
 *     for each record: u8 bytes per number (0 = no vector, 4, 8), u32 count, the numbers
 *
 * A vector is stored as float32 where that loses nothing, else as float64, so that numbers come back exactly as given.
 * The checksum is there because a damaged vector is a vector too, and would be compared with others for ever.
 */
import { crc32 } from 'node:zlib';
import { exactJson } from './exact-json.js';

const LAYOUT = 1;
const HEAD_BYTES = 9;

type FaceRecord = { embedding?: number[] } & Record<string, unknown>;

export function packFaces(records: readonly FaceRecord[]): Buffer {
  const parts = records.flatMap(({ embedding }) => {
    const size = Buffer.alloc(5);
    if (!isVector(embedding)) return [size];
    const vector = packVector(embedding);
    size.writeUInt8(vector.BYTES_PER_ELEMENT, 0);
    size.writeUInt32LE(vector.length, 1);
    return [size, Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength)];
  });
  const rest = Buffer.from(exactJson(records.map(withoutVector)));
  const head = Buffer.allocUnsafe(HEAD_BYTES);
  head.writeUInt8(LAYOUT, 0);
  head.writeUInt32LE(rest.length, 5);
  const bytes = Buffer.concat([head, rest, ...parts]);
  bytes.writeUInt32LE(crc32(bytes.subarray(5)), 1);
  return bytes;
}

/** @throws {RangeError} on bytes that `packFaces` did not make. */
export function unpackFaces(bytes: Buffer): FaceRecord[] {
  if (bytes.length < HEAD_BYTES || bytes[0] !== LAYOUT) throw new RangeError('not a packed list of faces');
  if (bytes.readUInt32LE(1) !== crc32(bytes.subarray(5))) throw new RangeError('a packed list of faces is damaged');
  let at = HEAD_BYTES + bytes.readUInt32LE(5);
  const records = JSON.parse(bytes.toString('utf8', HEAD_BYTES, at)) as FaceRecord[];
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

/** Whether it can be packed; a field that only has the name stays in the JSON. */
function isVector(embedding: unknown): embedding is number[] {
  return Array.isArray(embedding) && embedding.every((one) => typeof one === 'number');
}

function withoutVector(record: FaceRecord): Record<string, unknown> {
  const { embedding, ...rest } = record;
  return isVector(embedding) ? rest : record;
}

/** By a loop, which takes an eighth of the time of `Float32Array.from`. */
function packVector(numbers: readonly number[]): Float32Array | Float64Array {
  const single = new Float32Array(numbers.length);
  for (let i = 0; i < numbers.length; i++) {
    single[i] = numbers[i] as number;
    if (single[i] !== numbers[i]) return Float64Array.from(numbers);
  }
  return single;
}

function unpackVector(bytes: Buffer, at: number, width: number, count: number): number[] {
  const end = at + width * count;
  if ((width !== 4 && width !== 8) || end > bytes.length) throw new RangeError('a packed vector ends early');
  // A typed array would need an aligned start, so a copy, and a copy takes four times as long as this.
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, width * count);
  const numbers = new Array<number>(count);
  if (width === 4) for (let i = 0; i < count; i++) numbers[i] = view.getFloat32(4 * i, true);
  else for (let i = 0; i < count; i++) numbers[i] = view.getFloat64(8 * i, true);
  return numbers;
}
