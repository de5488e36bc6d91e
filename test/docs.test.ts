/** What the documents say of names is true of the code, and every public name says what it is. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { SourceFile } from 'typescript/unstable/ast';
import { API as Compiler, type Symbol as Name, type Project, SymbolFlags } from 'typescript/unstable/sync';
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

// TypeDoc would ask for the same, but works with TypeScript up to 6. TypeScript 7 has no other interface than this one.
test('every public name and every member of it has a doc comment where it is published', () => {
  const names = publicNames();
  expect([...names.keys()]).toEqual(expect.arrayContaining(['HybridCacheService', 'SkipAnswer.reason']));
  expect([...names].filter(([, comment]) => comment === '').map(([name]) => name)).toEqual([]);
});

/** The doc comment, less its tags, of all that the package's types export, and of its members: `SkipAnswer.reason`. */
function publicNames(): Map<string, string> {
  const file = resolve('dist/src/index.d.ts');
  const compiler = new Compiler();
  try {
    const project = compiler.updateSnapshot({ openFiles: [file] }).getDefaultProjectForFile(file) as Project;
    const { checker, program } = project;
    const module = checker.getSymbolAtLocation(program.getSourceFile(file) as SourceFile) as Name;
    const names = checker.getExportsOfModule(module).flatMap((exported) => {
      const original = exported.flags & SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
      const members = [...original.getMembers().values()].filter(isPublicMember);
      return [
        [exported.name, original] as const,
        ...members.map((member) => [`${exported.name}.${member.name}`, member] as const),
      ];
    });
    return new Map(names.map(([name, symbol]) => [name, symbol.getDocumentationComment(checker)]));
  } finally {
    compiler.close();
  }
}

function isPublicMember({ flags, name }: Name): boolean {
  const kinds = SymbolFlags.Property | SymbolFlags.Method | SymbolFlags.Accessor;
  return (flags & kinds) !== 0 && !name.includes('#');
}
