/** What a stack's owner and its keeper say to each other: JSON lines over the keeper's standard input and output. */

export type ServerName = 'postgres' | 'redis';
export type ChildName = ServerName | 'initdb';

/** A process that the keeper is to start. It gets this environment and no other. */
export interface ChildCommand {
  name: ChildName;
  file: string;
  args: string[];
  env: Record<string, string>;
  /** The user to run as; absent: as the keeper itself. */
  user?: { uid: number; gid: number };
  logFile: string;
  /** Given on standard input, where `ps` does not show it. */
  input?: string;
  /** The signal that ends it cleanly. */
  stopSignal: NodeJS.Signals;
}

export type KeeperRequest =
  /** Answers with the pid. */
  | { do: 'start'; command: ChildCommand }
  /** Answers once the signal is sent, after SIGKILL once the process is gone. */
  | { do: 'signal'; name: ServerName; signal: NodeJS.Signals }
  /** Ends one server cleanly, by force where it does not obey in time; answers when it is gone. */
  | { do: 'end'; name: ServerName }
  /** Answers with the exit code (`null`: ended by a signal). */
  | { do: 'await-exit'; name: ChildName }
  /** Paths to remove when the keeper ends. */
  | { do: 'remove-at-end'; paths: string[] }
  /** Ends every child, removes what is to be removed, answers, and ends the keeper. */
  | { do: 'stop' };

export type KeeperAnswer = { id: number; value: number | null } | { id: number; error: string };
/** Said unasked when a child is gone. */
export type ChildExit = { exited: number };
