/** What a reader process of a run and its parent tell each other. */

export type ToReader =
  | { readonly do: 'read'; readonly tenants: readonly string[]; readonly hashes: readonly string[] }
  | { readonly do: 'invalidate'; readonly tenantId: string }
  | { readonly do: 'tell' };

export type FromReader =
  | { readonly say: 'invalidated'; readonly tenantId: string; readonly count: number | string }
  /** For each tenant, when it was given something the last time (milliseconds since the epoch), and reads in all. */
  | { readonly say: 'seen'; readonly last: Readonly<Record<string, number>>; readonly reads: number };

/** The variables with the seed of the run, and whose numbers of it these are. */
export const SEED = 'CHAOS_SEED';
export const ACTOR = 'CHAOS_ACTOR';
