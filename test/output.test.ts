/** What commands print, where: figures for people, JSON for scripts, colours and bars on a terminal alone. */
import { beforeAll, describe, expect, test } from 'vitest';
import { figures, table } from '../src/output.js';
import { Progress } from '../src/progress.js';
import { runCommand, startOnTerminal } from './support/command.js';

const BARE = { code: 0, err: '' };

/** As much of a stream as a bar needs. */
function stream(isTTY: boolean, columns = 80) {
  const written: string[] = [];
  const out = { isTTY, columns, write: (text: string) => written.push(text) } as unknown as NodeJS.WriteStream;
  return { out, written };
}

describe('progress', () => {
  test('is a bar on a terminal, drawn where something changed, and a line in the end', () => {
    const { out, written } = stream(true);
    const progress = new Progress(out);
    progress.begin('crawling', 1_500);
    progress.at(500, '2 put off');
    progress.at(500, '2 put off');
    progress.step();
    progress.end();
    const at = (bar: string) => `\r\u001b[2Kcrawling ${bar}`;
    expect(written).toEqual([
      at(`${'░'.repeat(30)} 0/1,500`),
      at(`${'█'.repeat(10)}${'░'.repeat(20)} 500/1,500, 2 put off`),
      at(`${'█'.repeat(10)}${'░'.repeat(20)} 501/1,500`),
      '\r\u001b[2K',
      'crawling: 501 of 1,500\n',
    ]);
  });

  test('never wraps, and counts where nobody knows the end', () => {
    const { out, written } = stream(true, 20);
    const progress = new Progress(out);
    progress.begin('enqueuing');
    progress.at(12_000, 'and so on and so on');
    expect(written.at(-1)).toBe('\r\u001b[2Kenqueuing 12,000, a');
  });

  test('is a line in the end elsewhere, and nothing before', () => {
    const { out, written } = stream(false);
    const progress = new Progress(out);
    progress.begin('crawling', 3);
    for (let n = 0; n < 3; n++) progress.step();
    expect(written).toEqual([]);
    progress.end();
    progress[Symbol.dispose]();
    expect(written).toEqual(['crawling: 3 of 3\n']);
  });
});

describe('what strangers chose', () => {
  // Clears the screen, in both spellings of the escape; overwrites the line; begins another; turns the text around.
  const STEERING = 'a\u001b[2Jb\u009b2Jc\rd\ne\u202ef';
  const PRINTED = 'a?[2Jb?2Jc?d?e?f';

  test('steers no terminal as a figure or its label, which stands in one line', () => {
    expect(
      figures([
        ['etag', STEERING],
        [STEERING, 1_234],
      ]),
    ).toBe(`etag              ${PRINTED}\n${PRINTED}  1234`);
  });

  test('nor in a table', () => {
    expect(table(['host', 'failed'], [[STEERING, 1_234]])).toBe(`host              failed\n${PRINTED}   1,234`);
  });
});

describe('every command', () => {
  let commands: string[];

  beforeAll(async () => {
    const { out } = await runCommand(['--help'], {});
    const names = [...out.slice(out.indexOf('Commands:')).matchAll(/^ {2}(\w+) /gm)].map(([, name = '']) => name);
    commands = names.flatMap((name) => (name === 'failed' ? ['failed list', 'failed retry'] : [name]));
    commands.splice(commands.indexOf('help'), 1);
  });

  test('explains itself, and prints JSON where there is something to read', async () => {
    expect(commands).toHaveLength(15);
    for (const command of commands) {
      const { out, ...rest } = await runCommand([...command.split(' '), '--help'], {});
      expect(rest).toEqual(BARE);
      expect(out).toMatch(new RegExp(`^Usage: hybrid-cache ${command}\\b`));
      expect([command, out.includes('--json')]).toEqual([command, !/^(start|serve|worker)$/.test(command)]);
    }
  }, 240_000);
});

describe('colours', () => {
  // Without any configuration it has one finding, a problem.
  const doctor = ['doctor'];
  const RED = '\u001b[31mproblem\u001b[39m';

  test('stand on a terminal', async () => {
    expect((await startOnTerminal(doctor, {}).ended).out).toContain(RED);
  });

  test.each([
    ['NO_COLOR is set', { NO_COLOR: '1' }],
    ['the terminal has none', { TERM: 'dumb' }],
  ])('and not where %s', async (_, env) => {
    const { out } = await startOnTerminal(doctor, env).ended;
    expect(out).toMatch(/^problem /m);
    expect(out).not.toContain('\u001b');
  });

  test('nor in a pipe', async () => {
    const { out } = await runCommand(doctor, {});
    expect(out).toMatch(/^problem /m);
    expect(out).not.toContain('\u001b');
  });
});
