/** What the documents say of names is true of the code. */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import * as library from '../src/index.js';

const guide = readFileSync('docs/coming-from-python.md', 'utf8');

/** The names of the right-hand column that are called or made new. */
function promisedNames(): string[] {
  const rows = guide.split('\n').filter((line) => line.startsWith('| `') || line.startsWith('| –'));
  const cells = rows.map((row) => row.split('|')[2] ?? '');
  return [
    ...new Set(
      cells.flatMap((cell) => [...cell.replace(/→.*/, '').matchAll(/([a-z]+[A-Z]\w+)/g)].map(([name]) => name)),
    ),
  ];
}

test('every name that the Python service’s are mapped to exists [M47]', () => {
  const methods = Object.getOwnPropertyNames(library.HybridCacheService.prototype);
  const names = promisedNames().filter((name) =>
    /^(get|cache|should|store|invalidate|reset|clear|close|find)/.test(name),
  );
  expect(names.length).toBeGreaterThan(15);
  for (const name of names) expect([...methods, ...Object.keys(library)], name).toContain(name);
});

test('the containers are those that the service is made for [M11]', () => {
  const compose = readFileSync('docker-compose.yml', 'utf8');
  expect(compose).toMatch(/image: redis:7/);
  expect(compose).toMatch(/image: postgres:1\d/);
  expect(compose).toMatch(/noeviction/);
});
