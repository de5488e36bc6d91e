/** Every promise of docs/promises.md is shown by a test that names it. */
import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

const promised = [...readFileSync('docs/promises.md', 'utf8').matchAll(/^\| (M\d+) /gm)].map(([, id]) => id as string);

const titles = readdirSync('test', { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts') && file !== 'promises.test.ts')
  .flatMap((file) => [...readFileSync(`test/${file}`, 'utf8').matchAll(/\[(M\d+(?:, M\d+)*)\]/g)])
  .flatMap(([, ids = '']) => ids.split(', '));

test('52 promises are made', () => {
  expect(promised).toEqual(Array.from({ length: 52 }, (_, i) => `M${i + 1}`));
});

test.each(promised)('%s is shown by a test', (id) => {
  expect(titles).toContain(id);
});
