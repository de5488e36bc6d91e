/** A program that owns a local stack, for the tests to kill: starts one, says so in one JSON line, and stays. */
import { startLocalStack } from '../../dist/src/local/stack.js';

// Deaf to what a terminal sends at Ctrl-C, as a service is while it drains.
process.on('SIGINT', () => console.log('"SIGINT"'));
const lines = [];
const options = { ...JSON.parse(process.argv[2]), announce: (line) => lines.push(line) };
try {
  const { env, pids, redis } = await startLocalStack(options);
  console.log(JSON.stringify({ env, pids, redis, lines }));
} catch (error) {
  console.log(JSON.stringify({ error: error.name, message: error.message, lines }));
  process.exit(1);
}
setInterval(() => undefined, 60_000);
