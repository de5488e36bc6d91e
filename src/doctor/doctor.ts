/** Everything the service stands on, looked at from here: what is well, what is not, and what to do about it. */
import type { Config } from '../config.js';
import { type Check, type Finding, findingsOf } from './check.js';
import { facesCheck, imagesCheck, portChecks } from './machine.js';
import { postgresCheck } from './postgres.js';
import { redisChecks } from './redis.js';
import { settingFindings } from './settings.js';
import { storageCheck } from './storage.js';

/** Never rejects, and ends within about two minutes even where nothing answers. */
export async function examine(config: Config): Promise<Finding[]> {
  const servers = await all([...redisChecks(config), postgresCheck(config), storageCheck(config)]);
  // Afterwards: what computes here would be taken for slowness, and for skewed clocks, over there.
  const ports = await all(portChecks(config));
  const machine = [...(await findingsOf(imagesCheck())), ...(await findingsOf(facesCheck()))];
  return [...servers, ...machine, ...ports, ...settingFindings(config)];
}

async function all(checks: readonly Check[]): Promise<Finding[]> {
  return (await Promise.all(checks.map(findingsOf))).flat();
}
