/** What a worker process of a run and its parent tell each other. */

/** Both are answered with figures; those of the event loop begin anew after the first. */
export type ToWorker = 'figures' | 'metrics';

export type FromWorker =
  | { readonly say: 'working'; readonly address: string }
  | { readonly say: 'figures'; readonly figures: WorkerFigures }
  /** When it has stopped, before it ends: the text of its metrics. */
  | { readonly say: 'stopped'; readonly metrics: string };

export interface WorkerFigures {
  /** Of the event loop since the last question, in milliseconds. */
  readonly lagP99Ms: number;
  readonly lagMaxMs: number;
  readonly rssBytes: number;
  /** In the text format. */
  readonly metrics: string;
}

/** The variable that names the queues which the process works on; without it, all. */
export const WORKS_ON = 'CHAOS_QUEUES';
/** The variable that has the process serve the API, if it is set. */
export const SERVES_API = 'CHAOS_API';
