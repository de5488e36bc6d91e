/** This machine: the image formats it decodes, the face models, and the ports. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import type { Config } from '../config.js';
import { type Check, type Finding, ok, problem, warning } from './check.js';

const FORMATS = ['jpeg', 'png', 'webp', 'gif', 'avif', 'tiff'] as const;
/** What libvips reads, and we must not: it may name files, and ask for more memory than its size shows. */
const UNTRUSTED = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>');
const SIDE = 16;
const HEALTH_MS = 2_000;

export function imagesCheck(): Check {
  const name = 'images';
  return {
    name,
    deadlineMs: 15_000,
    remedy: 'reinstall sharp for this platform (npm ci)',
    run: async () => {
      // Loaded here, so that a sharp that cannot be loaded is a finding.
      const { default: sharp } = await import('sharp');
      const { decode } = await import('../images/decoder.js');
      const pixel = { width: SIDE, height: SIDE, channels: 3, background: '#808080' } as const;
      const failed: string[] = [];
      for (const format of FORMATS) {
        const decoded = sharp({ create: pixel }).toFormat(format).toBuffer();
        await decoded.then((bytes) => decode(bytes, SIDE, { maxPixels: SIDE ** 2 })).catch(() => failed.push(format));
      }
      const readsUntrusted = await sharp(UNTRUSTED)
        .metadata()
        .then(
          () => true,
          () => false,
        );
      return [
        failed.length > 0
          ? problem(name, `${failed.join(', ')} cannot be decoded: reinstall sharp for this platform (npm ci)`)
          : ok(name, `sharp ${sharp.versions.sharp} decodes ${FORMATS.join(', ')}`),
        readsUntrusted
          ? problem(name, 'SVG can be read from the web, which is a hole: run the version of this package as published')
          : ok(name, 'other loaders are off'),
      ];
    },
  };
}

export function facesCheck(): Check {
  const name = 'face models';
  return {
    name,
    deadlineMs: 60_000,
    remedy: 'reinstall the package (npm ci), and from sources run npm run build',
    run: async () => {
      const { createBuiltInEngine } = await import('../faces/builtin.js');
      await using engine = createBuiltInEngine({ threads: 1 });
      // Loads the weights in a thread, as a worker does.
      const tensors = await engine.tensors();
      return [ok(name, `loaded in a thread, as ${tensors} tensors`)];
    },
  };
}

export function portChecks({ http: { host, port }, metricsPort }: Config): Check[] {
  const ports = { PORT: port, METRICS_PORT: metricsPort };
  return Object.entries(ports).map(([variable, number]) => ({
    name: variable,
    deadlineMs: 2 * HEALTH_MS,
    remedy: `set ${variable} or HOST to what this machine has`,
    run: async () => [await portFinding(variable, host, number)],
  }));
}

async function portFinding(variable: string, host: string, port: number): Promise<Finding> {
  if (port === 0) return ok(variable, 'is any that is free');
  if (await isFree(host, port)) return ok(variable, `${port} is free`);
  if (await isOurs(host, port)) return ok(variable, `${port} is in use, by a process of this service as it seems`);
  return warning(variable, `${port} is in use by something else: stop that, or set ${variable} to another one`);
}

/** Rejects where the port cannot be listened at for another reason than that somebody does. */
async function isFree(host: string, port: number): Promise<boolean> {
  const server = createServer();
  try {
    await once(server.listen({ host, port, exclusive: true }), 'listening');
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') return false;
    throw error;
  } finally {
    server.close();
  }
}

async function isOurs(host: string, port: number): Promise<boolean> {
  const name = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '[::1]' : host.includes(':') ? `[${host}]` : host;
  try {
    const response = await fetch(`http://${name}:${port}/healthz`, { signal: AbortSignal.timeout(HEALTH_MS) });
    return ((await response.json()) as { status?: unknown }).status === 'ok';
  } catch {
    return false;
  }
}
