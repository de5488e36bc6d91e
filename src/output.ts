/** What commands print: figures one below the other, tables, or JSON. */

/** JSON where it is asked for, else the text. */
export function print(json: boolean | undefined, value: unknown, text: string): void {
  process.stdout.write(`${json ? JSON.stringify(value, null, 2) : text}\n`);
}

/** Figures one below the other, each behind its label. */
export function figures(rows: readonly (readonly [string, unknown])[]): string {
  const texts = rows.map(([label, figure]) => [printable(label), printable(String(figure))] as const);
  const width = Math.max(...texts.map(([label]) => label.length)) + 2;
  return texts.map(([label, figure]) => `${label.padEnd(width)}${figure}`).join('\n');
}

/** What `--help` shows last. */
export function examples(...commands: readonly string[]): string {
  return `\nExamples:\n${commands.map((command) => `  ${command}`).join('\n')}`;
}

type Cell = string | number;

/** Columns under their heads, as wide as they need to be; numbers to the right. */
export function table(heads: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const columns = heads.map((head, i) => {
    const cells = rows.map((row) => row[i] ?? '');
    const texts = [head, ...cells.map(printable)];
    const width = Math.max(...texts.map((text) => text.length));
    const toTheRight = cells.some((cell) => typeof cell === 'number');
    return texts.map((text) => (toTheRight ? text.padStart(width) : text.padEnd(width)));
  });
  return [heads, ...rows]
    .map((_, line) =>
      columns
        .map((texts) => texts[line])
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** What others chose must not steer the terminal. */
function printable(cell: Cell): string {
  return typeof cell === 'number' ? cell.toLocaleString('en') : cell.replace(/\p{C}/gu, '?');
}

const COLOURS = { red: 31, green: 32, yellow: 33 } as const;
type Colour = keyof typeof COLOURS;

/** Colours the words that lines begin with, on a terminal that shows colours and where `NO_COLOR` is not set. */
export function coloured(text: string, words: Readonly<Record<string, Colour>>, out = process.stdout): string {
  if (!out.isTTY || !out.hasColors()) return text;
  return text.replace(/^[\w-]+/gm, (word) => {
    const colour = Object.hasOwn(words, word) ? words[word] : undefined;
    return colour ? `\u001b[${COLOURS[colour]}m${word}\u001b[39m` : word;
  });
}
