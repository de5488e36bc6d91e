/** Numbers come back exactly as given, in little room, and bytes that were not packed here are never faces. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { packFaces, unpackFaces } from '../../src/kinds/face-codec.js';

type Face = { embedding?: number[] } & Record<string, unknown>;

const number = fc.double({ noNaN: true, noDefaultInfinity: true });
const single = fc.float({ noNaN: true, noDefaultInfinity: true });
const vector: fc.Arbitrary<number[]> = fc.oneof(
  fc.array(single, { maxLength: 40 }),
  fc.array(number, { maxLength: 40 }),
  fc.constant<number[]>([]),
  fc.constant<number[]>([-0, 0, 1e-45, 5e-324, 3.4028234663852886e38, Number.MAX_VALUE, 0.1, Number.MAX_SAFE_INTEGER]),
);
const extras = fc.dictionary(
  fc.string().filter((name) => !['embedding', 'bbox', 'det_score'].includes(name)),
  fc.jsonValue(),
  { noNullPrototype: true },
);
const face: fc.Arbitrary<Face> = fc
  .tuple(extras, fc.tuple(number, number, number, number), number, fc.option(vector, { nil: undefined }))
  .map(([rest, bbox, det_score, embedding]) => ({ ...rest, bbox, det_score, ...(embedding ? { embedding } : {}) }));
const faces = fc.array(face, { maxLength: 6 });

test('faces come back exactly as given, unknown fields and the sign of zero included', () => {
  fc.assert(
    fc.property(faces, (given) => {
      expect(unpackFaces(packFaces(given))).toStrictEqual(given);
    }),
    { numRuns: 500 },
  );
});

test('no faces are a value', () => {
  expect(unpackFaces(packFaces([]))).toEqual([]);
});

test('a face without a vector, with an empty one and with a long one keep their places', () => {
  const given: Face[] = [{ embedding: [] }, {}, { embedding: [1.5] }, { embedding: [0.1] }, {}];
  expect(unpackFaces(packFaces(given))).toStrictEqual(given);
});

test('a thousand faces come back in order', () => {
  const given = Array.from({ length: 1_000 }, (_, i) => ({ n: i, embedding: [i, -i, i / 3] }));
  expect(unpackFaces(packFaces(given))).toStrictEqual(given);
});

test.each([[null], ['text'], [{ x: 1 }], [[[1, 2]]], [[1, null]]])(
  'an unknown field that is called embedding and is no vector is kept: %j',
  (embedding) => {
    const given = [{ bbox: [0, 0, 1, 1], embedding }] as unknown as Face[];
    expect(unpackFaces(packFaces(given))).toStrictEqual(given);
  },
);

test('a number of a vector costs four bytes where float32 holds it, and eight where it does not [M7]', () => {
  const sizeOf = (embedding: number[]) => packFaces([{ embedding }]).length - packFaces([{ embedding: [] }]).length;
  expect(sizeOf(Array.from({ length: 512 }, (_, i) => Math.fround(Math.sin(i))))).toBe(512 * 4);
  expect(sizeOf([...Array.from({ length: 511 }, () => 0.5), 0.1])).toBe(512 * 8);
  expect(packFaces([{ embedding: [] }]).length).toBeLessThan(32);
});

test('bytes that were cut short anywhere throw', () => {
  const whole = packFaces([{ det_score: 0.5, embedding: [1, 2, 3] }, { embedding: [0.1] }, {}]);
  for (let length = 0; length < whole.length; length++) {
    expect(() => unpackFaces(whole.subarray(0, length)), `${length} of ${whole.length} bytes`).toThrow();
  }
});

test('bytes with more behind them throw', () => {
  fc.assert(
    fc.property(faces, fc.uint8Array({ minLength: 1, maxLength: 30 }), (given, more) => {
      expect(() => unpackFaces(Buffer.concat([packFaces(given), more]))).toThrow();
    }),
  );
});

test('a flipped bit anywhere throws', () => {
  fc.assert(
    fc.property(faces, fc.nat(), fc.nat(7), (given, at, bit) => {
      const bytes = packFaces(given);
      const index = at % bytes.length;
      bytes.writeUInt8(bytes.readUInt8(index) ^ (1 << bit), index);
      expect(() => unpackFaces(bytes)).toThrow();
    }),
    { numRuns: 1_000 },
  );
});

test('bytes of somebody else throw', () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void expectNoFaces(Buffer.from(bytes))));
  expectNoFaces(Buffer.from('[]'));
});

function expectNoFaces(bytes: Buffer): void {
  expect(() => unpackFaces(bytes)).toThrow();
}

test('faces are read from the middle of a larger buffer, as a client hands them out', () => {
  const given = [{ embedding: [1, 2, 3] }, { embedding: [0.1, 0.2] }];
  for (let offset = 0; offset < 9; offset++) {
    const inside = Buffer.concat([Buffer.alloc(offset), packFaces(given), Buffer.alloc(3)]);
    expect(unpackFaces(inside.subarray(offset, inside.length - 3))).toStrictEqual(given);
  }
});
