/** What commands print: figures one below the other, tables, or JSON. */

/** JSON where it is asked for, else the figures, each behind its label. */
export function print(json: boolean | undefined, value: unknown, figures: readonly (readonly [string, unknown])[]) {
  const width = Math.max(...figures.map(([label]) => label.length)) + 2;
  const lines = figures.map(([label, figure]) => `${label.padEnd(width)}${String(figure)}`);
  process.stdout.write(`${json ? JSON.stringify(value, null, 2) : lines.join('\n')}\n`);
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

/** Tells a terminal how far it is with what takes a while; the line goes when all is done. */
export function howFar(done: number, of: number): void {
  if (!process.stderr.isTTY) return;
  process.stderr.write(`\r\u001b[2K${done < of ? `${done.toLocaleString('en')} of ${of.toLocaleString('en')}` : ''}`);
}
