/**
 * A histogram with two labels for what happens hundreds of thousands of times a second: observing is one addition to an array, and
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
  /** By the first label, then by the second. */
  readonly #series = new Map<string, Map<string, Series<L>>>();

  constructor(
    readonly name: string,
    readonly help: string,
    /** Upper bounds in seconds, rising. */
    private readonly bounds: readonly number[],
    private readonly labelNames: readonly [L, L],
    registry: Registry,
  ) {
    registry.registerMetric(this as never);
  }

  observe(seconds: number, first: string, second: string): void {
    const series = this.#series.get(first)?.get(second) ?? this.#begin(first, second);
    let bucket = 0;
    while (bucket < this.bounds.length && seconds > (this.bounds[bucket] as number)) bucket++;
    series.counts[bucket] = (series.counts[bucket] as number) + 1;
    series.sum += seconds;
  }

  /** As prom-client's registry asks its metrics. */
  async get() {
    const values = [...this.#series.values()].flatMap((all) =>
      [...all.values()].flatMap((series) => this.#valuesOf(series)),
    );
    return { name: this.name, help: this.help, type: 'histogram', values, aggregator: 'sum' };
  }

  reset(): void {
    this.#series.clear();
  }

  #begin(first: string, second: string): Series<L> {
    const [outer, inner] = this.labelNames;
    const labels = { [outer]: first, [inner]: second } as Record<L, string>;
    const series = { labels, counts: new Array<number>(this.bounds.length + 1).fill(0), sum: 0 };
    const all = this.#series.get(first) ?? new Map<string, Series<L>>();
    this.#series.set(first, all.set(second, series));
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
