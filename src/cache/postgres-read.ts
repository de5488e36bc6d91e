/** The statements that read, made from the kinds' declarations. */

import type { AnyKind } from '../kinds/kind.js';
import {
  Arrays,
  addKey,
  CURRENT,
  column,
  type Group,
  jsonCells,
  matching,
  names,
  once,
  onlyItem,
  plainCells,
  type Statement,
} from './statement.js';
import type { Lookup } from './tier.js';

/** The generation of a tenant, where it is known; otherwise PostgreSQL looks it up. */
export type Known = (tenantId: string) => number | null;

/** Rows of `part, slot, generation, version`, then the cells: of several kinds, in one JSON array. */
export function selection(groups: readonly Group<Lookup>[], known: Known): Statement {
  const only = onlyItem(groups);
  if (only) return selectionOfOne(only, known);
  const values: unknown[] = [];
  const asked = groups.map(({ kind, items }) => {
    const arrays = new Arrays(values);
    arrays.add(
      'tenant_id',
      'text',
      column(items, (item) => item.tenantId),
    );
    arrays.add(
      'known',
      'bigint',
      column(items, (item) => known(item.tenantId)),
    );
    addKey(arrays, kind, items);
    return arrays;
  });
  const name = `read ${names(groups)}`;
  return { name, text: once(name, () => selectionText(groups, asked)), values };
}

function selectionText(groups: readonly Group<Lookup>[], asked: readonly Arrays[]): string {
  const parts = groups.map(({ kind }, part) => {
    const cells = groups.length > 1 ? jsonCells(kind) : plainCells(kind);
    const found =
      `select t.generation, t.version, ${cells} from ${kind.table.name} t ` +
      `where ${matching(kind, `coalesce(a.known, ${CURRENT('a.tenant_id')})`)}${latest(kind)}`;
    const rows = asked[part]?.from('a');
    return `select ${part}::int, a.slot::int - 1, found.* from ${rows} cross join lateral (${found}) found`;
  });
  return parts.join(' union all ');
}

/** What is asked most, without the arrays. */
function selectionOfOne({ kind, tenantId, parts }: Lookup, known: Known): Statement {
  const generation = known(tenantId);
  // A plan that could look it up is set up whole each time, whether or not it has to.
  const name = `read one ${kind.name}${generation === null ? ' anew' : ''}`;
  const text = once(name, () => {
    const keys = kind.table.key.map(({ name: key, type }, i) => `t.${key} = $${i + 3}::${type}`);
    const current = generation === null ? `coalesce($2::bigint, ${CURRENT('$1')})` : '$2::bigint';
    return (
      `select 0, 0, t.generation, t.version, ${plainCells(kind)} from ${kind.table.name} t ` +
      `where t.tenant_id = $1 and t.generation = ${current} and ${keys.join(' and ')}${latest(kind)}`
    );
  });
  return { name, text, values: [tenantId, generation, ...parts] };
}

function latest({ versions }: AnyKind): string {
  return versions ? ` order by t.version desc, t.${versions.column} desc limit 1` : '';
}
