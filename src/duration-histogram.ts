/**
 * A histogram for what happens hundreds of thousands of times a second: observing is one addition to an array, and
 * Prometheus' form is made at each scrape. prom-client's own takes longer than the look-up around it.
 */
import type { Registry } from 'prom-client';

interface Series<L extends string> {
  readonly labels: Readonly<Record<L, string>>;
  /** Observations by bucket, not yet added up; the last one is beyond all bounds. */
  readonly counts: number[];
  sum: number;
}

export class DurationHistogram<L extends string> {
  readonly #series = new Map<string, Series<L>>();

  constructor(
    readonly name: string,
    readonly help: string,
    /** Upper bounds in seconds, rising. */
    private readonly bounds: readonly number[],
    private readonly labelNames: readonly L[],
    registry: Registry,
  ) {
    registry.registerMetric(this as never);
  }

  /** `labels` in the order of the names. */
  observe(seconds: number, ...labels: string[]): void {
    const series = this.#series.get(labels.join()) ?? this.#begin(labels);
    let bucket = 0;
    while (bucket < this.bounds.length && seconds > (this.bounds[bucket] as number)) bucket++;
    series.counts[bucket] = (series.counts[bucket] as number) + 1;
    series.sum += seconds;
  }

  /** As prom-client's registry asks its metrics. */
  async get() {
    const values = [...this.#series.values()].flatMap((series) => this.#valuesOf(series));
    return { name: this.name, help: this.help, type: 'histogram', values, aggregator: 'sum' };
  }

  reset(): void {
    this.#series.clear();
  }

  #begin(cells: readonly string[]): Series<L> {
    const labels = Object.fromEntries(this.labelNames.map((name, i) => [name, cells[i]])) as Record<L, string>;
    const series = { labels, counts: new Array<number>(this.bounds.length + 1).fill(0), sum: 0 };
    this.#series.set(cells.join(), series);
    return series;
  }

  #valuesOf({ labels, counts, sum }: Series<L>) {
    let total = 0;
    const buckets = counts.map((count, i) => {
      total += count;
      const le = this.bounds[i] ?? '+Inf';
      return { labels: { le, ...labels }, value: total, metricName: `${this.name}_bucket` };
    });
    return [
      ...buckets,
      { labels, value: sum, metricName: `${this.name}_sum` },
      { labels, value: total, metricName: `${this.name}_count` },
    ];
  }
}
