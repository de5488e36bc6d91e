/** A progress bar on a terminal, a line a phase elsewhere. */

const WIDTH = 30;

export class Progress {
  #label = '';
  #total = 0;
  #done = 0;

  constructor(private readonly out: NodeJS.WriteStream) {}

  begin(label: string, total: number): void {
    this.#label = label;
    this.#total = total;
    this.#done = 0;
    this.#draw();
  }

  step(): void {
    this.at(this.#done + 1);
  }

  at(done: number): void {
    this.#done = Math.max(done, 0);
    this.#draw();
  }

  end(): void {
    if (this.out.isTTY) this.out.write('\r\u001b[2K');
    this.out.write(`${this.#label}: ${this.#done} of ${this.#total}\n`);
  }

  #draw(): void {
    if (!this.out.isTTY) return;
    const full = Math.round((WIDTH * this.#done) / Math.max(this.#total, 1));
    const bar = '█'.repeat(full) + '░'.repeat(WIDTH - full);
    this.out.write(`\r\u001b[2K${this.#label} ${bar} ${this.#done}/${this.#total}`);
  }
}
