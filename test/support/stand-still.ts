/** As a process that is stopped for a while: nothing of it runs, and its sockets fill. */
export function standStill(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
