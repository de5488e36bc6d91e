/** How far a command is with what takes a while: a bar on a terminal, a line now and then elsewhere. */

const WIDTH = 30;
/** From one line to the next where there is no terminal. */
const LINE_MS = 10_000;

export class Progress implements Disposable {
  #label = '';
  #total: number | undefined;
  #done = 0;
  #note = '';
  #lineAt = 0;
  /** What the terminal shows now. */
  #drawn = '';

  constructor(private readonly out: NodeJS.WriteStream = process.stderr) {}

  /** @param total `undefined` where nobody knows it */
  begin(label: string, total?: number): void {
    this.#label = label;
    this.#total = total;
    this.#lineAt = performance.now();
    this.at(0);
  }

  step(): void {
    this.at(this.#done + 1);
  }

  /** @param note what else is to be known now */
  at(done: number, note = ''): void {
    this.#done = Math.max(done, 0);
    this.#note = note && `, ${note}`;
    if (this.out.isTTY) return this.#draw();
    if (performance.now() - this.#lineAt < LINE_MS) return;
    this.#lineAt = performance.now();
    this.#line();
  }

  /** Leaves a line in the place of the bar. */
  end(): void {
    this.clear();
    this.#line();
  }

  /** Takes the bar away; of what follows, nothing stands behind it. */
  clear(): void {
    if (this.out.isTTY) this.out.write('\r\u001b[2K');
    this.#drawn = '';
  }

  [Symbol.dispose](): void {
    this.clear();
  }

  #line(): void {
    const of = this.#total === undefined ? '' : ` of ${number(this.#total)}`;
    this.out.write(`${this.#label}: ${number(this.#done)}${of}${this.#note}\n`);
  }

  #draw(): void {
    // A line that wraps could not be taken away.
    const text = `${this.#label} ${this.#bar()}${this.#note}`.slice(0, (this.out.columns || 80) - 1);
    if (text !== this.#drawn) this.out.write(`\r\u001b[2K${text}`);
    this.#drawn = text;
  }

  #bar(): string {
    if (this.#total === undefined) return number(this.#done);
    const full = Math.min(WIDTH, Math.round((WIDTH * this.#done) / Math.max(this.#total, 1)));
    return `${'█'.repeat(full)}${'░'.repeat(WIDTH - full)} ${number(this.#done)}/${number(this.#total)}`;
  }
}

function number(count: number): string {
  return count.toLocaleString('en');
}
