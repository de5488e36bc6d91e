/** A scrape, read by a port of the Prometheus project's own parser. */
import parse, { type Family } from 'parse-prometheus-text-format';

export interface Scrape {
  readonly families: readonly Family[];
  /** The sum of the samples of `name` that carry all of `labels`. */
  value(name: string, labels: Readonly<Record<string, string>>): number;
}

export function readMetrics(text: string): Scrape {
  const families = parse(text);
  return {
    families,
    value: (name, labels) => {
      const family = families.find((one) => one.name === name);
      if (!family) throw new Error(`the scrape has no ${name}`);
      const wanted = Object.entries(labels);
      const samples = family.metrics.filter((one) => wanted.every(([label, value]) => one.labels?.[label] === value));
      return samples.reduce((sum, { value }) => sum + Number(value), 0);
    },
  };
}
