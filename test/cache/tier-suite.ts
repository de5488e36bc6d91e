/** The contract of a tier, which every tier must keep, and what is made of both of them. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Entry, entry, type Lookup, lookup, type Verdict } from '../../src/cache/tier.js';
import { ArgumentError } from '../../src/errors.js';
import { crawlUrls } from '../../src/kinds/crawl.js';
import { faceDetections, faceEmbeddings } from '../../src/kinds/faces.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { crawlUrl, examples, FACE, MOMENT, ODD_FACE } from '../kinds/examples.js';
import type { Relay } from './relay.js';
import { freshTenant } from './support.js';

/** An answer to a look-up, as far as all of them have it in common. */
export interface Read {
  readonly state: 'value' | 'absent' | 'corrupt';
  readonly value?: unknown;
}

export interface TierUnderTest extends AsyncDisposable {
  /** Answers in the order of the look-ups. */
  read(lookups: readonly Lookup[]): Promise<Read[]>;
  /** Resolves with the entries as they stand afterwards, in the order given. */
  write(entries: readonly Entry[]): Promise<readonly Entry[]>;
  ping(): Promise<void>;
  judge(error: unknown): Verdict;
  /** Between the tier and its server, or its servers. */
  readonly relays: readonly Relay[];
  /** Puts bytes into the place of an entry that nobody of us wrote. */
  damage(entry: Lookup): Promise<void>;
  /** What damaged bytes read as. */
  readonly damaged: object;
}

const model = 'puppet@1';
const ABSENT = { state: 'absent' };
const values = (entries: readonly Entry[]) => entries.map(({ value }) => ({ state: 'value', value }));

/** Without the stamps, which are a tier's own. */
export function plain(found: readonly Read[]): Read[] {
  return found.map(({ state, value }) => (state === 'value' ? { state, value } : { state }));
}

