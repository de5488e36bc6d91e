/** A port whose handshakes never end: its process is too busy to accept, and the kernel's queue for it is full. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { Worker } from 'node:worker_threads';

/** The kernel keeps one connection more than the backlog says, and answers no further SYN. */
const BACKLOG = 1;

const LISTENER = `
  const { createServer } = require('node:net');
  const { parentPort, workerData } = require('node:worker_threads');
  const server = createServer().listen({ port: 0, ...workerData }, () => {
    parentPort.postMessage(server.address().port);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  });`;

export interface DeafPort extends AsyncDisposable {
  readonly port: number;
}

/** Hold it with `await using`. */
export async function startDeafPort(host = '127.0.0.1'): Promise<DeafPort> {
  const worker = new Worker(LISTENER, { eval: true, workerData: { host, backlog: BACKLOG } });
  const [port] = (await once(worker, 'message')) as [number];
  const queued: Socket[] = [];
  for (let n = 0; n <= BACKLOG; n++) {
    const socket = connect(port, host).on('error', () => undefined);
    await once(socket, 'connect');
    queued.push(socket);
  }
  return {
    port,
    [Symbol.asyncDispose]: async () => {
      for (const socket of queued) socket.destroy();
      await worker.terminate();
    },
  };
}
