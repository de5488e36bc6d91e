/** The head of an entry in Redis: what it says comes back, and what nobody of us wrote says nothing. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { HEAD_BYTES, open, runToken, seal, stampOf, TOMBSTONE, UNJOURNALED } from '../../src/cache/envelope.js';
import { type Entry, entry, type Lookup } from '../../src/cache/tier.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { examples } from '../kinds/examples.js';

const RUN = runToken('0123456789abcdef0123456789abcdef01234567');
const OTHER_RUN = runToken('f123456789abcdef0123456789abcdef01234567');
const EXAMPLES = examples('tenant');

const anyExample = fc.constantFrom(...EXAMPLES);
const number = fc.oneof(
  fc.maxSafeNat(),
  fc.nat(),
  fc.constantFrom(0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER),
);
const sealed = (one: Entry, generation = 3, version = 5, flags = 0) =>
  seal(RUN, { ...one, generation, version }, flags);

test('value, generation and version come back, numbers up to 2^53 - 1 exactly', () => {
  fc.assert(
    fc.property(anyExample, number, number, (one, generation, version) => {
      const bytes = sealed(one, generation, version);
      expect(bytes).toHaveLength(HEAD_BYTES + one.bytes.length);
      expect(stampOf(RUN, bytes)).toEqual({ generation, version });
      expect(open(RUN, one, bytes)).toStrictEqual({
        state: 'value',
        value: one.value,
        generation,
        version,
        unjournaled: false,
      });
    }),
    { numRuns: 1_000 },
  );
});

test('heads are ordered as their numbers are, so that Redis can compare them', () => {
  fc.assert(
    fc.property(number, number, (a, b) => {
      const [one] = EXAMPLES as [Entry];
      const head = (version: number) => sealed(one, 0, version).subarray(16, 24);
      expect(Math.sign(head(a).compare(head(b)))).toBe(Math.sign(a - b));
    }),
  );
});

test('a value that nothing promises to bring to PostgreSQL says so', () => {
  const [one] = EXAMPLES as [Entry];
  expect(open(RUN, one, sealed(one, 1, 2, UNJOURNALED))).toMatchObject({ state: 'value', unjournaled: true });
});

test('a tombstone, another format and another run of Redis say that nothing is there', () => {
  for (const one of EXAMPLES) {
    expect(open(RUN, one, sealed(one, 1, 2, TOMBSTONE))).toEqual({ state: 'absent' });
    expect(open(RUN, { ...one, kind: { ...one.kind, format: one.kind.format + 1 } }, sealed(one))).toEqual({
      state: 'absent',
    });
    expect(open(OTHER_RUN, one, sealed(one))).toEqual({ state: 'absent' });
    expect(stampOf(OTHER_RUN, sealed(one))).toBeUndefined();
  }
});

test.each(EXAMPLES.map((one) => [one.kind.name, one] as const))(
  'a %s that was cut short anywhere is corrupt or another value, and never an error',
  (_name, one) => {
    const whole = sealed(one);
    const ends = Array.from({ length: Math.min(whole.length, 400) }, (_, i) => i);
    for (const end of [...ends, whole.length - 1]) {
      const found = open(RUN, one, whole.subarray(0, end));
      if (end < HEAD_BYTES)
        expect(found).toMatchObject({ state: 'corrupt', error: expect.any(RangeError), version: 0 });
      // Any text is a hash, also a shorter one.
      else if (one.kind.name !== 'perceptual_hash') expect(found).toMatchObject({ state: 'corrupt', version: 5 });
      else expect(found).toMatchObject({ state: 'value', version: 5 });
    }
  },
);

const garbage = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));

test('bytes of somebody else are corrupt or absent, and never an error', () => {
  fc.assert(
    fc.property(anyExample, garbage, (one, bytes) => {
      const { state } = open(RUN, one, bytes);
      expect(state).toBe(bytes.length < HEAD_BYTES ? 'corrupt' : 'absent');
    }),
    { numRuns: 1_000 },
  );
});

test('a head of ours with anything behind it is never an error, and never faces', () => {
  fc.assert(
    fc.property(anyExample, garbage, (one, bytes) => {
      const found = open(RUN, one, Buffer.concat([sealed(one).subarray(0, HEAD_BYTES), bytes]));
      if (one.kind.name.startsWith('face_')) expect(found.state).toBe('corrupt');
      else expect(['value', 'corrupt']).toContain(found.state);
    }),
    { numRuns: 1_000 },
  );
});

test('whatever is changed in the bytes of an entry, reading them is never an error', () => {
  fc.assert(
    fc.property(anyExample, fc.nat(), fc.nat(255), (one, at, byte) => {
      const bytes = sealed(one);
      bytes.writeUInt8(byte, at % bytes.length);
      expect(['value', 'corrupt', 'absent']).toContain(open(RUN, one as Lookup, bytes).state);
    }),
    { numRuns: 2_000 },
  );
});

test('an entry without a byte of value keeps its head', () => {
  const empty = entry('tenant', perceptualHashes, 'ab'.repeat(32), '');
  expect(open(RUN, empty, sealed(empty))).toMatchObject({ state: 'value', value: '' });
});
