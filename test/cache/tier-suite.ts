/** The contract of a tier, which every tier must keep. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Entry, entry, type Lookup, lookup, type Tier } from '../../src/cache/tier.js';
import { crawlUrls } from '../../src/kinds/crawl.js';
import { faceDetections, faceEmbeddings } from '../../src/kinds/faces.js';
import { sha256 } from '../../src/kinds/identity.js';
import { perceptualHashes } from '../../src/kinds/perceptual-hash.js';
import { crawlUrl, examples, FACE, MOMENT, ODD_FACE } from '../kinds/examples.js';
import type { Relay } from './relay.js';
import { freshTenant } from './support.js';

export interface TierUnderTest extends AsyncDisposable {
  readonly tier: Tier;
  /** Between the tier and its server. */
  readonly relay: Relay;
  /** Puts bytes into the place of an entry that nobody of us wrote. */
  damage(tenantId: string, entry: Lookup): Promise<void>;
}

const model = 'puppet@1';
const asked = (entries: readonly Entry[]): Lookup[] => entries.map(({ kind, key }) => ({ kind, key }));
const values = (entries: readonly Entry[]) => entries.map(({ value }) => ({ state: 'value', value }));

export function tierSuite(open: () => Promise<TierUnderTest>): void {
  describe('as every tier', () => {
    let opened: TierUnderTest;
    let tier: Tier;

    beforeAll(async () => {
      opened = await open();
      tier = opened.tier;
    });

    afterAll(() => opened[Symbol.asyncDispose]());

    test.each(examples().map((one) => [one.kind.name, one] as const))('gives a %s back as it was', async (_, one) => {
      const tenant = freshTenant();
      expect(await tier.read(tenant, asked([one]))).toEqual([{ state: 'absent' }]);
      expect(await tier.write(tenant, [one])).toEqual([one]);
      expect(await tier.read(tenant, asked([one]))).toStrictEqual(values([one]));
    });

    test('answers a batch of all kinds in its order, absent ones between them', async () => {
      const tenant = freshTenant();
      const there = [...examples('a'), ...examples('b')];
      const missing = examples('c');
      await tier.write(tenant, there);
      const mixed = there.flatMap((one, i) => [missing[i % missing.length] as Entry, one]).reverse();
      const found = await tier.read(tenant, asked(mixed));
      expect(found).toStrictEqual(
        mixed.map((one) => (there.includes(one) ? { state: 'value', value: one.value } : { state: 'absent' })),
      );
    });

    test('answers a look-up that stands twice in a batch twice', async () => {
      const tenant = freshTenant();
      const one = entry(perceptualHashes, sha256('twice'), 'ffff0000ffff0000');
      await tier.write(tenant, [one]);
      expect(await tier.read(tenant, asked([one, one]))).toEqual(values([one, one]));
    });

    test('reads and writes any batch in one round trip', async () => {
      const tenant = freshTenant();
      const batch = [...examples('a'), ...examples('b'), ...examples('c')];
      await tier.ping();
      opened.relay.reset();
      await tier.write(tenant, batch);
      expect(opened.relay.roundTrips).toBe(1);
      opened.relay.reset();
      expect(await tier.read(tenant, asked(batch))).toStrictEqual(values(batch));
      expect(opened.relay.roundTrips).toBe(1);
    });

    test('keeps a batch of a thousand', async () => {
      const tenant = freshTenant();
      const many = Array.from({ length: 1_000 }, (_, i) =>
        entry(faceEmbeddings, { contentHash: sha256(`${i}`), model }, [{ ...FACE, n: i }]),
      );
      await tier.write(tenant, many);
      expect(await tier.read(tenant, asked(many))).toStrictEqual(values(many));
    });

    test('takes no faces and empty text for values', async () => {
      const tenant = freshTenant();
      const entries = [
        entry(faceEmbeddings, { contentHash: sha256('empty'), model }, []),
        entry(faceDetections, { contentHash: sha256('empty'), model }, []),
        entry(perceptualHashes, sha256('empty'), ''),
      ];
      await tier.write(tenant, entries);
      expect(await tier.read(tenant, asked(entries))).toEqual(values(entries));
      for (const one of entries) expect(await tier.read(tenant, asked([one]))).toEqual(values([one]));
    });

    test('tells damaged bytes from absent ones, alone and within a batch', async () => {
      const tenant = freshTenant();
      const [damaged, whole] = examples() as [Entry, Entry];
      await tier.write(tenant, [damaged, whole]);
      await opened.damage(tenant, damaged);
      const corrupt = expect.objectContaining({ state: 'corrupt', error: expect.any(Error) });
      expect(await tier.read(tenant, asked([damaged]))).toEqual([corrupt]);
      const missing = lookup(perceptualHashes, sha256('missing'));
      expect(await tier.read(tenant, [missing, ...asked([damaged, whole])])).toEqual([
        { state: 'absent' },
        corrupt,
        ...values([whole]),
      ]);
    });

    test('replaces damaged bytes by what is written', async () => {
      const tenant = freshTenant();
      const [one] = examples() as [Entry];
      await tier.write(tenant, [one]);
      await opened.damage(tenant, one);
      await tier.write(tenant, [one]);
      expect(await tier.read(tenant, asked([one]))).toStrictEqual(values([one]));
    });

    test('keeps tenants apart, also those whose names begin alike', async () => {
      const tenant = freshTenant();
      const others = [`${tenant}.`, tenant.slice(0, -1), tenant.toUpperCase(), '..'];
      await tier.write(tenant, examples('mine'));
      for (const other of others) {
        expect(await tier.read(other, asked(examples('mine')))).toEqual(examples().map(() => ({ state: 'absent' })));
      }
      const theirs = examples('mine').map((one) => ({ ...one, value: examples('theirs')[0]?.value }));
      await tier.write(others[0] as string, [theirs[0] as Entry]);
      expect(await tier.read(tenant, asked(examples('mine')))).toStrictEqual(values(examples('mine')));
    });

    test('keeps models apart', async () => {
      const tenant = freshTenant();
      const contentHash = sha256('models');
      const entries = ['a', 'b', 'a/b', 'a@1'].map((name) =>
        entry(faceEmbeddings, { contentHash, model: name }, [{ ...FACE, name }]),
      );
      await tier.write(tenant, entries);
      expect(await tier.read(tenant, asked(entries))).toStrictEqual(values(entries));
      expect(await tier.read(tenant, [lookup(faceEmbeddings, { contentHash, model: 'c' })])).toEqual([
        { state: 'absent' },
      ]);
    });

    test('replaces an older value by a later one', async () => {
      const tenant = freshTenant();
      const key = { contentHash: sha256('changed'), model };
      await tier.write(tenant, [entry(faceEmbeddings, key, [FACE])]);
      await tier.write(tenant, [entry(faceEmbeddings, key, [ODD_FACE, FACE])]);
      expect(await tier.read(tenant, [lookup(faceEmbeddings, key)])).toEqual([
        { state: 'value', value: [ODD_FACE, FACE] },
      ]);
    });

    test('takes the last entry of a key that stands several times in a batch', async () => {
      const tenant = freshTenant();
      const key = sha256('repeated');
      const batch = ['1', '2', '3'].map((value) => entry(perceptualHashes, key, value));
      await tier.write(tenant, batch);
      expect(await tier.read(tenant, asked(batch.slice(0, 1)))).toEqual([{ state: 'value', value: '3' }]);
    });

    test.each([0, 1, MOMENT, 1_700_000_000_999, 4_102_444_800_001, Date.now()])(
      'keeps the moment %d to the millisecond',
      async (fetchedAt) => {
        const tenant = freshTenant();
        const one = entry(crawlUrls, sha256('moment'), crawlUrl('moment', { fetchedAt }));
        await tier.write(tenant, [one]);
        expect(await tier.read(tenant, asked([one]))).toEqual(values([one]));
        const [other] = examples() as [Entry];
        const [within] = await tier.read(tenant, asked([one, other]));
        expect(within).toEqual({ state: 'value', value: one.value });
      },
    );

    test('serves its first callers all at once', async () => {
      await using fresh = await open();
      const [one] = examples() as [Entry];
      const answers = await Promise.all(
        Array.from({ length: 20 }, (_, i) => fresh.tier.read(`${freshTenant()}-${i}`, asked([one]))),
      );
      expect(answers).toEqual(Array(20).fill([{ state: 'absent' }]));
    });

    test('writers of the same keys in opposite orders do not block each other', async () => {
      const tenant = freshTenant();
      const keys = Array.from({ length: 200 }, (_, i) => sha256(`${i}`));
      const batch = (by: string) => keys.map((key) => entry(perceptualHashes, key, by));
      await Promise.all(
        Array.from({ length: 30 }, (_, i) => tier.write(tenant, i % 2 === 0 ? batch('even') : batch('odd').reverse())),
      );
      const found = await tier.read(tenant, asked(batch('')));
      expect(new Set(found.map((one) => one.state))).toEqual(new Set(['value']));
    });

    test('answers a ping', async () => {
      await expect(tier.ping()).resolves.toBeUndefined();
    });

    test('does not take our own mistakes for an outage', async () => {
      const bad = lookup(perceptualHashes, 'no hash');
      const failure = await tier.read(freshTenant(), [bad]).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(Error);
      expect(tier.judge(failure)).toBe('wrong');
    });

    test('takes a server that nobody can reach for an outage', async () => {
      await using fresh = await open();
      await fresh.tier.ping();
      await fresh.relay[Symbol.asyncDispose]();
      const failure = await fresh.tier.ping().catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(Error);
      expect(fresh.tier.judge(failure)).toBe('away');
    });

    test('closes without having been used', async () => {
      await using fresh = await open();
      expect(fresh.tier.name).toBe(tier.name);
    });
  });
}
