/** The rows as text, a line each. */
import type { PeerName, Row } from './compare.js';

const PEERS: readonly PeerName[] = ['cacheable', 'bentocache', 'cache-manager'];
const HEAD = ['work', 'ours', 'raw', 'ratio', 'to reach', '', ...PEERS];

export function tableOf(rows: readonly Row[]): string {
  const lines = [HEAD, ...rows.map(cellsOf)];
  const widths = HEAD.map((_, i) => Math.max(...lines.map((cells) => (cells[i] ?? '').length)));
  const aligned = lines.map((cells) =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  '),
  );
  const [head, ...body] = aligned.map((line) => line.trimEnd());
  const text = [head, ...body.flatMap((line, i) => [line, ...alsoOf(rows[i] as Row)])];
  return `${text.join('\n')}\n\nPeers as ratios to raw, like ours. –: cannot do it.\n`;
}

function cellsOf(row: Row): string[] {
  const { ours, raw, ratio, target, ok, better, unit } = row;
  const goal = target === null ? '' : `${better === 'lower' ? '≤' : '≥'} ${target}`;
  const peers = PEERS.map((name) => figureOf(row.peers[name] ?? '–'));
  return [
    row.work,
    `${figureOf(ours)} ${unit}`,
    raw === null ? '' : `${figureOf(raw)} ${unit}`,
    ratio === null ? '' : figureOf(ratio),
    goal,
    ok ? '' : 'missed',
    ...(raw === null ? PEERS.map(() => '') : peers),
  ];
}

function alsoOf({ also }: Row): string[] {
  const figures = Object.entries(also).map(([name, figure]) => `${name} ${figureOf(figure)}`);
  return figures.length > 0 ? [`  ${figures.join(', ')}`] : [];
}

/** Three digits that count. */
function figureOf(figure: number | string): string {
  if (typeof figure === 'string') return figure;
  const digits = Math.abs(figure) >= 100 ? 0 : Math.abs(figure) >= 10 ? 1 : Math.abs(figure) >= 1 ? 2 : 3;
  return figure.toFixed(digits);
}