export function tierSuite(open: () => Promise<TierUnderTest>): void {
  describe('as every tier', () => {
    let opened: TierUnderTest;
    const read = async (lookups: readonly Lookup[], tier = opened) => plain(await tier.read(lookups));
    const write = (entries: readonly Entry[]) => opened.write(entries);

    beforeAll(async () => {
      opened = await open();
    });

    afterAll(() => opened[Symbol.asyncDispose]());

    test.each(examples('suite').map((one, i) => [one.kind.name, i] as const))(
      'gives a %s back as it was',
      async (_, i) => {
        const tenant = freshTenant();
        const one = examples(tenant)[i] as Entry;
        expect(await read([one])).toEqual([ABSENT]);
        expect(await write([one])).toMatchObject([one]);
        expect(await read([one])).toStrictEqual(values([one]));
      },
    );

    test('answers a batch of all kinds in its order, absent ones between them', async () => {
      const tenant = freshTenant();
      const there = [...examples(tenant, 'a'), ...examples(tenant, 'b')];
      const missing = examples(tenant, 'c');
      await write(there);
      const mixed = there.flatMap((one, i) => [missing[i % missing.length] as Entry, one]).reverse();
      const found = await read(mixed);
      expect(found).toStrictEqual(
        mixed.map((one) => (there.includes(one) ? { state: 'value', value: one.value } : ABSENT)),
      );
    });

    test('answers a look-up that stands twice in a batch twice', async () => {
      const tenant = freshTenant();
      const one = entry(tenant, perceptualHashes, sha256('twice'), 'ffff0000ffff0000');
      await write([one]);
      expect(await read([one, one])).toEqual(values([one, one]));
    });

    test('reads and writes any batch in one round trip to each server', async () => {
      const tenant = freshTenant();
      const batch = [...examples(tenant, 'a'), ...examples(tenant, 'b'), ...examples(tenant, 'c')];
      const trips = () => opened.relays.map(({ roundTrips }) => roundTrips);
      await write(examples(tenant, 'the first of its tenant'));
      for (const relay of opened.relays) relay.reset();
      await write(batch);
      expect(trips()).toEqual(opened.relays.map(() => 1));
      for (const relay of opened.relays) relay.reset();
      expect(await read(batch)).toStrictEqual(values(batch));
      // Of two servers, the first has the answer.
      expect(trips()).toEqual(opened.relays.map((_, i) => (i === 0 ? 1 : 0)));
    });

    test('keeps a batch of a thousand', async () => {
      const tenant = freshTenant();
      const many = Array.from({ length: 1_000 }, (_, i) =>
        entry(tenant, faceEmbeddings, { contentHash: sha256(`${i}`), model }, [{ ...FACE, n: i }]),
      );
      await write(many);
      expect(await read(many)).toStrictEqual(values(many));
    });

    test('takes no faces and empty text for values', async () => {
      const tenant = freshTenant();
      const entries = [
        entry(tenant, faceEmbeddings, { contentHash: sha256('empty'), model }, []),
        entry(tenant, faceDetections, { contentHash: sha256('empty'), model }, []),
        entry(tenant, perceptualHashes, sha256('empty'), ''),
      ];
      await write(entries);
      expect(await read(entries)).toEqual(values(entries));
      for (const one of entries) expect(await read([one])).toEqual(values([one]));
    });

    test('tells damaged bytes from absent ones, alone and within a batch', async () => {
      const tenant = freshTenant();
      const [damaged, whole] = examples(tenant) as [Entry, Entry];
      await write([damaged, whole]);
      await opened.damage(damaged);
      expect(await opened.read([damaged])).toMatchObject([opened.damaged]);
      const missing = lookup(tenant, perceptualHashes, sha256('missing'));
      const found = await opened.read([missing, damaged, whole]);
      expect(found).toMatchObject([ABSENT, opened.damaged, ...values([whole])]);
    });

    test('replaces damaged bytes by what is written', async () => {
      const tenant = freshTenant();
      const [one] = examples(tenant) as [Entry];
      await write([one]);
      await opened.damage(one);
      await write([one]);
      expect(await read([one])).toStrictEqual(values([one]));
    });

    test('keeps tenants apart, also those whose names begin alike', async () => {
      const tenant = freshTenant();
      const others = [`${tenant}.`, tenant.slice(0, -1), tenant.toUpperCase(), '..'];
      const mine = examples(tenant);
      await write(mine);
      for (const other of others) expect(await read(examples(other))).toEqual(mine.map(() => ABSENT));
      const key = { contentHash: sha256('one'), model };
      await write([entry(others[0] as string, faceEmbeddings, key, [])]);
      expect(await read(mine)).toStrictEqual(values(mine));
    });

    test('keeps models apart', async () => {
      const tenant = freshTenant();
      const contentHash = sha256('models');
      const entries = ['a', 'b', 'a/b', 'a@1'].map((name) =>
        entry(tenant, faceEmbeddings, { contentHash, model: name }, [{ ...FACE, name }]),
      );
      await write(entries);
      expect(await read(entries)).toStrictEqual(values(entries));
      expect(await read([lookup(tenant, faceEmbeddings, { contentHash, model: 'c' })])).toEqual([ABSENT]);
    });

    test('replaces an older value by a later one', async () => {
      const tenant = freshTenant();
      const key = { contentHash: sha256('changed'), model };
      await write([entry(tenant, faceEmbeddings, key, [FACE])]);
      await write([entry(tenant, faceEmbeddings, key, [ODD_FACE, FACE])]);
      expect(await read([lookup(tenant, faceEmbeddings, key)])).toEqual([{ state: 'value', value: [ODD_FACE, FACE] }]);
    });

    test('takes the last entry of a key that stands several times in a batch', async () => {
      const tenant = freshTenant();
      const key = sha256('repeated');
      const batch = ['1', '2', '3'].map((value) => entry(tenant, perceptualHashes, key, value));
      await write(batch);
      expect(await read(batch.slice(0, 1))).toEqual([{ state: 'value', value: '3' }]);
    });

    test.each([0, 1, MOMENT, 1_700_000_000_999, 4_102_444_800_001, Date.now()])(
      'keeps the moment %d to the millisecond',
      async (fetchedAt) => {
        const tenant = freshTenant();
        const one = entry(tenant, crawlUrls, sha256('moment'), crawlUrl('moment', { fetchedAt }));
        await write([one]);
        expect(await read([one])).toEqual(values([one]));
        const [other] = examples(tenant) as [Entry];
        const [within] = await read([one, other]);
        expect(within).toEqual({ state: 'value', value: one.value });
      },
    );

    test('serves its first callers all at once', async () => {
      await using fresh = await open();
      const answers = await Promise.all(
        Array.from({ length: 20 }, () => read(examples(freshTenant()).slice(0, 1), fresh)),
      );
      expect(answers).toEqual(Array(20).fill([ABSENT]));
    });

    test('writers of the same keys in opposite orders do not block each other', async () => {
      const tenant = freshTenant();
      const keys = Array.from({ length: 200 }, (_, i) => sha256(`${i}`));
      const batch = (by: string) => keys.map((key) => entry(tenant, perceptualHashes, key, by));
      await Promise.all(
        Array.from({ length: 30 }, (_, i) => write(i % 2 === 0 ? batch('even') : batch('odd').reverse())),
      );
      const found = await read(batch(''));
      expect(new Set(found.map((one) => one.state))).toEqual(new Set(['value']));
    });

    test('answers a batch of several tenants, each with its own', async () => {
      const key = sha256('of several tenants');
      const entries = Array.from({ length: 5 }, (_, i) => entry(freshTenant(), perceptualHashes, key, `${i}`));
      await write(entries);
      const strange = lookup(freshTenant(), perceptualHashes, key);
      expect(await read([...entries, strange])).toEqual([...values(entries), ABSENT]);
    });

    test('answers a ping', async () => {
      await expect(opened.ping()).resolves.toBeUndefined();
    });

    test('does not take our own mistakes for an outage', async () => {
      const tenant = freshTenant();
      const [whole] = examples(tenant) as [Entry];
      const failure = await write([{ ...whole, bytes: undefined as never }]).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(Error);
      expect(opened.judge(failure)).toBe('wrong');
      expect(await read([whole])).toEqual([ABSENT]);
      expect(opened.judge(new ArgumentError('content', 'expected something else'))).toBe('wrong');
    });

    test('takes a server that nobody can reach for an outage', async () => {
      await using fresh = await open();
      await fresh.ping();
      for (const relay of fresh.relays) await relay[Symbol.asyncDispose]();
      const failure = await fresh.ping().catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(Error);
      expect(fresh.judge(failure)).toBe('away');
    });

    test('closes without having been used', async () => {
      await using fresh = await open();
      expect(fresh.relays).toHaveLength(opened.relays.length);
    });
  });
}
