/** Which rules of a robots.txt are for us, and what they say of a path (RFC 9309 section 2.2). */
import { normalised } from '../kinds/url.js';

/** The group for us, or else that for all; without rules where there is none. */
export interface RobotsRules {
  readonly rules: readonly Rule[];
  /** `Crawl-delay`, in seconds; 0 where there is none. */
  readonly delaySeconds: number;
}

export interface Rule {
  readonly allows: boolean;
  /** In the spelling of canonical URLs. */
  readonly pattern: string;
  /** What stands between the wildcards. */
  readonly parts: readonly string[];
  /** Whether the path has to end with the last part. */
  readonly isAnchored: boolean;
}

interface Group extends RobotsRules {
  rules: Rule[];
  delaySeconds: number;
}

const RECORD = /^(user-agent|allow|disallow|crawl-delay)\s*:\s*(.*)$/is;
/** Our token may have a version behind it (section 2.2.1). */
const PRODUCT_TOKEN = /^(?:\*(?!\S)|[\w-]+)/;
/** How a rule spells what would be a wildcard (section 2.2.3). */
const LITERAL: Readonly<Record<string, string>> = { '*': '%2A', $: '%24' };

/**
 * @param text of a robots.txt; every other record than `User-agent`, `Allow`, `Disallow` and `Crawl-delay` is passed over
 * @param crawler our product token, in lower case
 */
export function rulesFor(crawler: string, text: string): RobotsRules {
  const groups = new Map<string, Group>();
  const concerned = new Set<string>();
  let isHead = false;
  for (const { field, value } of recordsOf(text)) {
    const isName = field === 'user-agent';
    if (isName && !isHead) concerned.clear();
    isHead = isName;
    if (!isName) for (const name of concerned) enter(groupOf(groups, name), field, value);
    const name = isName ? PRODUCT_TOKEN.exec(value.toLowerCase())?.[0] : undefined;
    if (name === '*' || name === crawler) concerned.add(name);
  }
  return groups.get(crawler) ?? groups.get('*') ?? { rules: [], delaySeconds: 0 };
}

/** The same rules as the text of a robots.txt; empty where they close nothing and ask for no delay. */
export function textOf({ rules, delaySeconds }: RobotsRules): string {
  const lines = [...(delaySeconds > 0 ? [`Crawl-delay: ${delaySeconds}`] : []), ...rules.map(lineOf)];
  return lines.length === 0 ? '' : ['User-agent: *', ...lines].join('\n');
}

/** The rule as a line of its file. */
export function lineOf({ allows, pattern }: Rule): string {
  return `${allows ? 'Allow' : 'Disallow'}: ${pattern}`;
}

/**
 * The rule that decides: the longest that matches, one that allows before one that does not; `null` where none does.
 *
 * @param path path and query of a canonical URL
 */
export function decidingRule({ rules }: RobotsRules, path: string): Rule | null {
  const literal = path.replace(/[*$]/g, (character) => LITERAL[character] as string);
  let best: Rule | null = null;
  for (const rule of rules) {
    const isBetter = !best || rule.pattern.length > best.pattern.length || (rule.allows && isAsLong(rule, best));
    if (isBetter && matches(rule, literal)) best = rule;
  }
  return best;
}

function isAsLong(one: Rule, other: Rule): boolean {
  return one.pattern.length === other.pattern.length;
}

/** Each part is looked for once, behind the one before it: what matches at all matches so. */
function matches({ parts, isAnchored }: Rule, path: string): boolean {
  const last = parts.length - 1;
  if (!path.startsWith(parts[0] as string)) return false;
  let at = (parts[0] as string).length;
  for (let i = 1; i < last || (i === last && !isAnchored); i++) {
    const found = path.indexOf(parts[i] as string, at);
    if (found === -1) return false;
    at = found + (parts[i] as string).length;
  }
  if (!isAnchored) return true;
  if (last === 0) return at === path.length;
  return path.endsWith(parts[last] as string) && path.length - (parts[last] as string).length >= at;
}

function* recordsOf(text: string): Generator<{ field: string; value: string }> {
  for (const line of text.split(/\r\n|\r|\n/)) {
    const [, field, value] = RECORD.exec(line.replace(/#.*/s, '').trim()) ?? [];
    if (field !== undefined && value !== undefined) yield { field: field.toLowerCase(), value };
  }
}

function groupOf(groups: Map<string, Group>, name: string): Group {
  const group = groups.get(name) ?? { rules: [], delaySeconds: 0 };
  groups.set(name, group);
  return group;
}

function enter(group: Group, field: string, value: string): void {
  if (field !== 'crawl-delay') {
    // An empty rule says nothing.
    if (value !== '') group.rules.push(toRule(field === 'allow', value));
  } else if (!Number.isNaN(Number(value))) group.delaySeconds = Math.max(Number(value), 0);
}

function toRule(allows: boolean, value: string): Rule {
  const pattern = normalised(value.replace(/\P{ASCII}+/gu, encodeURIComponent));
  const isAnchored = pattern.endsWith('$');
  const parts = (isAnchored ? pattern.slice(0, -1) : pattern).split(/\*+/);
  return { allows, pattern, parts: parts.map((part) => part.replaceAll('$', LITERAL.$ as string)), isAnchored };
}
