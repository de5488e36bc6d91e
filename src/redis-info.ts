/** What a Redis server says of itself: https://redis.io/docs/latest/commands/info/ */

export interface RedisFacts {
  /** Changes at every start of the server. */
  readonly runId: string;
  readonly loading: boolean;
  /** What happens when memory is full: `noeviction`, `allkeys-lru` and so on. */
  readonly policy: string;
  /** Bytes it may use; the machine's memory where no limit is set. */
  readonly memoryLimit: number;
  /** Whether a limit is set at all. */
  readonly limited: boolean;
  readonly usedMemory: number;
  /** Whether every write goes to an append-only file. */
  readonly appendOnly: boolean;
  /**
   * Bytes for that file which it holds back while an fsync is under way, or since a write failed. Others it gives to the
   * operating system before it answers, also those that it has not at the moment at which it counts.
   */
  readonly heldBackBytes: number;
}

/** The lines of `INFO` as fields. */
export function parseInfo(text: string): Readonly<Record<string, string>> {
  const fields = text.split(/\r?\n/).flatMap((line) => {
    const cut = line.indexOf(':');
    return cut > 0 && !line.startsWith('#') ? [[line.slice(0, cut), line.slice(cut + 1)]] : [];
  });
  return Object.fromEntries(fields);
}

export function factsOf(text: string): RedisFacts {
  const info = parseInfo(text);
  const number = (name: string) => Number(info[name] ?? 0);
  return {
    runId: info.run_id ?? '',
    loading: info.loading === '1',
    policy: info.maxmemory_policy ?? '',
    memoryLimit: number('maxmemory') || number('total_system_memory') || Number.POSITIVE_INFINITY,
    limited: number('maxmemory') > 0,
    usedMemory: number('used_memory'),
    appendOnly: info.aof_enabled === '1',
    heldBackBytes:
      number('aof_pending_bio_fsync') > 0 || info.aof_last_write_status !== 'ok' ? number('aof_buffer_length') : 0,
  };
}
