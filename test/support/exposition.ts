/** A strict reader of Prometheus's text format 0.0.4, which also knows the rules of `promtool check metrics`. */

interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  readonly samples: Sample[];
}

const NAME = '[a-zA-Z_:][a-zA-Z0-9_:]*';
const SAMPLE = new RegExp(`^(${NAME})(?:\\{(.*)\\})? (\\S+)$`);
const LABEL = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)/;
const SUFFIXES: Readonly<Record<string, readonly string[]>> = {
  histogram: ['_bucket', '_sum', '_count'],
  summary: ['', '_sum', '_count'],
};

/** @throws naming the line that is not in the format, or that comes where it must not */
export function parseExposition(text: string): Map<string, Family> {
  const families = new Map<string, Family>();
  let current: { name: string; help: string; type: string; samples: Sample[] } | undefined;
  if (!text.endsWith('\n')) throw new Error('the last line has no end');
  for (const line of text.split('\n')) {
    if (line === '') continue;
    const [, keyword, name = '', rest = ''] = new RegExp(`^# (HELP|TYPE) (${NAME}) (.+)$`).exec(line) ?? [];
    if (keyword === 'HELP') {
      if (families.has(name)) throw new Error(`a second HELP: ${line}`);
      current = { name, help: rest, type: '', samples: [] };
      families.set(name, current);
    } else if (keyword === 'TYPE') {
      if (!current || current.name !== name || current.type !== '') throw new Error(`TYPE out of place: ${line}`);
      if (!['counter', 'gauge', 'histogram', 'summary'].includes(rest)) throw new Error(`unknown type: ${line}`);
      current.type = rest;
    } else {
      const sample = parseSample(line);
      const suffixes = SUFFIXES[current?.type ?? ''] ?? [''];
      if (!current || !suffixes.some((suffix) => sample.name === current?.name + suffix)) {
        throw new Error(`a sample outside of its family: ${line}`);
      }
      current.samples.push(sample);
    }
  }
  return families;
}

/** The sum of the samples of a family that carry all of `labels`. @throws where the scrape has no such family */
export function valueOf(families: Map<string, Family>, name: string, labels: Readonly<Record<string, string>>): number {
  const family = families.get(name);
  if (!family) throw new Error(`the scrape has no ${name}`);
  const wanted = Object.entries(labels);
  const samples = family.samples.filter((sample) => wanted.every(([label, value]) => sample.labels[label] === value));
  return samples.reduce((sum, { value }) => sum + value, 0);
}

/** What `promtool check metrics` would say, family by family. */
export function lint(families: Map<string, Family>): string[] {
  return [...families.values()].flatMap(({ name, help, type, samples }) => {
    const said: string[] = [];
    if (help.trim() === '') said.push(`${name}: no help text`);
    if (type === 'counter' && !name.endsWith('_total')) said.push(`${name}: counter without _total`);
    if (type !== 'counter' && name.endsWith('_total')) said.push(`${name}: _total is for counters`);
    if (!/histogram|summary/.test(type) && /_(count|sum|bucket)$/.test(name)) said.push(`${name}: reserved suffix`);
    if (/_(milliseconds|ms|minutes|hours|kilobytes|megabytes|kb|mb|percent)(_|$)/.test(name)) {
      said.push(`${name}: not a base unit`);
    }
    if (/[A-Z]/.test(name)) said.push(`${name}: not snake_case`);
    if (/_(counter|gauge|histogram|summary)(_|$)/.test(name)) said.push(`${name}: names its type`);
    const seen = samples.map((one) => JSON.stringify([one.name, Object.entries(one.labels).sort()]));
    if (new Set(seen).size < seen.length) said.push(`${name}: a series occurs twice`);
    return said;
  });
}

function parseSample(line: string): Sample {
  const [, name, labelText = '', text] = SAMPLE.exec(line) ?? [];
  if (!name || !text) throw new Error(`not a sample: ${line}`);
  // In any case, as Prometheus reads them: prom-client writes `Nan`.
  const value = /^nan$/i.test(text) ? NaN : Number(text.replace(/inf$/i, 'Infinity'));
  if (Number.isNaN(value) && !/^nan$/i.test(text)) throw new Error(`not a number: ${line}`);
  const labels: Record<string, string> = {};
  for (let left = labelText; left !== ''; ) {
    const [whole, key, label] = LABEL.exec(left) ?? [];
    if (!whole || key === undefined || label === undefined || key in labels) throw new Error(`bad labels: ${line}`);
    labels[key] = label;
    left = left.slice(whole.length);
  }
  return { name, labels, value };
}
